"""A job whose name an earlier job had: what that job left is waited for, removed or used."""

from typing import Any

import pytest

from finetune_operator.observed import Observation, Owner
from finetune_operator.policy.attempt import decide
from unit.operator.builders import NOW, UID, ago, build_child, build_pod, build_record, end, job_manifest
from unit.operator.harness import Harness


def test_a_job_waits_for_the_pods_of_an_earlier_job_of_the_same_name() -> None:
    old = build_pod(0, job_uid="another")
    decision = decide(Observation(build_record(), pods=[old]), None, NOW)
    assert decision.create_attempt is None
    assert (decision.status.phase, decision.status.reason) == ("Pending", "WaitingForDeletion")


def test_a_job_does_not_wait_for_a_pod_of_an_earlier_job_that_only_a_finalizer_keeps() -> None:
    old = build_pod(0, job_uid="another", terminated=end(0, 10), deletion_requested_at=ago(20), deletion_timestamp=ago(20))
    assert decide(Observation(build_record(), pods=[old]), None, NOW).create_attempt == 1


def test_a_job_of_another_uid_is_not_adopted() -> None:
    old = build_child(owner=Owner("FineTuneJob", "news", "another"))
    decision = decide(Observation(build_record(), jobs=[old]), None, NOW)
    assert (decision.create_attempt, decision.status.reason) == (None, "WaitingForDeletion")


KEPT = {"owner": None, "job_uid": "another"}  # what `kubectl delete --cascade=orphan` leaves


@pytest.mark.parametrize("ended", [{"complete": True}, {"failed": "a pod failed"}], ids=["complete", "failed"])
def test_an_orphaned_job_that_has_ended_is_deleted_and_not_waited_for(ended: dict[str, Any]) -> None:
    pods = [build_pod(index, job_uid="another", terminated=end(0)) for index in (0, 1)]
    decision = decide(Observation(build_record(), jobs=[build_child(**KEPT, **ended)], pods=pods), None, NOW)
    assert decision.delete_child_job == build_child(**KEPT, **ended)
    assert decision.status.message == "deleting Job news-1, which an earlier FineTuneJob of this name left"


def test_an_orphaned_job_that_still_trains_is_waited_for_and_the_message_says_how_to_stop_it() -> None:
    pods = [build_pod(index, job_uid="another") for index in (0, 1)]
    for jobs, found, what in ((build_child(**KEPT), pods, "2 pods"), (build_child(**KEPT, suspended=True), [], "Job news-1")):
        decision = decide(Observation(build_record(), jobs=[jobs], pods=found), None, NOW)
        assert (decision.create_attempt, decision.delete_child_job) == (None, None)
        assert decision.status.message == (
            f"waiting for {what} of an earlier FineTuneJob of this name to end: it was deleted with --cascade=orphan; to stop "
            "it, delete Job news-1"
        )


def test_a_job_without_an_owner_that_the_operator_did_not_create_is_left_alone() -> None:
    decision = decide(Observation(build_record(), jobs=[build_child(owner=None, complete=True)]), None, NOW)
    assert (decision.create_attempt, decision.delete_child_job) == (1, None)


async def test_a_job_that_was_deleted_with_its_children_orphaned_runs_when_it_is_applied_again() -> None:
    harness = Harness()
    harness.add_objects(job_manifest(uid="another"), [], [])
    await harness.reconcile()
    harness.server.put("finetunejobs", job_manifest())
    for plural in ("services", "jobs", "configmaps"):
        for (kind, _, _), manifest in list(harness.server.objects.items()):
            if kind == plural:
                del manifest["metadata"]["ownerReferences"]
    child = harness.server.take("jobs", "news-1")
    child["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    harness.start()
    for _ in range(2):
        await harness.reconcile()
    assert harness.status["phase"] == "Pending"
    owners = harness.server.take("jobs", "news-1")["metadata"]["ownerReferences"]
    assert [owner["uid"] for owner in owners] == [UID]
