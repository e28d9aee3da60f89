"""Whether the operator lives and is ready, for the kubelet's probes."""

import asyncio
import time
from collections.abc import Callable

# The list comes once a minute, a try of it ends within half of one for each page.
OLDEST_LIST_SECONDS = 180.0
# No turn takes so long: its requests time out far earlier.
SLOWEST_TURN_SECONDS = 180.0


class Health:
    """Live while the list is tried and the queue moves; ready once the first list is through.

    An API server that is away makes nobody restart: a try that failed is a sign of life too. queue_seconds: for how long the
    slowest key has waited for its turn, or for its turn's end. clock: monotonic seconds.
    """

    def __init__(self, queue_seconds: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._queue_seconds = queue_seconds
        self._clock = clock
        self._last_try = clock()
        self._ready = asyncio.Event()

    def list_done(self) -> None:
        """The list came through."""
        self._last_try = self._clock()
        self._ready.set()

    def list_failed(self) -> None:
        """The list was tried."""
        self._last_try = self._clock()

    def is_ready(self) -> bool:
        """Every job that was there at the start is in the queue."""
        return self._ready.is_set()

    async def wait_ready(self) -> None:
        """Wait for the first list."""
        await self._ready.wait()

    def complaint(self) -> str | None:
        """Why a new start would help; None if all is well."""
        since_list = self._clock() - self._last_try
        if since_list > OLDEST_LIST_SECONDS:
            return f"FineTuneJobs were listed {since_list:.0f} s ago"
        if (slowest := self._queue_seconds()) > SLOWEST_TURN_SECONDS:
            return f"the queue stands still for {slowest:.0f} s"
        return None
