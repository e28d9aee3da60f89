"""One job's turns, with a small API server in memory: what each of them reads and writes."""

import json
from typing import Any

import pytest

from finetune_api.status import Attempt, Published
from finetune_api.wire import Report
from finetune_operator.cluster.lease import NotLeadingError
from finetune_operator.observed import write_time
from finetune_operator.parsing import read_pod
from finetune_operator.queue import RetryLaterError
from finetune_operator.store import Heard
from unit.operator.builders import (
    IMAGE,
    KEY,
    NOW,
    ago,
    child_manifest,
    job_manifest,
    pod_manifest,
    running,
    spec_fields,
)
from unit.operator.fake_server import refusal
from unit.operator.world import World

LOOK = ["GET finetunejobs news", "GET jobs", "GET pods"]
GIVE_BACK: dict[str, Any] = {"output": {"retention": {"whenFinished": "Delete"}}, "publish": {"repository": "team/news"}}


@pytest.fixture
def world() -> World:
    return World()


def ended(seconds: float = 5, phase: str = "Succeeded", **changes: Any) -> Any:
    return running(phase=phase, reason="Completed", running_since=None, completion_time=write_time(ago(seconds)), **changes)


async def test_a_new_job_gets_its_children_its_status_and_its_event_in_that_order(world: World) -> None:
    world.watched(job_manifest(), [], [])
    assert await world.turn() == 1
    children = ["POST services", "POST jobs", "POST configmaps", "POST persistentvolumeclaims"]
    assert world.server.writes() == [*children, "PATCH finetunejobs news/status", "POST events"]
    assert (world.status["phase"], world.status["attempt"], world.status["resolved"]["image"]) == ("Pending", 1, IMAGE)
    assert [child.name for child in world.store.children.of(KEY)] == ["news-1"]


async def test_in_a_rush_the_first_status_comes_after_the_children_of_others(world: World) -> None:
    world.watched(job_manifest(), [], [])
    world.rush = True
    assert await world.turn() == 2
    assert world.server.writes()[-1] == "POST persistentvolumeclaims"
    world.wait(2)
    assert await world.turn() == 2
    assert world.server.requests == []
    world.rush = False
    await world.turn()
    assert world.server.requests == ["PATCH finetunejobs news/status", "POST events"]
    assert (world.status["phase"], world.status["attempt"]) == ("Pending", 1)
    assert world.status["startTime"] == write_time(NOW)


async def test_no_rush_makes_a_job_wait_for_its_status_without_end(world: World) -> None:
    world.watched(job_manifest(), [], [])
    world.rush = True
    await world.turn()
    world.wait(20)
    await world.turn()
    assert "PATCH finetunejobs news/status" in world.server.requests


async def test_an_operator_that_ended_in_a_rush_is_followed_by_one_that_creates_nothing_twice(world: World) -> None:
    world.watched(job_manifest(), [], [])
    world.rush = True
    await world.turn()
    world.start()
    world.rush = False
    world.watched(world.server.take("finetunejobs", KEY.name), [], [])
    await world.turn()
    assert world.status["attempt"] == 1
    assert world.server.names_of("jobs") == ["news-1"]


async def test_a_stable_job_costs_no_request(world: World) -> None:
    world.runs()
    for _ in range(5):
        assert await world.turn() == 20
        assert world.server.requests == []
        world.wait(60)


async def test_progress_costs_one_write_every_ten_seconds(world: World) -> None:
    world.runs()
    writes = []
    for step in range(60):
        world.store.heard[KEY] = Heard(
            "news-1-0-x", Report(attempt=1, phase="Running", step=step, total_steps=100), world.seconds
        )
        await world.turn()
        assert set(world.server.requests) <= {"PATCH finetunejobs news/status"}
        writes += world.server.requests
        world.wait(1)
    assert len(writes) == 6


