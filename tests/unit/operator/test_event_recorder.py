"""Events are written once, after the status and in parallel to reconciles. A failed write loses the event and delays nothing."""

import asyncio
import contextlib

import pytest

from finetune_operator.cluster import events
from finetune_operator.cluster.events import EventRecorder, build_event_manifest
from finetune_operator.event import Event
from unit.operator.builders import KEY, NOW, UID, build_record
from unit.operator.fake_server import FakeServer, refusal

STARTED = Event("Normal", "Started", "Attempt 1 trains.", 1)
LOST = Event("Warning", "Restarting", "PodLost: gone", 1)


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


def test_an_event_is_named_after_its_reason_and_refers_to_its_job_by_uid() -> None:
    event = build_event_manifest(build_record(), STARTED, NOW)
    assert event["metadata"] == {"namespace": KEY.namespace, "name": f"news.{UID[:8]}.1.started"}
    assert event["involvedObject"]["uid"] == UID
    assert (event["type"], event["reason"], event["message"]) == ("Normal", "Started", "Attempt 1 trains.")


def test_a_long_message_is_cut() -> None:
    event = Event("Warning", "Failed", "x" * 5000, 1)
    assert len(build_event_manifest(build_record(), event, NOW)["message"]) == 1000


async def test_an_event_that_is_recorded_twice_is_written_once(server: FakeServer) -> None:
    recorder = EventRecorder(server.api())
    recorder.record(build_record(), [STARTED, STARTED], NOW)
    await recorder.flush()
    assert len(server.names_of("events")) == 1


async def test_workers_write_recorded_events_until_they_are_cancelled(server: FakeServer) -> None:
    recorder = EventRecorder(server.api())
    work = asyncio.create_task(recorder.run())
    recorder.record(build_record(), [STARTED, LOST], NOW)
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
    recorder = EventRecorder(server.api())
    recorder.record(build_record(), [STARTED], NOW)
    await recorder.flush()
    assert "was not written" in caplog.text


async def test_more_events_than_fit_into_the_queue_are_lost_with_a_warning(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(events, "_QUEUE_SIZE", 1)
    recorder = EventRecorder(server.api())
    recorder.record(build_record(), [STARTED, LOST], NOW)
    await recorder.flush()
    assert server.names_of("events") == [f"news.{UID[:8]}.1.started"]
    assert "this event is dropped: PodLost: gone" in caplog.text
