"""Who acts: two processes with clocks of their own before one Lease."""

import asyncio
import contextlib
import datetime

import pytest

from finetune_operator.cluster import lease
from finetune_operator.cluster.api import ApiError
from finetune_operator.cluster.lease import ACT_SECONDS, LEASE_SECONDS, Leadership, LeaseLostError, NotLeadingError
from unit.operator.builders import NOW
from unit.operator.fake_server import FakeServer, refusal


class Process:
    """One operator. clock: its own seconds; day: its idea of the time of day."""

    def __init__(self, server: FakeServer, name: str, boot: float = 0.0, day: datetime.datetime = NOW) -> None:
        self.clock = boot
        self.day = day
        self.leadership = Leadership(server.api(), "system", "operator", name, lambda: self.day, lambda: self.clock)

    async def wait(self, seconds: float) -> None:
        """Let time pass, then try once."""
        self.clock += seconds
        self.day += datetime.timedelta(seconds=seconds)
        await self.leadership._step()

    @property
    def leads(self) -> bool:
        return self.leadership.is_leading()


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


async def test_a_lease_that_nobody_made_is_made_and_taken(server: FakeServer, one: Process) -> None:
    assert not one.leads
    await one.wait(0)
    assert one.leads
    assert one.leadership.taken.is_set()
    spec = server.take("leases", "operator", "system")["spec"]
    assert (spec["holderIdentity"], spec["leaseTransitions"], spec["leaseDurationSeconds"]) == ("one", 1, 10)
    assert spec["acquireTime"] == spec["renewTime"] == "2026-01-02T03:04:05.000000Z"


async def test_the_lease_of_a_living_process_is_not_taken(one: Process, two: Process) -> None:
    await one.wait(0)
    for _ in range(20):
        await one.wait(1.5)
        await two.wait(1.5)
        assert (one.leads, two.leads) == (True, False)
    assert not two.leadership.taken.is_set()


async def test_a_lease_that_did_not_change_for_its_duration_on_our_own_clock_is_taken(
    server: FakeServer, one: Process, two: Process
) -> None:
    await one.wait(0)
    await two.wait(0)
    await two.wait(LEASE_SECONDS - 0.1)
    assert not two.leads
    await two.wait(0.2)
    assert two.leads
    assert (holder(server), server.take("leases", "operator", "system")["spec"]["leaseTransitions"]) == ("two", 2)


@pytest.mark.parametrize("years", [-50, 50])
async def test_the_holders_idea_of_the_time_of_day_means_nothing(server: FakeServer, two: Process, years: int) -> None:
    one = Process(server, "one", day=NOW + datetime.timedelta(days=365 * years))
    await one.wait(0)
    for _ in range(8):
        await one.wait(1.5)
        await two.wait(1.5)
    assert (one.leads, two.leads) == (True, False)


async def test_a_lease_that_was_given_back_is_taken_at_once(server: FakeServer, one: Process, two: Process) -> None:
    await one.wait(0)
    await two.wait(0)
    await one.leadership.release()
    assert (holder(server), one.leads) == ("", False)
    await two.wait(1.5)
    assert two.leads


async def test_renewing_keeps_the_time_of_taking(server: FakeServer, one: Process) -> None:
    await one.wait(0)
    await one.wait(1.5)
    spec = server.take("leases", "operator", "system")["spec"]
    assert (spec["acquireTime"], spec["renewTime"]) == ("2026-01-02T03:04:05.000000Z", "2026-01-02T03:04:06.500000Z")
    assert spec["leaseTransitions"] == 1


async def test_of_two_that_are_equally_quick_one_takes_it(server: FakeServer, one: Process, two: Process) -> None:
    await one.leadership._observe()
    await two.leadership._observe()
    await one.wait(0)
    await two.leadership._write(two.leadership._api.create("Lease", two.leadership._manifest(None)), two.clock)
    assert (one.leads, two.leads, holder(server)) == (True, False, "one")


async def test_a_process_that_slept_too_long_does_not_act_and_ends_when_another_took_over(one: Process, two: Process) -> None:
    await one.wait(0)
    await two.wait(0)
    one.clock += LEASE_SECONDS + 1
    await two.wait(LEASE_SECONDS)
    assert (one.leads, two.leads) == (False, True)
    with pytest.raises(NotLeadingError):
        one.leadership.check()
    with pytest.raises(LeaseLostError, match="two holds the Lease system/operator now"):
        await one.wait(0)


async def test_who_lost_the_lease_does_not_give_it_back(server: FakeServer, one: Process, two: Process) -> None:
    await one.wait(0)
    await two.wait(0)
    await two.wait(LEASE_SECONDS)
    with pytest.raises(LeaseLostError):
        await one.wait(LEASE_SECONDS)
    await one.leadership.release()
    assert holder(server) == "two"


async def test_without_an_answer_the_holder_stops_acting_before_another_one_may_begin(server: FakeServer, one: Process) -> None:
    await one.wait(0)
    server.answers["PUT leases"] = OSError("no route")
    with pytest.raises(ApiError):
        await one.wait(ACT_SECONDS - 0.1)
    assert one.leads
    one.leadership.check()
    with pytest.raises(ApiError):
        await one.wait(0.1)
    assert not one.leads
    assert ACT_SECONDS < LEASE_SECONDS


async def test_a_holder_goes_on_when_nobody_took_over_meanwhile(server: FakeServer, one: Process) -> None:
    await one.wait(0)
    server.answers["PUT leases"] = OSError("no route")
    with pytest.raises(ApiError):
        await one.wait(600)
    del server.answers["PUT leases"]
    await one.wait(1.5)
    assert one.leads


async def test_a_renewal_counts_from_before_it_was_sent(one: Process) -> None:
    await one.wait(0)
    original = one.leadership._api.update

    async def slow(kind: str, manifest: dict[str, object]) -> dict[str, object]:
        one.clock += 3
        return await original(kind, manifest)

    one.leadership._api.update = slow  # type: ignore[method-assign]
    await one.wait(1)
    one.clock += ACT_SECONDS - 3
    assert not one.leads


async def test_a_renewal_that_was_written_but_not_answered_is_no_loss(server: FakeServer, one: Process) -> None:
    await one.wait(0)
    there = server.take("leases", "operator", "system")
    server.put("leases", {**there, "spec": {**there["spec"], "renewTime": "later"}})
    await one.wait(1.5)
    await one.wait(1.5)
    assert one.leads
    assert holder(server) == "one"


async def test_a_lease_is_given_back_although_the_last_renewal_was_not_answered(server: FakeServer, one: Process) -> None:
    await one.wait(0)
    there = server.take("leases", "operator", "system")
    server.put("leases", {**there, "spec": {**there["spec"], "renewTime": "later"}})
    await one.leadership.release()
    assert holder(server) == ""


async def test_who_never_held_it_has_nothing_to_give_back(server: FakeServer, one: Process, two: Process) -> None:
    await one.wait(0)
    await two.wait(0)
    server.forget_requests()
    await two.leadership.release()
    assert server.requests == []


async def test_an_api_server_that_is_away_does_not_end_the_loop(
    server: FakeServer, one: Process, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lease, "_RETRY_SECONDS", 0)
    server.answers["GET leases"] = refusal(503, "ServiceUnavailable", "starting")
    loop = asyncio.create_task(one.leadership.run())
    await asyncio.sleep(0.05)
    del server.answers["GET leases"]
    await asyncio.wait_for(one.leadership.taken.wait(), 5)
    loop.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await loop
    assert len(server.requests) > 2
    assert caplog.text.count("can't be renewed") == 1
