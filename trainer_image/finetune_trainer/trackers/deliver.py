"""Carries points to one tracker, in a thread of its own: a tracker that is away is tried again, and held against nobody."""

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
    """name: of the tracker. make: opens it; called in the thread, again after each failure, and not before there is a point.

    secrets: words that no warning may hold.
    """

    def __init__(self, name: str, make: Callable[[], Tracker], secrets: Sequence[str] = ()) -> None:
        self._name, self._make, self._secrets = name, make, secrets
        self._points: collections.deque[Point] = collections.deque()
        self._outcome: str | None = None
        self._closing = False
        self._news = threading.Condition()
        self._warned = False
        self._thread = threading.Thread(target=self._run, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def put(self, points: Sequence[Point]) -> None:
        """Takes no time, whatever the tracker does."""
        with self._news:
            self._points.extend(points)
            self._news.notify()

    def close(self, outcome: str | None) -> None:
        """Send what is left, with one more try if it is away; outcome: None where the run is going to go on."""
        with self._news:
            self._outcome, self._closing = outcome, True
            self._news.notify()

    def wait(self, seconds: float) -> None:
        """Until everything was sent, or given up, but no longer than this after close()."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            log.warning("%s did not take the last figures in time: they are left out", self._name)

    def _run(self) -> None:
        tracker: Tracker | None = None
        told, pause = False, _FIRST_PAUSE_SECONDS
        while points := self._next():
            last_try = self._closing
            try:
                tracker = tracker or self._make()
                tracker.log(points)
            except Exception as error:
                tracker = None
                self._warn(error)
                if last_try:
                    return
                self._pause(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                continue
            if not told:
                log.info("reporting to %s", self._name)
            told, pause = True, _FIRST_PAUSE_SECONDS
            with self._news:
                for _ in points:
                    self._points.popleft()
        self._finish(tracker)

    def _next(self) -> list[Point]:
        """The points to send next, at most a batch; none when it is over."""
        with self._news:
            self._news.wait_for(lambda: self._points or self._closing)
            return [self._points[number] for number in range(min(_BATCH, len(self._points)))]

    def _pause(self, seconds: float) -> None:
        with self._news:
            self._news.wait_for(lambda: self._closing, seconds)

    def _finish(self, tracker: Tracker | None) -> None:
        if tracker is None or self._outcome is None:
            return
        try:
            tracker.finish(self._outcome)
        except Exception as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        """Once: what it missed is sent when it is back, and the next hundred failures say nothing new."""
        if self._warned:
            return
        self._warned = True
        text = _URL_CREDENTIALS.sub("//[removed]@", " ".join(str(error).split()))
        for secret in self._secrets:
            text = text.replace(secret, "[removed]")
        log.warning("%s can't be reached (%s: %s); the training goes on without it", self._name, type(error).__name__, text[:300])
