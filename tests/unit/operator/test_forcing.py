"""Pods that nobody ends, as their machine is gone: they are deleted without it, after their Job and not before."""

from typing import Any

import pytest

from finetune_api.status import Attempt, FineTuneJobStatus
from finetune_operator.observed import write_time
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
from unit.operator.world import World

TAINT = "DeletionByTaintManager: Taint manager: deleting due to NoExecute taint"


def given_up(seconds: float, phase: str = "Restarting", reason: str = "NodeLost") -> FineTuneJobStatus:
    """A job of which the present attempt was given up so long ago."""
    start, over = write_time(ago(seconds + 60)), write_time(ago(seconds))
    attempt = Attempt(number=1, start_time=start, completion_time=over, nodes=2, reason=reason)
    return running(phase=phase, reason=reason, running_since=None, attempts=[attempt])


def going(index: int, asked: float, grace: float = 60, **changes: Any) -> Any:
    """A pod whose deletion was asked for so long ago."""
    return build_pod(index, deleted_at=ago(asked), due_at=ago(asked - grace), **changes)


@pytest.mark.parametrize(
    ("pod", "forced"),
    [
        pytest.param(build_pod(1), False, id="nobody asked it to go"),
        pytest.param(going(1, 6, silent=True), True, id="its machine does not answer"),
        pytest.param(going(1, 4, silent=True), False, id="a moment ago"),
        pytest.param(going(1, 6, disruption=TAINT, started=False), True, id="it never started"),
        pytest.param(going(1, 6, disruption=TAINT), False, id="its machine lives, and has its time"),
        pytest.param(going(1, 6), False, id="it saves a checkpoint"),
        pytest.param(going(1, 89), False, id="its time is over"),
        pytest.param(going(1, 90), True, id="its time is long over"),
        pytest.param(going(1, 91, finished=end(0)), True, id="its trainer has ended, and it stays"),
    ],
)
def test_a_pod_that_nobody_ends_is_deleted_without_its_machine(pod: Any, forced: bool) -> None:
    decision = decide(observe(pod, jobs=[], job=build_record(given_up(10))), None, NOW)
    assert list(decision.force_delete) == ([pod] if forced else [])
    assert decision.create_attempt is None
    assert decision.needs_a_fresh_look(decision.status) == forced


def test_the_job_goes_first() -> None:
    decision = decide(observe(going(1, 100, silent=True), job=build_record(given_up(90))), None, NOW)
    assert (decision.delete, list(decision.force_delete)) == (build_child(), [])


@pytest.mark.parametrize(
    ("pod", "next_attempt"),
    [
        pytest.param(going(1, 6, grace=0, finished=end(0, 6)), 2, id="its kubelet said that it has ended"),
        pytest.param(going(1, 6, grace=0, silent=True), 2, id="deleted by force"),
        pytest.param(going(1, 6, finished=end(0, 6)), None, id="not all of it may have ended"),
        pytest.param(build_pod(1, finished=end(0, 60)), None, id="nobody asked it to go"),
    ],
)
def test_a_pod_that_only_a_finalizer_holds_holds_up_nobody(pod: Any, next_attempt: int | None) -> None:
    """As Kubernetes leaves it behind for ever when a webhook refuses the removal of its own finalizer while the Job goes."""
    decision = decide(observe(pod, jobs=[], job=build_record(given_up(60))), None, NOW)
    assert (decision.create_attempt, list(decision.force_delete)) == (next_attempt, [])
    while_deleting = decide(observe(pod, jobs=[build_child(deleting=True)], job=build_record(given_up(60))), None, NOW)
    assert while_deleting.create_attempt is None


def test_a_suspended_job_does_not_wait_for_a_pod_that_only_a_finalizer_holds() -> None:
    record = build_record(given_up(20, "Suspended", "Suspended"), build_spec(suspend=True))
    decision = decide(observe(going(1, 10, grace=0), jobs=[], job=record), None, NOW)
    assert (decision.again_seconds, decision.status.message) == (None, "suspended: set spec.suspend to false to go on")


