"""A work queue for asyncio. It holds each key once, gives it to one worker at a time, and retries with backoff and jitter."""

import asyncio
import contextlib
import heapq
import logging
import random
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)

# The first and the longest delay after errors, in seconds. The delay doubles in between.
BASE_DELAY_SECONDS = 0.5
MAX_DELAY_SECONDS = 60.0


class RetryLaterError(Exception):
    """A key could not be processed for an external reason. after_seconds: the minimum delay, as the server asked for it, or 0."""

    def __init__(self, message: str, after_seconds: float) -> None:
        super().__init__(message)
        self.after_seconds = after_seconds


class WorkQueue(Generic[K]):
    """Keys that wait to be processed.

    A key that is added while it is in progress is processed again afterwards. A key that is added while it waits for a later
    time is processed at once. clock: monotonic seconds. jitter: returns a random number from 0 to 1.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = random.random) -> None:
        self._clock = clock
        self._jitter = jitter
        self._ready: dict[K, float] = {}  # in order; the value is when the key became due
        self._due: dict[K, float] = {}
        self._timers: list[tuple[float, int, K]] = []  # a heap; an entry is stale if _due has another time for its key
        self._sequence = 0
        self._processing: dict[K, float] = {}  # the value is when the processing began
        self._last_processed = clock()
        self._dirty: set[K] = set()
        self._failures: dict[K, int] = {}
        self._not_before: dict[K, float] = {}
        self._wake = asyncio.Event()

    def add(self, key: K) -> None:
        """Queue the key, to be processed as soon as possible."""
        if key in self._not_before and self._not_before[key] > self._clock():
            return  # it waits for the time that the server asked for
        self._due.pop(key, None)
        if key in self._processing:
            self._dirty.add(key)
        elif key not in self._ready:
            self._ready[key] = self._clock()
            self._wake.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Queue the key after that time. It is processed earlier if it is added again."""
        when = max(self._clock() + seconds, self._not_before.get(key, 0.0))
        if key in self._ready or key in self._dirty or self._due.get(key, when + 1) <= when:
            return
        self._due[key] = when
        self._sequence += 1
        heapq.heappush(self._timers, (when, self._sequence, key))
        self._wake.set()

    def take(self) -> K | None:
        """Return the next key, which is in progress from now on, or None if no key is due."""
        self._move_due()
        if not self._ready:
            return None
        key = next(iter(self._ready))
        del self._ready[key]
        self._processing[key] = self._clock()
        self._not_before.pop(key, None)
        return key

    def done(self, key: K, requeue_after_seconds: float | None = None) -> None:
        """Record that the key was processed without an error."""
        self._failures.pop(key, None)
        self._release(key, requeue_after_seconds)

    def failed(self, key: K, at_least_seconds: float = 0.0) -> float:
        """Record an error. The key is processed again after a delay. Return that delay."""
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        delay: float = min(MAX_DELAY_SECONDS, BASE_DELAY_SECONDS * 2 ** min(count, 16))
        delay = max(at_least_seconds, delay * (0.5 + self._jitter() / 2))
        if at_least_seconds:
            self._dirty.discard(key)
            self._due.pop(key, None)
            self._not_before[key] = self._clock() + at_least_seconds
        self._release(key, delay)
        return delay

    def depth(self) -> int:
        """Return the number of keys that are due and wait for a worker."""
        self._move_due()
        return len(self._ready)

    def stuck_seconds(self) -> float:
        """Return for how long a key has been in progress, or keys have waited while none was processed, whichever is longer.

        The age of a waiting key says nothing: with many keys and a queue that moves, each of them waits for long.
        """
        since = list(self._processing.values())
        if self._ready:
            since.append(max(self._last_processed, next(iter(self._ready.values()))))
        return self._clock() - min(since, default=self._clock())

    def next_due_seconds(self) -> float | None:
        """Return the seconds until the next waiting key is due, or None if no key waits."""
        while self._timers and self._due.get(self._timers[0][2]) != self._timers[0][0]:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - self._clock()) if self._timers else None

    async def run(self, handle: Callable[[K], Awaitable[float | None]], workers: int) -> None:
        """Process keys until cancelled. handle: returns the seconds until the key is processed again, or None."""
        self._ready = dict.fromkeys(self._ready, self._clock())  # no worker could take them before
        slots = asyncio.Semaphore(workers)
        async with asyncio.TaskGroup() as group:
            while True:
                await slots.acquire()
                while (key := self.take()) is None:
                    await self._wait()
                group.create_task(self._process(key, handle)).add_done_callback(lambda _: slots.release())

    async def _process(self, key: K, handle: Callable[[K], Awaitable[float | None]]) -> None:
        try:
            requeue_after_seconds = await handle(key)
        except RetryLaterError as error:
            delay = self.failed(key, error.after_seconds)
            logger.info("%s: retry in %.1f s: %s", key, delay, error)
        except asyncio.CancelledError:
            self.failed(key)  # the key must not be lost, even if only this task was cancelled
            raise
        except Exception:
            delay = self.failed(key)
            logger.exception("%s: retry in %.1f s", key, delay)
        else:
            self.done(key, requeue_after_seconds)

    async def _wait(self) -> None:
        """Wait for a new key, or until the first timer is due.

        asyncio.wait_for of Python 3.11 forgets a cancellation that arrives together with the key, and the workers would run on.
        """
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.next_due_seconds()):
                await self._wake.wait()

    def _move_due(self) -> None:
        while (seconds := self.next_due_seconds()) is not None and seconds <= 0:
            _, _, key = heapq.heappop(self._timers)
            del self._due[key]
            if key in self._processing:
                self._dirty.add(key)
            else:
                self._ready.setdefault(key, self._clock())

    def _release(self, key: K, requeue_after_seconds: float | None) -> None:
        del self._processing[key]
        self._last_processed = self._clock()
        if key in self._dirty:
            self._dirty.discard(key)
            self._ready[key] = self._clock()
            self._wake.set()
        elif requeue_after_seconds is not None:
            self.add_after(key, requeue_after_seconds)