async def test_a_failure_is_looked_at_afresh_before_it_is_written(world: World) -> None:
    world.runs()
    gone = pod_manifest(1)
    gone["metadata"] |= {"deletionTimestamp": write_time(NOW), "resourceVersion": "900"}
    world.store.put_pod(KEY, read_pod(gone))
    await world.turn()
    assert world.server.requests == LOOK
    assert world.status["phase"] == "Running", "the watch was wrong: the pod is as it was"
    world.server.put("pods", gone)
    await world.turn()
    assert world.server.requests == [*LOOK, "PATCH finetunejobs news/status", "POST events"]
    assert (world.status["phase"], world.status["reason"]) == ("Restarting", "PodLost")


async def test_the_last_word_of_a_pod_that_was_gone_before_the_list_is_written(world: World) -> None:
    stopped = running(
        phase="Suspended",
        reason="Suspended",
        running_since=None,
        attempts=[Attempt(number=1, start_time=write_time(ago(90)), completion_time=write_time(ago(2)), nodes=2)],
    )
    world.watched(job_manifest(spec=spec_fields(suspend=True), status=stopped), [], [])
    word = {"attempt": 1, "phase": "Interrupted", "step": 120, "checkpoint": {"step": 120, "time": write_time(ago(1))}}
    end = {"terminated": {"exitCode": 75, "finishedAt": write_time(ago(1)), "message": json.dumps(word)}}
    world.store.drop_pod(KEY, read_pod(pod_manifest(0, state=end)))
    await world.turn()
    assert world.status["checkpoint"]["step"] == 120
    assert world.status["message"].startswith("suspended, the checkpoint of step 120 is kept")


async def test_a_job_that_is_doubted_is_looked_at_afresh_once(world: World) -> None:
    world.runs()
    world.store.doubtful.add(KEY)
    await world.turn()
    assert world.server.requests == LOOK
    await world.turn()
    assert world.server.requests == []


async def test_a_restart_deletes_waits_and_creates_in_turns_of_their_own(world: World) -> None:
    status = running(phase="Restarting", reason="PodLost")
    world.watched(job_manifest(status=status), [child_manifest()], [pod_manifest(0)])
    await world.turn()
    assert world.server.writes() == ["DELETE jobs news-1"]
    await world.turn()
    assert world.server.writes() == []
    del world.server.objects["pods", "team", "news-1-0-x"]
    await world.turn()
    assert world.server.names_of("jobs") == ["news-2"]
    assert world.status["attempt"] == 2


async def test_a_status_that_somebody_else_changed_is_looked_at_again(world: World) -> None:
    world.watched(job_manifest(), [], [])
    world.server.answers["PATCH finetunejobs"] = refusal(409, "Conflict")
    assert await world.turn() == 0.2
    assert world.store.doubtful == {KEY}
    assert world.server.names_of("jobs") == ["news-1"]
    del world.server.answers["PATCH finetunejobs"]
    await world.turn()
    assert world.server.names_of("jobs") == ["news-1"]
    assert (world.status["phase"], world.status["attempt"]) == ("Pending", 1)


async def test_a_job_that_is_gone_is_forgotten(world: World) -> None:
    world.runs()
    await world.turn()
    del world.server.objects["finetunejobs", "team", "news"]
    world.store.doubtful.add(KEY)
    assert await world.turn() is None
    assert not any([world.store.jobs, world.store.doubtful, world.store.looked, world.store.pods.of(KEY)])
    labels = {"namespace": "team", "finetunejob": "news", "phase": "Running"}
    assert world.registry.get_sample_value("finetune_job_phase", labels) is None


@pytest.mark.parametrize("code", [429, 503])
async def test_an_error_of_the_server_is_tried_again_when_it_says(world: World, code: int) -> None:
    world.watched(job_manifest(), [], [])
    world.server.answers["POST jobs"] = refusal(code, "Busy", **{"Retry-After": "9"})
    with pytest.raises(RetryLaterError) as caught:
        await world.turn()
    assert caught.value.after_seconds == 9
    assert world.registry.get_sample_value("finetune_operator_reconcile_errors_total") == 1


