"""Leader election: two processes with separate clocks compete for one Lease."""

import asyncio
import contextlib
import datetime

import pytest

from finetune_operator.cluster import lease
from finetune_operator.cluster.api import ApiError
from finetune_operator.cluster.lease import (
    LEASE_DURATION_SECONDS,
    RENEW_DEADLINE_SECONDS,
    LeaderElection,
    LeaseLostError,
    NotLeadingError,
)
from unit.operator.builders import NOW
from unit.operator.fake_server import FakeServer, refusal


class Process:
    """An operator process. clock: its monotonic clock, in seconds. day: its wall clock."""

    def __init__(self, server: FakeServer, name: str, boot: float = 0.0, day: datetime.datetime = NOW) -> None:
        self.clock = boot
        self.day = day
        self.election = LeaderElection(server.api(), "system", "operator", name, lambda: self.day, lambda: self.clock)

    async def wait(self, seconds: float) -> None:
        """Advance the clocks, then try once to acquire or renew the Lease."""
        self.clock += seconds
        self.day += datetime.timedelta(seconds=seconds)
        await self.election._try_acquire_or_renew()

    @property
    def leads(self) -> bool:
        return self.election.is_leading()


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def one(server: FakeServer) -> Process:
    return Process(server, "one")


@pytest.fixture
def two(server: FakeServer) -> Process:
    return Process(server, "two", boot=5000.0)


def holder(server: FakeServer) -> str:
    return str(server.take("leases", "operator", "system")["spec"]["holderIdentity"])


async def test_a_missing_lease_is_created_and_acquired(server: FakeServer, one: Process) -> None:
    assert not one.leads
    await one.wait(0)
    assert one.leads
    assert one.election.elected.is_set()
    spec = server.take("leases", "operator", "system")["spec"]
    assert (spec["holderIdentity"], spec["leaseTransitions"], spec["leaseDurationSeconds"]) == ("one", 1, 10)
    assert spec["acquireTime"] == spec["renewTime"] == "2026-01-02T03:04:05.000000Z"


async def test_the_lease_of_a_live_process_is_not_taken(one: Process, two: Process) -> None:
    await one.wait(0)
    for _ in range(20):
        await one.wait(1.5)
        await two.wait(1.5)
        assert (one.leads, two.leads) == (True, False)
    assert not two.election.elected.is_set()


async def test_a_lease_that_did_not_change_for_its_duration_on_the_local_clock_is_taken(
    server: FakeServer, one: Process, two: Process
) -> None:
    await one.wait(0)
    await two.wait(0)
    await two.wait(LEASE_DURATION_SECONDS - 0.1)
    assert not two.leads
    await two.wait(0.2)
    assert two.leads
    assert (holder(server), server.take("leases", "operator", "system")["spec"]["leaseTransitions"]) == ("two", 2)


@pytest.mark.parametrize("years", [-50, 50])
async def test_the_wall_clock_of_the_holder_is_ignored(server: FakeServer, two: Process, years: int) -> None:
    one = Process(server, "one", day=NOW + datetime.timedelta(days=365 * years))
    await one.wait(0)
    for _ in range(8):
        await one.wait(1.5)
        await two.wait(1.5)
    assert (one.leads, two.leads) == (True, False)


async def test_a_released_lease_is_taken_at_once(server: FakeServer, one: Process, two: Process) -> None:
    await one.wait(0)
    await two.wait(0)
    await one.election.release()
    assert (holder(server), one.leads) == ("", False)
    await two.wait(1.5)
    assert two.leads


async def test_a_renewal_keeps_the_acquire_time(server: FakeServer, one: Process) -> None:
    await one.wait(0)
    await one.wait(1.5)
    spec = server.take("leases", "operator", "system")["spec"]
    assert (spec["acquireTime"], spec["renewTime"]) == ("2026-01-02T03:04:05.000000Z", "2026-01-02T03:04:06.500000Z")
    assert spec["leaseTransitions"] == 1


