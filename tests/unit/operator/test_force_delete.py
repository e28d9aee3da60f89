"""Force deletion of pods that no kubelet ends because their node is gone. The operator deletes their Job first."""

import dataclasses
from typing import Any

import pytest

from finetune_api.status import Attempt, FineTuneJobStatus
from finetune_operator.observed import Key, write_time
from finetune_operator.parsing import read_pod
from finetune_operator.policy.attempt import decide
from unit.operator.builders import (
    NOW,
    ago,
    build_child,
    build_pod,
    build_record,
    build_spec,
    child_manifest,
    end,
    job_manifest,
    observe,
    pod_manifest,
    running,
)
from unit.operator.harness import Harness

TAINT = "DeletionByTaintManager: Taint manager: deleting due to NoExecute taint"


def given_up(seconds: float, phase: str = "Restarting", reason: str = "NodeLost") -> FineTuneJobStatus:
    """Return the status of a job whose current attempt was given up ``seconds`` ago."""
    start, ended = write_time(ago(seconds + 60)), write_time(ago(seconds))
    attempt = Attempt(number=1, start_time=start, completion_time=ended, nodes=2, reason=reason)
    return running(phase=phase, reason=reason, running_since=None, attempts=[attempt])


def terminating_pod(index: int, requested: float, grace: float = 60, **changes: Any) -> Any:
    """Return a pod whose deletion was requested ``requested`` seconds ago."""
    return build_pod(index, deletion_requested_at=ago(requested), deletion_timestamp=ago(requested - grace), **changes)


@pytest.mark.parametrize(
    ("pod", "forced"),
    [
        pytest.param(build_pod(1), False, id="it is not deleted"),
        pytest.param(terminating_pod(1, 6, node_unreachable=True), True, id="its node is unreachable"),
        pytest.param(terminating_pod(1, 4, node_unreachable=True), False, id="its deletion is too recent"),
        pytest.param(terminating_pod(1, 6, disruption=TAINT, started=False), True, id="it never started"),
        pytest.param(
            terminating_pod(1, 6, disruption=TAINT), False, id="its node is reachable, and its grace period is not over"
        ),
        pytest.param(terminating_pod(1, 6), False, id="it saves a checkpoint"),
        pytest.param(terminating_pod(1, 89), False, id="its grace period has just ended"),
        pytest.param(terminating_pod(1, 90), True, id="its grace period ended long ago"),
        pytest.param(terminating_pod(1, 91, terminated=end(0)), True, id="its trainer has ended, but the pod stays"),
    ],
)
def test_a_pod_that_no_kubelet_ends_is_force_deleted(pod: Any, forced: bool) -> None:
    decision = decide(observe(pod, jobs=[], job=build_record(given_up(10))), None, NOW)
    assert list(decision.force_delete) == ([pod] if forced else [])
    assert decision.create_attempt is None
    assert decision.requires_live_read(decision.status) == forced


def test_the_job_is_deleted_before_its_pods() -> None:
    decision = decide(observe(terminating_pod(1, 100, node_unreachable=True), job=build_record(given_up(90))), None, NOW)
    assert (decision.delete_child_job, list(decision.force_delete)) == (build_child(), [])


@pytest.mark.parametrize(
    ("pod", "next_attempt"),
    [
        pytest.param(terminating_pod(1, 6, grace=0, terminated=end(0, 6)), 2, id="its kubelet reported its end"),
        pytest.param(terminating_pod(1, 6, grace=0, node_unreachable=True), 2, id="deleted by force"),
        pytest.param(terminating_pod(1, 6, terminated=end(0, 6)), None, id="another container may still run"),
        pytest.param(build_pod(1, terminated=end(0, 60)), None, id="it is not deleted"),
    ],
)
def test_a_pod_that_only_a_finalizer_keeps_does_not_delay_the_next_attempt(pod: Any, next_attempt: int | None) -> None:
    """Kubernetes leaves such a pod behind forever if a webhook refuses the removal of Kubernetes' finalizer during a deletion."""
    decision = decide(observe(pod, jobs=[], job=build_record(given_up(60))), None, NOW)
    assert (decision.create_attempt, list(decision.force_delete)) == (next_attempt, [])
    while_deleting = decide(observe(pod, jobs=[build_child(deleting=True)], job=build_record(given_up(60))), None, NOW)
    assert while_deleting.create_attempt is None


def test_a_suspended_job_does_not_wait_for_a_pod_that_only_a_finalizer_keeps() -> None:
    record = build_record(given_up(20, "Suspended", "Suspended"), build_spec(suspend=True))
    decision = decide(observe(terminating_pod(1, 10, grace=0), jobs=[], job=record), None, NOW)
    assert (decision.requeue_after_seconds, decision.status.message) == (None, "suspended: set spec.suspend to false to resume")


def test_the_final_report_of_a_pod_that_only_a_finalizer_keeps_is_applied() -> None:
    saved = {"step": 40, "checkpoint": {"step": 40, "time": write_time(ago(6))}}
    pod = terminating_pod(0, 10, grace=0, terminated=end(143, 6, phase="Interrupted", **saved))
    decision = decide(observe(pod, jobs=[], job=build_record(given_up(60))), None, NOW)
    assert decision.create_attempt == 2
    assert decision.status.checkpoint is not None
    assert decision.status.checkpoint.step == 40