async def test_a_process_that_may_not_act_for_the_moment_tries_again_later(world: World) -> None:
    def refuse() -> None:
        raise NotLeadingError("this process does not hold the Lease")

    world.watched(job_manifest(), [], [])
    world.api.guard(refuse)
    with pytest.raises(RetryLaterError):
        await world.turn()


async def test_an_event_that_can_not_be_written_is_no_error(world: World) -> None:
    world.watched(job_manifest(), [], [])
    world.server.answers["POST events"] = refusal(403, "Forbidden", "no")
    assert await world.turn() == 1
    assert world.status["phase"] == "Pending"


async def test_a_finished_job_is_looked_at_once_and_costs_nothing_more(world: World) -> None:
    world.server.put("finetunejobs", job_manifest(status=ended()))
    assert await world.turn() is None
    assert world.server.requests == LOOK
    assert not any([world.store.jobs, world.store.looked])


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
async def test_nothing_is_ever_created_for_a_finished_job(world: World, phase: str) -> None:
    world.server.put("finetunejobs", job_manifest(status=ended(phase=phase)))
    for _ in range(3):
        await world.turn()
        assert world.server.writes() == []


async def test_a_finished_job_is_deleted_in_time(world: World) -> None:
    spec = spec_fields(ttlSecondsAfterFinished=60)
    world.server.put("finetunejobs", job_manifest(spec, ended(20)))
    assert await world.turn() == 40
    world.wait(40)
    await world.turn()
    assert world.server.writes() == ["DELETE finetunejobs news"]
    assert await world.turn() is None


async def test_the_volume_of_a_published_model_goes_and_no_other(world: World) -> None:
    published = Published(url="https://hub/team/news", commit="abc")
    world.server.put("finetunejobs", job_manifest(spec_fields(**GIVE_BACK), ended(published=published)))
    world.server.put("persistentvolumeclaims", {"metadata": {"namespace": "team", "name": "news-output"}})
    await world.turn()
    assert world.server.writes() == []
    uid = job_manifest()["metadata"]["uid"]
    metadata = {"namespace": "team", "name": "news-output", "annotations": {"finetune.dev/owner-uid": uid}}
    world.server.put("persistentvolumeclaims", {"metadata": metadata})
    await world.turn()
    assert world.server.writes() == ["DELETE persistentvolumeclaims news-output"]


async def test_the_pods_that_hold_the_volume_go_first(world: World) -> None:
    published = Published(url="https://hub/team/news", commit="abc")
    world.server.put("finetunejobs", job_manifest(spec_fields(**GIVE_BACK), ended(published=published)))
    metadata = {
        "namespace": "team",
        "name": "news-output",
        "annotations": {"finetune.dev/owner-uid": job_manifest()["metadata"]["uid"]},
    }
    world.server.put("persistentvolumeclaims", {"metadata": metadata})
    world.server.put("jobs", child_manifest())
    await world.turn()
    assert world.server.writes() == ["DELETE jobs news-1"]
    await world.turn()
    assert world.server.writes() == ["DELETE persistentvolumeclaims news-output"]


async def test_a_job_that_gave_its_volume_back_costs_nothing_more(world: World) -> None:
    published = Published(url="https://hub/team/news", commit="abc")
    world.server.put("finetunejobs", job_manifest(spec_fields(**GIVE_BACK), ended(published=published)))
    assert await world.turn() is None


async def test_why_a_job_waits_to_start_is_asked_every_fifteen_seconds(world: World) -> None:
    status = running(phase="Pending", reason="PodsPending", message="0 of 2 pods created", running_since=None)
    world.watched(job_manifest(status=status), [child_manifest()], [])
    await world.turn()
    assert world.server.requests == []
    world.wait(16)
    await world.turn()
    assert world.server.requests == ["GET events"]
    await world.turn()
    assert world.server.requests == []
