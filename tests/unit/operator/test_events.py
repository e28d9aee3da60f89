"""Events are told once, after the status and beside the turns; one that can't be written is lost, and holds up nothing."""

import asyncio
import contextlib

import pytest

from finetune_operator.cluster import events
from finetune_operator.cluster.events import Events, build_event
from finetune_operator.turn import Turn
from unit.operator.builders import KEY, NOW, UID, build_record
from unit.operator.fake_server import FakeServer, refusal

STARTED = Turn("Normal", "Started", "Attempt 1 trains.", 1)
LOST = Turn("Warning", "Restarting", "PodLost: gone", 1)


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


def test_an_event_is_named_after_its_turn_and_tells_of_that_very_job() -> None:
    event = build_event(build_record(), STARTED, NOW)
    assert event["metadata"] == {"namespace": KEY.namespace, "name": f"news.{UID[:8]}.1.started"}
    assert event["involvedObject"]["uid"] == UID
    assert (event["type"], event["reason"], event["message"]) == ("Normal", "Started", "Attempt 1 trains.")


def test_a_long_message_is_cut() -> None:
    turn = Turn("Warning", "Failed", "x" * 5000, 1)
    assert len(build_event(build_record(), turn, NOW)["message"]) == 1000


async def test_what_is_told_twice_is_written_once(server: FakeServer) -> None:
    teller = Events(server.api())
    teller.tell(build_record(), [STARTED, STARTED], NOW)
    await teller.finish()
    assert len(server.names_of("events")) == 1


async def test_workers_write_what_is_told_until_they_are_cancelled(server: FakeServer) -> None:
    teller = Events(server.api())
    work = asyncio.create_task(teller.run())
    teller.tell(build_record(), [STARTED, LOST], NOW)
    await asyncio.sleep(0.01)
    assert len(server.names_of("events")) == 2
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await work


@pytest.mark.parametrize("code", [0, 403, 404, 429, 500])
async def test_an_event_that_can_not_be_written_is_lost_with_a_warning(
    server: FakeServer, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    server.answers["POST events"] = refusal(code, "Whatever") if code else OSError("no route")
    teller = Events(server.api())
    teller.tell(build_record(), [STARTED], NOW)
    await teller.finish()
    assert "no event" in caplog.text


async def test_more_events_than_can_be_written_do_not_pile_up(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(events, "_MOST_WAITING", 1)
    teller = Events(server.api())
    teller.tell(build_record(), [STARTED, LOST], NOW)
    await teller.finish()
    assert server.names_of("events") == [f"news.{UID[:8]}.1.started"]
    assert "this one is lost: PodLost: gone" in caplog.text
