"""Liveness and readiness of the operator, for the kubelet's probes."""

import asyncio
import time
from collections.abc import Callable

# The operator lists once a minute. Each page takes at most half a minute.
MAX_LIST_AGE_SECONDS = 180.0
# No reconcile takes this long, because its requests time out much earlier.
MAX_RECONCILE_SECONDS = 180.0


class Health:
    """Live while the operator requests lists and its queue makes progress. Ready after the first successful list.

    A failed list counts for liveness too, because a restart would not help if the API server is down. queue_seconds: for how long
    the queue has made no progress. clock: monotonic seconds.
    """

    def __init__(self, queue_seconds: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._queue_seconds = queue_seconds
        self._clock = clock
        self._last_list = clock()
        self._ready = asyncio.Event()

    def list_succeeded(self) -> None:
        """Record a successful list."""
        self._last_list = self._clock()
        self._ready.set()

    def list_failed(self) -> None:
        """Record a failed list."""
        self._last_list = self._clock()

    def is_ready(self) -> bool:
        """Return whether every job that existed at the start was put into the queue."""
        return self._ready.is_set()

    async def wait_ready(self) -> None:
        """Wait for the first successful list."""
        await self._ready.wait()

    def liveness_failure(self) -> str | None:
        """Return why a restart would help, or None if the operator is live."""
        since_list = self._clock() - self._last_list
        if since_list > MAX_LIST_AGE_SECONDS:
            return f"the last list of FineTuneJobs was {since_list:.0f} s ago"
        if (stuck := self._queue_seconds()) > MAX_RECONCILE_SECONDS:
            return f"the queue has made no progress for {stuck:.0f} s"
        return None
