"""Jobs for which something can't be done: the status says what and why, and says so no longer than it is true."""

import pytest

from finetune_operator.queue import RetryLaterError
from unit.operator.builders import KEY, child_manifest, job_manifest, running
from unit.operator.fake_server import refusal
from unit.operator.world import World

SERVICE = {"metadata": {"namespace": KEY.namespace, "name": "news-gang"}}
QUOTA = refusal(403, "Forbidden", "exceeded quota: objects, requested: count/jobs.batch=1")


@pytest.fixture
def world() -> World:
    return World()


def conditions(world: World) -> list[tuple[str, str]]:
    return [(item["type"], item["reason"]) for item in world.status.get("conditions", ())]


async def test_a_name_that_is_taken_is_told_once_and_tried_again_until_it_is_free(world: World) -> None:
    world.watched(job_manifest(), [], [])
    world.server.put("services", SERVICE)
    for patches in (1, 0, 0):
        assert await world.turn() == 10
        assert world.server.writes().count("PATCH finetunejobs news/status") == patches
        world.wait(10)
    assert (world.status["phase"], world.status["reason"], conditions(world)) == (
        "Pending",
        "NameTaken",
        [("Blocked", "NameTaken")],
    )
    del world.server.objects["services", "team", "news-gang"]
    await world.turn()
    assert (world.status["reason"], conditions(world)) == ("PodsPending", [])


async def test_a_quota_is_told_once_and_tried_again(world: World) -> None:
    world.watched(job_manifest(), [], [])
    world.server.answers["POST jobs"] = QUOTA
    for patches in (1, 0, 0):
        assert await world.turn() == 10
        assert world.server.writes().count("PATCH finetunejobs news/status") == patches
        world.wait(10)
    assert (world.status["phase"], world.status["reason"], conditions(world)) == ("Pending", "QuotaExceeded", [])
    assert "attempt" not in world.status
    del world.server.answers["POST jobs"]
    await world.turn()
    assert world.status["attempt"] == 1


async def test_what_is_in_the_way_no_more_is_no_condition_any_more(world: World) -> None:
    world.watched(job_manifest(), [], [])
    world.server.put("services", SERVICE)
    await world.turn()
    del world.server.objects["services", "team", "news-gang"]
    world.server.answers["POST jobs"] = QUOTA
    await world.turn()
    assert (world.status["reason"], conditions(world)) == ("QuotaExceeded", [])


async def test_a_job_that_is_let_go_and_can_not_go_on_is_not_suspended_any_more(world: World) -> None:
    times = {"lastTransitionTime": "2026-01-02T03:00:00Z", "observedGeneration": 1}
    condition = {"type": "Suspended", "status": "True", "reason": "Suspended", "message": "", **times}
    world.watched(job_manifest(status={"phase": "Suspended", "reason": "Suspended", "conditions": [condition]}), [], [])
    world.server.answers["POST jobs"] = QUOTA
    await world.turn()
    assert (world.status["phase"], world.status["reason"], conditions(world)) == ("Pending", "QuotaExceeded", [])


async def test_a_spec_that_the_cluster_refuses_ends_the_job(world: World) -> None:
    world.watched(job_manifest(), [], [])
    world.server.answers["POST jobs"] = refusal(422, "Invalid", "spec.template.spec.priorityClassName: not found")
    await world.turn()
    assert (world.status["phase"], world.status["reason"]) == ("Failed", "PodRejected")
    assert conditions(world) == [("Failed", "PodRejected")]


async def test_a_right_that_the_operator_lacks_is_named_in_the_status(world: World) -> None:
    world.watched(job_manifest(status=running(phase="Restarting", reason="PodLost")), [child_manifest()], [])
    sentence = 'jobs.batch "news-1" is forbidden: User "a:b" cannot delete resource "jobs" in API group "batch"'
    world.server.answers["DELETE jobs"] = refusal(403, "Forbidden", sentence)
    for writes in (1, 0, 0):
        with pytest.raises(RetryLaterError):
            await world.turn()
        assert world.server.writes().count("PATCH finetunejobs news/status") == writes
        world.wait(60)
    assert (world.status["phase"], world.status["reason"]) == ("Restarting", "Forbidden")
    assert world.status["message"] == f"the operator lacks a right: {sentence}"
    assert [item["type"] for item in world.status["conditions"]] == ["Blocked"]


async def test_a_right_that_is_lacked_while_the_job_runs_is_a_condition_too(world: World) -> None:
    world.runs()
    world.store.doubtful.add(KEY)
    sentence = 'pods is forbidden: User "a:b" cannot list resource "pods" in API group ""'
    world.server.answers["GET pods"] = refusal(403, "Forbidden", sentence)
    with pytest.raises(RetryLaterError):
        await world.turn()
    assert [item["type"] for item in world.status.get("conditions", ())] == ["Blocked"]