def test_no_pod_is_force_deleted_right_after_the_attempt_was_given_up() -> None:
    pod = terminating_pod(1, 300, grace=600, node_unreachable=True)
    early = decide(observe(pod, jobs=[], job=build_record(given_up(3))), None, NOW)
    assert (list(early.force_delete), early.requeue_after_seconds) == ([], 2)
    assert list(decide(observe(pod, jobs=[], job=build_record(given_up(5))), None, NOW).force_delete) == [pod]


def test_all_pods_of_a_node_are_deleted_in_one_reconcile_and_pods_of_other_jobs_stay() -> None:
    pods = [
        terminating_pod(0, 20, node_unreachable=True),
        terminating_pod(1, 20, node_unreachable=True),
        terminating_pod(1, 20, node_unreachable=True, job_uid="another"),
    ]
    decision = decide(observe(*pods, jobs=[], job=build_record(given_up(20))), None, NOW)
    assert list(decision.force_delete) == pods[:2]


def test_pods_of_a_suspended_job_on_a_dead_node_are_force_deleted_too() -> None:
    record = build_record(given_up(20, "Suspended", "Suspended"), build_spec(suspend=True))
    pod = terminating_pod(1, 20, node_unreachable=True)
    assert list(decide(observe(pod, jobs=[], job=record), None, NOW).force_delete) == [pod]


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_pods_of_a_finished_job_on_a_dead_node_are_force_deleted_too(phase: str) -> None:
    status = running(phase=phase, reason="Completed", running_since=None, completion_time=write_time(ago(61)))
    pod = terminating_pod(1, 30, node_unreachable=True)
    first = decide(observe(pod, job=build_record(status)), None, NOW)
    assert (first.delete_child_job, list(first.force_delete)) == (build_child(), [])
    second = decide(observe(pod, jobs=[], job=build_record(status)), None, NOW)
    assert (list(second.force_delete), second.status) == ([pod], status)
    assert list(decide(observe(jobs=[], job=build_record(status)), None, NOW).force_delete) == []


def test_a_finished_job_waits_for_its_pods_during_their_grace_period() -> None:
    status = running(phase="Failed", reason="CodeError", running_since=None, completion_time=write_time(ago(61)))
    decision = decide(
        observe(terminating_pod(1, 30), jobs=[], job=build_record(status, build_spec(ttlSecondsAfterFinished=0))), None, NOW
    )
    assert (list(decision.force_delete), decision.delete_job, decision.requeue_after_seconds) == ([], False, 5)


@pytest.mark.parametrize(
    ("ready", "condition", "node_unreachable"),
    [(True, "False", True), (True, "True", False), (False, "False", False), (True, None, False)],
)
def test_a_node_is_unreachable_if_a_pod_on_it_is_not_ready_while_its_container_is(
    ready: bool, condition: str | None, node_unreachable: bool
) -> None:
    manifest = pod_manifest(1, conditions=[{"type": "Ready", "status": condition}] if condition else [])
    manifest["status"]["containerStatuses"][0]["ready"] = ready
    assert read_pod(manifest).node_unreachable == node_unreachable


async def test_after_a_node_dies_the_job_is_deleted_then_the_pod_and_then_the_next_attempt_is_created() -> None:
    harness = Harness()
    pod = pod_manifest(1, conditions=[{"type": "Ready", "status": "False"}])
    pod["status"]["containerStatuses"][0]["ready"] = True
    pod["metadata"] |= {"deletionTimestamp": write_time(ago(-120)), "deletionGracePeriodSeconds": 120}
    harness.add_objects(job_manifest(status=given_up(1)), [child_manifest()], [pod])
    await harness.reconcile()
    assert harness.server.writes() == ["DELETE jobs news-1"]
    await harness.reconcile()
    assert harness.server.writes() == []
    harness.advance(5)
    await harness.reconcile()
    assert harness.server.writes() == ["DELETE pods news-1-1-x"]
    assert harness.server.bodies[-1] == {
        "preconditions": {"uid": "pod-1-1"},
        "propagationPolicy": "Background",
        "gracePeriodSeconds": 0,
    }
    await harness.reconcile()
    assert harness.server.names_of("jobs") == ["news-2"]


async def test_ten_thousand_jobs_in_a_queue_do_not_delay_the_recovery_of_one_that_lost_its_node() -> None:
    harness = Harness()
    pod = pod_manifest(1, conditions=[{"type": "Ready", "status": "False"}])
    pod["status"]["containerStatuses"][0]["ready"] = True
    pod["metadata"] |= {"deletionTimestamp": write_time(ago(-120)), "deletionGracePeriodSeconds": 120}
    harness.add_objects(job_manifest(status=given_up(1)), [], [pod])
    queued = build_record(running(phase="Queued"))
    for number in range(10_000):
        harness.store.put_job(dataclasses.replace(queued, key=Key("queue", f"job-{number}")))
    seconds = await harness.reconcile()
    assert seconds is not None
    assert seconds <= 5
