"""Who of several operators acts: the holder of a Lease, and only while it renewed it a moment ago.

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

# For so long a Lease is somebody's who does not renew it.
LEASE_SECONDS = 10.0
# The holder stops acting this long after its last renewal: well before another one may begin.
ACT_SECONDS = 7.0
_RETRY_SECONDS = 1.5
_REQUEST_SECONDS = 4.0


class NotLeadingError(Exception):
    """This process may not write now."""


class LeaseLostError(Exception):
    """Another process acts: this one has to end, and to start afresh."""


class Leadership:
    """Takes the Lease and keeps it. clock: seconds that go on while the process is stopped; now: the time of day, for people."""

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
        self._known: Manifest | None = None
        self._known_since = 0.0
        self._renewed: float | None = None
        self.taken = asyncio.Event()

    def is_leading(self) -> bool:
        """Whether this process may act."""
        return self._renewed is not None and self._clock() - self._renewed < ACT_SECONDS

    def check(self) -> None:
        """Raise NotLeadingError unless this process may act."""
        if not self.is_leading():
            raise NotLeadingError("this process does not hold the Lease")

    async def run(self) -> None:
        """Take the Lease when it is free and renew it for ever; raise LeaseLostError once somebody else has it."""
        complained = False
        while True:
            try:
                await asyncio.wait_for(self._step(), _REQUEST_SECONDS)
                complained = False
            except (ApiError, TimeoutError) as error:
                if not complained:
                    logger.warning("the Lease %s/%s can't be renewed: %s", self._namespace, self._name, error or "no answer")
                complained = True
            await asyncio.sleep(_RETRY_SECONDS)

    async def release(self) -> None:
        """Give the Lease back, so that the next one need not wait for it to run out."""
        if self._renewed is None:
            return
        self._renewed = None
        with contextlib.suppress(ApiError, TimeoutError):
            await asyncio.wait_for(self._release(), 2.0)

    async def _release(self) -> None:
        """From what there is: a renewal of ours may have been written without an answer."""
        found = await self._api.get("Lease", self._namespace, self._name)
        if found is not None and _record(found)[0] == self._identity:
            await self._api.update("Lease", self._manifest(found, holder=""))

    async def _step(self) -> None:
        began = self._clock()
        if self._renewed is None or self._known is None:
            await self._observe()
        known = self._known
        if known is None:
            await self._write(self._api.create("Lease", self._manifest(None)), began)
        elif self._renewed is not None or self._is_free(known):
            await self._write(self._api.update("Lease", self._manifest(known)), began)

    async def _observe(self) -> None:
        found = await self._api.get("Lease", self._namespace, self._name)
        if found is None or self._known is None or _record(found) != _record(self._known):
            self._known_since = self._clock()
        self._known = found
        holder = _record(found)[0] if found else ""
        if self._renewed is not None and holder != self._identity:
            self._renewed = None
            raise LeaseLostError(f"{holder or 'somebody'} holds the Lease {self._namespace}/{self._name} now")

    async def _write(self, request: Awaitable[Manifest], began: float) -> None:
        """A write that somebody else was quicker with is no error: what there is now is looked at next."""
        try:
            self._known = await request
        except ApiError as error:
            if error.code not in (404, 409):
                raise
            await self._observe()
            return
        self._known_since = self._clock()
        self._renewed = began
        if not self.taken.is_set():
            logger.info("%s acts from now on", self._identity)
            self.taken.set()

    def _is_free(self, lease: Manifest) -> bool:
        holder, _ = _record(lease)
        return not holder or holder == self._identity or self._clock() - self._known_since >= LEASE_SECONDS

    def _manifest(self, known: Manifest | None, holder: str | None = None) -> Manifest:
        """The Lease as it is to be; an unchanged resourceVersion makes sure that nobody was quicker."""
        before = (known or {}).get("spec", {})
        now = self._now().astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        holder = self._identity if holder is None else holder
        same = before.get("holderIdentity") == holder
        metadata = {"namespace": self._namespace, "name": self._name}
        if known is not None:
            metadata["resourceVersion"] = known["metadata"]["resourceVersion"]
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": round(LEASE_SECONDS),
                "acquireTime": before.get("acquireTime", now) if same else now,
                "renewTime": now,
                "leaseTransitions": before.get("leaseTransitions", 0) + (0 if same else 1),
            },
        }


class Alone:
    """Leadership where nobody else can act: a process on somebody's own machine."""

    def __init__(self) -> None:
        self.taken = asyncio.Event()
        self.taken.set()

    def is_leading(self) -> bool:
        """Always."""
        return True

    def check(self) -> None:
        """Nothing to object to."""

    async def run(self) -> None:
        """For ever."""
        await asyncio.Event().wait()

    async def release(self) -> None:
        """Nothing to give back."""


def _record(lease: Manifest) -> tuple[str, str]:
    """Holder and time of renewal: what changes when somebody lives."""
    spec = lease.get("spec", {})
    return spec.get("holderIdentity") or "", spec.get("renewTime") or ""
