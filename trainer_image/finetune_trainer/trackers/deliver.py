"""Delivers points to one tracker, in a separate thread. Retries an unreachable tracker, without an effect on the training."""

import collections
import logging
import re
import threading
from collections.abc import Callable, Sequence

from finetune_trainer.trackers.base import Point, Tracker

log = logging.getLogger(__name__)

_BATCH = 500
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 60.0
_URL_CREDENTIALS = re.compile(r"//[^/\s@]+@")


class Delivery:
    """Queue of points for one tracker, and the thread that sends them.

    name: name of the tracker. open_tracker: opens it. The thread calls this for the first point, and again after each failure.
    secrets: strings that are removed from warnings.
    """

    def __init__(self, name: str, open_tracker: Callable[[], Tracker], secrets: Sequence[str] = ()) -> None:
        self._name, self._open_tracker, self._secrets = name, open_tracker, secrets
        self._points: collections.deque[Point] = collections.deque()
        self._outcome: str | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._warned = False
        self._thread = threading.Thread(target=self._run, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def put(self, points: Sequence[Point]) -> None:
        """Queue points. Never waits for the tracker."""
        with self._changed:
            self._points.extend(points)
            self._changed.notify()

    def close(self, outcome: str | None) -> None:
        """Send the remaining points, with one last attempt if the tracker fails. outcome: None if the run continues later."""
        with self._changed:
            self._outcome, self._closing = outcome, True
            self._changed.notify()

    def wait(self, seconds: float) -> None:
        """Wait after close() until everything is sent or given up, but at most ``seconds``."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            log.warning("%s did not accept the last metrics in time: they are left out", self._name)

    def _run(self) -> None:
        tracker: Tracker | None = None
        connected, pause = False, _FIRST_PAUSE_SECONDS
        while points := self._next():
            last_try = self._closing
            try:
                tracker = tracker or self._open_tracker()
                tracker.log(points)
            except Exception as error:
                tracker = None
                self._warn(error)
                if last_try:
                    return
                self._pause(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                continue
            if not connected:
                log.info("reporting to %s", self._name)
            connected, pause = True, _FIRST_PAUSE_SECONDS
            with self._changed:
                for _ in points:
                    self._points.popleft()
        self._finish(tracker)

    def _next(self) -> list[Point]:
        """Wait for points and return at most one batch; empty if closed and all points are sent."""
        with self._changed:
            self._changed.wait_for(lambda: self._points or self._closing)
            return [self._points[number] for number in range(min(_BATCH, len(self._points)))]

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing, seconds)

    def _finish(self, tracker: Tracker | None) -> None:
        if tracker is None or self._outcome is None:
            return
        try:
            tracker.finish(self._outcome)
        except Exception as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        """Log the first failure only. The missing points are sent later, and further failures add no information."""
        if self._warned:
            return
        self._warned = True
        text = _URL_CREDENTIALS.sub("//[removed]@", " ".join(str(error).split()))
        for secret in self._secrets:
            text = text.replace(secret, "[removed]")
        log.warning("%s can't be reached (%s: %s); the training goes on without it", self._name, type(error).__name__, text[:300])
