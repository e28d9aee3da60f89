"""Leader election: only the holder of a Lease acts, and only for some seconds after its last renewal.

Clocks of different machines are never compared: a Lease has run out when it did not change for its duration on our own clock,
which goes on while the process is stopped.
"""

import asyncio
import contextlib
import datetime
import logging
import time
from collections.abc import Awaitable, Callable

from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.observed import Manifest

logger = logging.getLogger(__name__)

# Another process may take a Lease that was not renewed for this long.
LEASE_DURATION_SECONDS = 10.0
# The holder stops acting this long after its last renewal, well before another process may take the Lease.
RENEW_DEADLINE_SECONDS = 7.0
_RETRY_SECONDS = 1.5
_REQUEST_TIMEOUT_SECONDS = 4.0


class NotLeadingError(Exception):
    """This process may not write now."""


class LeaseLostError(Exception):
    """Another process holds the Lease. This process must end."""


class LeaderElection:
    """Acquires the Lease and renews it. clock: seconds that also pass while the process is stopped. now: the current time."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        identity: str,
        now: Callable[[], datetime.datetime],
        clock: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        self._api = api
        self._namespace, self._name, self._identity = namespace, name, identity
        self._now, self._clock = now, clock
        self._observed_lease: Manifest | None = None
        self._observed_at = 0.0
        self._renewed_at: float | None = None
        self.elected = asyncio.Event()

    def is_leading(self) -> bool:
        """Whether this process may act."""
        return self._renewed_at is not None and self._clock() - self._renewed_at < RENEW_DEADLINE_SECONDS

    def check(self) -> None:
        """Raise NotLeadingError unless this process may act."""
        if not self.is_leading():
            raise NotLeadingError("this process does not hold the Lease")

    async def run(self) -> None:
        """Acquire the Lease when it is free, and renew it for ever. Raise LeaseLostError if another process holds it."""
        warned = False
        while True:
            try:
                async with asyncio.timeout(_REQUEST_TIMEOUT_SECONDS):  # wait_for can forget a cancellation: queue.py
                    await self._try_acquire_or_renew()
                warned = False
            except (ApiError, TimeoutError) as error:
                if not warned:
                    logger.warning("the Lease %s/%s can't be renewed: %s", self._namespace, self._name, error or "no answer")
                warned = True
            await asyncio.sleep(_RETRY_SECONDS)

    async def release(self) -> None:
        """Release the Lease, so that the next process need not wait until it has run out."""
        if self._renewed_at is None:
            return
        self._renewed_at = None
        with contextlib.suppress(ApiError, TimeoutError):
            await asyncio.wait_for(self._release(), 2.0)

    async def _release(self) -> None:
        """Read the Lease again before the update: the response to our last renewal may have been lost."""
        found = await self._api.get("Lease", self._namespace, self._name)
        if found is not None and _record(found)[0] == self._identity:
            await self._api.update("Lease", self._manifest(found, holder=""))

    async def _try_acquire_or_renew(self) -> None:
        started_at = self._clock()
        if self._renewed_at is None or self._observed_lease is None:
            await self._observe()
        lease = self._observed_lease
        if lease is None:
            await self._write(self._api.create("Lease", self._manifest(None)), started_at)
        elif self._renewed_at is not None or self._can_acquire(lease):
            await self._write(self._api.update("Lease", self._manifest(lease)), started_at)

    async def _observe(self) -> None:
        found = await self._api.get("Lease", self._namespace, self._name)
        if found is None or self._observed_lease is None or _record(found) != _record(self._observed_lease):
            self._observed_at = self._clock()
        self._observed_lease = found
        holder = _record(found)[0] if found else ""
        if self._renewed_at is not None and holder != self._identity:
            self._renewed_at = None
            raise LeaseLostError(f"{holder or 'another process'} holds the Lease {self._namespace}/{self._name} now")

    async def _write(self, request: Awaitable[Manifest], started_at: float) -> None:
        """Write the Lease. If another process was faster, only read the Lease again."""
        try:
            self._observed_lease = await request
        except ApiError as error:
            if error.code not in (404, 409):
                raise
            await self._observe()
            return
        self._observed_at = self._clock()
        self._renewed_at = started_at
        if not self.elected.is_set():
            logger.info("%s is the leader now", self._identity)
            self.elected.set()

    def _can_acquire(self, lease: Manifest) -> bool:
        holder, _ = _record(lease)
        return not holder or holder == self._identity or self._clock() - self._observed_at >= LEASE_DURATION_SECONDS

    def _manifest(self, lease: Manifest | None, holder: str | None = None) -> Manifest:
        """Return the Lease to write. With its resourceVersion, the update fails if another process was faster."""
        before = (lease or {}).get("spec", {})
        now = self._now().astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        holder = self._identity if holder is None else holder
        same_holder = before.get("holderIdentity") == holder
        metadata = {"namespace": self._namespace, "name": self._name}
        if lease is not None:
            metadata["resourceVersion"] = lease["metadata"]["resourceVersion"]
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": round(LEASE_DURATION_SECONDS),
                "acquireTime": before.get("acquireTime", now) if same_holder else now,
                "renewTime": now,
                "leaseTransitions": before.get("leaseTransitions", 0) + (0 if same_holder else 1),
            },
        }


class NoLeaderElection:
    """Always leads. For a single process, such as one on a developer's machine."""

    def __init__(self) -> None:
        self.elected = asyncio.Event()
        self.elected.set()

    def is_leading(self) -> bool:
        """Return True."""
        return True

    def check(self) -> None:
        """Do nothing."""

    async def run(self) -> None:
        """Wait for ever."""
        await asyncio.Event().wait()

    async def release(self) -> None:
        """Do nothing."""


def _record(lease: Manifest) -> tuple[str, str]:
    """Return holder and renewal time. A live holder changes them."""
    spec = lease.get("spec", {})
    return spec.get("holderIdentity") or "", spec.get("renewTime") or ""