def test_its_last_word_counts_all_the_same() -> None:
    saved = {"step": 40, "checkpoint": {"step": 40, "time": write_time(ago(6))}}
    pod = going(0, 10, grace=0, finished=end(143, 6, phase="Interrupted", **saved))
    decision = decide(observe(pod, jobs=[], job=build_record(given_up(60))), None, NOW)
    assert decision.create_attempt == 2
    assert decision.status.checkpoint is not None
    assert decision.status.checkpoint.step == 40


def test_the_machine_has_a_moment_after_the_attempt_was_given_up() -> None:
    pod = going(1, 300, grace=600, silent=True)
    early = decide(observe(pod, jobs=[], job=build_record(given_up(3))), None, NOW)
    assert (list(early.force_delete), early.again_seconds) == ([], 2)
    assert list(decide(observe(pod, jobs=[], job=build_record(given_up(5))), None, NOW).force_delete) == [pod]


def test_all_pods_of_a_machine_go_in_one_turn_and_pods_of_others_stay() -> None:
    pods = [going(0, 20, silent=True), going(1, 20, silent=True), going(1, 20, silent=True, job_uid="another")]
    decision = decide(observe(*pods, jobs=[], job=build_record(given_up(20))), None, NOW)
    assert list(decision.force_delete) == pods[:2]


def test_a_job_that_is_suspended_gives_back_pods_that_nobody_ends_too() -> None:
    record = build_record(given_up(20, "Suspended", "Suspended"), build_spec(suspend=True))
    pod = going(1, 20, silent=True)
    assert list(decide(observe(pod, jobs=[], job=record), None, NOW).force_delete) == [pod]


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_pods_of_a_finished_job_on_a_dead_machine_go_too(phase: str) -> None:
    status = running(phase=phase, reason="Completed", running_since=None, completion_time=write_time(ago(61)))
    pod = going(1, 30, silent=True)
    first = decide(observe(pod, job=build_record(status)), None, NOW)
    assert (first.delete, list(first.force_delete)) == (build_child(), [])
    second = decide(observe(pod, jobs=[], job=build_record(status)), None, NOW)
    assert (list(second.force_delete), second.status) == ([pod], status)
    assert list(decide(observe(jobs=[], job=build_record(status)), None, NOW).force_delete) == []


def test_a_pod_of_a_finished_job_that_ends_in_its_time_is_waited_for() -> None:
    status = running(phase="Failed", reason="CodeError", running_since=None, completion_time=write_time(ago(61)))
    decision = decide(observe(going(1, 30), jobs=[], job=build_record(status, build_spec(ttlSecondsAfterFinished=0))), None, NOW)
    assert (list(decision.force_delete), decision.delete_job, decision.again_seconds) == ([], False, 5)


@pytest.mark.parametrize(
    ("ready", "condition", "silent"), [(True, "False", True), (True, "True", False), (False, "False", False), (True, None, False)]
)
def test_a_machine_that_does_not_answer_is_known_by_a_pod_that_is_not_ready_while_its_container_is(
    ready: bool, condition: str | None, silent: bool
) -> None:
    manifest = pod_manifest(1, conditions=[{"type": "Ready", "status": condition}] if condition else [])
    manifest["status"]["containerStatuses"][0]["ready"] = ready
    assert read_pod(manifest).silent == silent


async def test_a_dead_machine_costs_the_job_then_the_pod_and_then_there_is_the_next_attempt() -> None:
    world = World()
    pod = pod_manifest(1, conditions=[{"type": "Ready", "status": "False"}])
    pod["status"]["containerStatuses"][0]["ready"] = True
    pod["metadata"] |= {"deletionTimestamp": write_time(ago(-120)), "deletionGracePeriodSeconds": 120}
    world.watched(job_manifest(status=given_up(1)), [child_manifest()], [pod])
    await world.turn()
    assert world.server.writes() == ["DELETE jobs news-1"]
    await world.turn()
    assert world.server.writes() == []
    world.wait(5)
    await world.turn()
    assert world.server.writes() == ["DELETE pods news-1-1-x"]
    assert world.server.bodies[-1] == {
        "preconditions": {"uid": "pod-1-1"},
        "propagationPolicy": "Background",
        "gracePeriodSeconds": 0,
    }
    await world.turn()
    assert world.server.names_of("jobs") == ["news-2"]
