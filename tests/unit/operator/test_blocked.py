"""Blocked jobs: the status says what is blocked and why, for as long as that is true."""

import pytest

from finetune_operator.creations import Creations
from finetune_operator.observed import Key
from finetune_operator.queue import RetryLaterError
from unit.operator.builders import KEY, child_manifest, job_manifest, running
from unit.operator.fake_server import refusal
from unit.operator.harness import Harness

SERVICE = {"metadata": {"namespace": KEY.namespace, "name": "news-gang"}}
QUOTA = refusal(403, "Forbidden", "exceeded quota: objects, requested: count/jobs.batch=1")


@pytest.fixture
def harness() -> Harness:
    return Harness()


def conditions(harness: Harness) -> list[tuple[str, str]]:
    """Return the conditions that are true, without those that sum up the others."""
    summaries = ("Ready", "Reconciling", "Running", "Stalled")
    listed = harness.status.get("conditions", ())
    return [(item["type"], item["reason"]) for item in listed if item["status"] == "True" and item["type"] not in summaries]


async def test_a_taken_name_is_written_to_the_status_once_and_retried_until_it_is_free(harness: Harness) -> None:
    harness.add_objects(job_manifest(), [], [])
    harness.server.put("services", SERVICE)
    for patches, pause in ((1, 10), (0, 20), (0, 30), (0, 30)):
        assert await harness.reconcile() == pause
        assert harness.server.writes().count("PATCH finetunejobs news/status") == patches
        harness.advance(10)
    assert (harness.status["phase"], harness.status["reason"], conditions(harness)) == (
        "Pending",
        "NameTaken",
        [("Blocked", "NameTaken")],
    )
    del harness.server.objects["services", "team", "news-gang"]
    await harness.reconcile()
    assert (harness.status["reason"], conditions(harness)) == ("PodsPending", [])


async def test_an_exceeded_quota_is_written_to_the_status_once_and_retried(harness: Harness) -> None:
    harness.add_objects(job_manifest(), [], [])
    harness.server.answers["POST jobs"] = QUOTA
    for patches, pause in ((1, 10), (0, 20), (0, 30), (0, 30)):
        assert await harness.reconcile() == pause
        assert harness.server.writes().count("PATCH finetunejobs news/status") == patches
        harness.advance(10)
    assert (harness.status["phase"], harness.status["reason"], conditions(harness)) == ("Pending", "QuotaExceeded", [])
    assert "attempt" not in harness.status
    del harness.server.answers["POST jobs"]
    await harness.reconcile()
    assert harness.status["attempt"] == 1


async def test_the_condition_is_removed_once_its_cause_is_gone(harness: Harness) -> None:
    harness.add_objects(job_manifest(), [], [])
    harness.server.put("services", SERVICE)
    await harness.reconcile()
    del harness.server.objects["services", "team", "news-gang"]
    harness.server.answers["POST jobs"] = QUOTA
    await harness.reconcile()
    assert (harness.status["reason"], conditions(harness)) == ("QuotaExceeded", [])


async def test_a_resumed_job_that_exceeds_a_quota_is_no_longer_suspended(harness: Harness) -> None:
    times = {"lastTransitionTime": "2026-01-02T03:00:00Z", "observedGeneration": 1}
    condition = {"type": "Suspended", "status": "True", "reason": "Suspended", "message": "", **times}
    harness.add_objects(job_manifest(status={"phase": "Suspended", "reason": "Suspended", "conditions": [condition]}), [], [])
    harness.server.answers["POST jobs"] = QUOTA
    await harness.reconcile()
    assert (harness.status["phase"], harness.status["reason"], conditions(harness)) == ("Pending", "QuotaExceeded", [])


async def test_a_spec_that_the_cluster_refuses_ends_the_job(harness: Harness) -> None:
    harness.add_objects(job_manifest(), [], [])
    harness.server.answers["POST jobs"] = refusal(422, "Invalid", "spec.template.spec.priorityClassName: not found")
    await harness.reconcile()
    assert (harness.status["phase"], harness.status["reason"]) == ("Failed", "PodRejected")
    assert conditions(harness) == [("Failed", "PodRejected")]


async def test_a_missing_permission_of_the_operator_is_named_in_the_status(harness: Harness) -> None:
    harness.add_objects(job_manifest(status=running(phase="Restarting", reason="PodLost")), [child_manifest()], [])
    sentence = 'jobs.batch "news-1" is forbidden: User "a:b" cannot delete resource "jobs" in API group "batch"'
    harness.server.answers["DELETE jobs"] = refusal(403, "Forbidden", sentence)
    for writes in (1, 0, 0):
        with pytest.raises(RetryLaterError):
            await harness.reconcile()
        assert harness.server.writes().count("PATCH finetunejobs news/status") == writes
        harness.advance(60)
    assert (harness.status["phase"], harness.status["reason"]) == ("Restarting", "Forbidden")
    assert harness.status["message"] == f"the operator lacks a permission: {sentence}"
    assert conditions(harness) == [("Blocked", "Forbidden")]


async def test_a_permission_that_is_missing_while_the_job_runs_is_a_condition_too(harness: Harness) -> None:
    harness.add_running_job()
    harness.store.requires_live_read.add(KEY)
    sentence = 'pods is forbidden: User "a:b" cannot list resource "pods" in API group ""'
    harness.server.answers["GET pods"] = refusal(403, "Forbidden", sentence)
    with pytest.raises(RetryLaterError):
        await harness.reconcile()
    assert conditions(harness) == [("Blocked", "Forbidden")]


def test_jobs_whose_creation_is_blocked_occupy_few_workers() -> None:
    creations, others = Creations(), [Key("team", f"job-{number}") for number in range(40)]
    assert all(creations.begin(key) for key in others), "there is no limit while nothing is blocked"
    assert [creations.blocked(key) for key in others] == [10] * 40
    for key in others:
        creations.end(key)
    assert [creations.begin(key) for key in others[:6]] == [True] * 4 + [False] * 2
    assert creations.begin(Key("another", "job")), "another namespace is not affected"
    creations.end(others[0])
    assert creations.begin(others[4])
    for key in others:
        creations.forget(key)
    assert creations.begin(others[5]), "nothing is blocked any longer"
    assert creations.blocked(others[5]) == 10, "the pauses begin again"


async def test_a_job_that_may_not_begin_yet_costs_no_write(harness: Harness) -> None:
    harness.add_objects(job_manifest(), [], [])
    for number in range(4):
        assert harness.reconciler._creations.begin(Key(KEY.namespace, f"job-{number}"))
    harness.reconciler._creations.blocked(Key(KEY.namespace, "job-0"))
    assert await harness.reconcile() == 1
    assert harness.server.writes() == []