async def test_only_one_of_two_simultaneous_processes_acquires_the_lease(server: FakeServer, one: Process, two: Process) -> None:
    await one.election._observe()
    await two.election._observe()
    await one.wait(0)
    await two.election._write(two.election._api.create("Lease", two.election._manifest(None)), two.clock)
    assert (one.leads, two.leads, holder(server)) == (True, False, "one")


async def test_a_process_that_was_paused_too_long_does_not_act_and_ends_if_another_took_over(one: Process, two: Process) -> None:
    await one.wait(0)
    await two.wait(0)
    one.clock += LEASE_DURATION_SECONDS + 1
    await two.wait(LEASE_DURATION_SECONDS)
    assert (one.leads, two.leads) == (False, True)
    with pytest.raises(NotLeadingError):
        one.election.check()
    with pytest.raises(LeaseLostError, match="two holds the Lease system/operator now"):
        await one.wait(0)


async def test_a_process_that_lost_the_lease_does_not_release_it(server: FakeServer, one: Process, two: Process) -> None:
    await one.wait(0)
    await two.wait(0)
    await two.wait(LEASE_DURATION_SECONDS)
    with pytest.raises(LeaseLostError):
        await one.wait(LEASE_DURATION_SECONDS)
    await one.election.release()
    assert holder(server) == "two"


async def test_a_holder_that_can_not_renew_stops_acting_before_another_process_may_start(
    server: FakeServer, one: Process
) -> None:
    await one.wait(0)
    server.answers["PUT leases"] = OSError("no route")
    with pytest.raises(ApiError):
        await one.wait(RENEW_DEADLINE_SECONDS - 0.1)
    assert one.leads
    one.election.check()
    with pytest.raises(ApiError):
        await one.wait(0.1)
    assert not one.leads
    assert RENEW_DEADLINE_SECONDS < LEASE_DURATION_SECONDS


async def test_a_holder_continues_if_no_other_process_took_over(server: FakeServer, one: Process) -> None:
    await one.wait(0)
    server.answers["PUT leases"] = OSError("no route")
    with pytest.raises(ApiError):
        await one.wait(600)
    del server.answers["PUT leases"]
    await one.wait(1.5)
    assert one.leads


async def test_a_renewal_counts_from_the_time_before_its_request(one: Process) -> None:
    await one.wait(0)
    original = one.election._api.update

    async def slow(kind: str, manifest: dict[str, object]) -> dict[str, object]:
        one.clock += 3
        return await original(kind, manifest)

    one.election._api.update = slow  # type: ignore[method-assign]
    await one.wait(1)
    one.clock += RENEW_DEADLINE_SECONDS - 3
    assert not one.leads


async def test_a_renewal_that_was_written_but_not_answered_keeps_the_lease(server: FakeServer, one: Process) -> None:
    await one.wait(0)
    lease_object = server.take("leases", "operator", "system")
    server.put("leases", {**lease_object, "spec": {**lease_object["spec"], "renewTime": "later"}})
    await one.wait(1.5)
    await one.wait(1.5)
    assert one.leads
    assert holder(server) == "one"


async def test_a_lease_is_released_although_the_last_renewal_was_not_answered(server: FakeServer, one: Process) -> None:
    await one.wait(0)
    lease_object = server.take("leases", "operator", "system")
    server.put("leases", {**lease_object, "spec": {**lease_object["spec"], "renewTime": "later"}})
    await one.election.release()
    assert holder(server) == ""


async def test_a_process_that_never_held_the_lease_releases_nothing(server: FakeServer, one: Process, two: Process) -> None:
    await one.wait(0)
    await two.wait(0)
    server.forget_requests()
    await two.election.release()
    assert server.requests == []


async def test_an_unavailable_api_server_does_not_end_the_loop(
    server: FakeServer, one: Process, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lease, "_RETRY_SECONDS", 0)
    server.answers["GET leases"] = refusal(503, "ServiceUnavailable", "starting")
    loop = asyncio.create_task(one.election.run())
    await asyncio.sleep(0.05)
    del server.answers["GET leases"]
    await asyncio.wait_for(one.election.elected.wait(), 5)
    loop.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await loop
    assert len(server.requests) > 2
    assert caplog.text.count("can't be renewed") == 1
