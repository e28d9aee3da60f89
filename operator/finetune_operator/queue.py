"""One asyncio work queue: each key once, one worker per key, back-off with jitter for those that failed."""

import asyncio
import heapq
import logging
import random
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)

# Seconds of the first and the longest pause after errors; it doubles in between.
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0


class RetryLaterError(Exception):
    """Not done, and no fault of ours: try again after that many seconds, which the server may have asked for."""

    def __init__(self, message: str, after_seconds: float) -> None:
        super().__init__(message)
        self.after_seconds = after_seconds


class WorkQueue(Generic[K]):
    """Keys that wait for their turn.

    A key that is added while it is being worked on comes again afterwards; one that is added while it waits for a later
    time comes at once. clock: monotonic seconds. jitter: random share from 0 to 1.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = random.random) -> None:
        self._clock = clock
        self._jitter = jitter
        self._ready: dict[K, float] = {}  # in order; since when
        self._due: dict[K, float] = {}
        self._timers: list[tuple[float, int, K]] = []  # a heap; entries that _due does not confirm are stale
        self._sequence = 0
        self._working: dict[K, float] = {}  # since when
        self._again: set[K] = set()
        self._failures: dict[K, int] = {}
        self._not_before: dict[K, float] = {}
        self._wake = asyncio.Event()

    def add(self, key: K) -> None:
        """Let the key have a turn as soon as possible."""
        if key in self._not_before and self._not_before[key] > self._clock():
            return  # its turn is to come already, when the server said
        self._due.pop(key, None)
        if key in self._working:
            self._again.add(key)
        elif key not in self._ready:
            self._ready[key] = self._clock()
            self._wake.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Let the key have a turn after that time, or earlier if something else asks for it."""
        when = max(self._clock() + seconds, self._not_before.get(key, 0.0))
        if key in self._ready or key in self._again or self._due.get(key, when + 1) <= when:
            return
        self._due[key] = when
        self._sequence += 1
        heapq.heappush(self._timers, (when, self._sequence, key))
        self._wake.set()

    def take(self) -> K | None:
        """The next key that is due, from now on worked on; None if there is none."""
        self._move_due()
        if not self._ready:
            return None
        key = next(iter(self._ready))
        del self._ready[key]
        self._working[key] = self._clock()
        self._not_before.pop(key, None)
        return key

    def done(self, key: K, again_after_seconds: float | None = None) -> None:
        """The key's turn is over, without an error."""
        self._failures.pop(key, None)
        self._release(key, again_after_seconds)

    def failed(self, key: K, at_least_seconds: float = 0.0) -> float:
        """The key's turn ended in an error: it comes again after a pause, which is returned."""
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        pause: float = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(count, 16))
        pause = max(at_least_seconds, pause * (0.5 + self._jitter() / 2))
        if at_least_seconds:
            self._again.discard(key)
            self._due.pop(key, None)
            self._not_before[key] = self._clock() + at_least_seconds
        self._release(key, pause)
        return pause

    def depth(self) -> int:
        """Keys that could be worked on now, and wait."""
        self._move_due()
        return len(self._ready)

    def oldest_seconds(self) -> float:
        """For how long the slowest key has been worked on, or has waited for its turn."""
        since = min([*self._working.values(), *self._ready.values()], default=self._clock())
        return self._clock() - since

    def next_due_seconds(self) -> float | None:
        """Seconds until a key that waits for a later time is due; None if there is none."""
        while self._timers and self._due.get(self._timers[0][2]) != self._timers[0][0]:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - self._clock()) if self._timers else None

    async def run(self, handle: Callable[[K], Awaitable[float | None]], workers: int) -> None:
        """Work until cancelled. handle: returns after how many seconds the key wants another turn, None for not at all."""
        self._ready = dict.fromkeys(self._ready, self._clock())  # nobody could have worked on them before
        slots = asyncio.Semaphore(workers)
        async with asyncio.TaskGroup() as group:
            while True:
                await slots.acquire()
                while (key := self.take()) is None:
                    await self._wait()
                group.create_task(self._turn(key, handle)).add_done_callback(lambda _: slots.release())

    async def _turn(self, key: K, handle: Callable[[K], Awaitable[float | None]]) -> None:
        try:
            again = await handle(key)
        except RetryLaterError as error:
            pause = self.failed(key, error.after_seconds)
            logger.info("%s: again in %.1f s: %s", key, pause, error)
        except asyncio.CancelledError:
            self.failed(key)  # whoever cancelled this one turn, the key must not be lost
            raise
        except Exception:
            pause = self.failed(key)
            logger.exception("%s: again in %.1f s", key, pause)
        else:
            self.done(key, again)

    async def _wait(self) -> None:
        self._wake.clear()
        try:
            await asyncio.wait_for(self._wake.wait(), self.next_due_seconds())
        except TimeoutError:
            return  # the first timer is due

    def _move_due(self) -> None:
        while (seconds := self.next_due_seconds()) is not None and seconds <= 0:
            _, _, key = heapq.heappop(self._timers)
            del self._due[key]
            if key in self._working:
                self._again.add(key)
            else:
                self._ready.setdefault(key, self._clock())

    def _release(self, key: K, again_after_seconds: float | None) -> None:
        del self._working[key]
        if key in self._again:
            self._again.discard(key)
            self._ready[key] = self._clock()
            self._wake.set()
        elif again_after_seconds is not None:
            self.add_after(key, again_after_seconds)
