"""Suspension by the user: the job releases its nodes after a checkpoint, and later resumes from it."""

import dataclasses

import pytest

from finetune_api.reasons import Reason
from finetune_api.status import Attempt, CheckpointStatus, Condition, FineTuneJobStatus, Restarts
from finetune_operator.observed import CreatedAttempt, Observation, write_time
from finetune_operator.policy.attempt import decide
from finetune_operator.policy.status import attempt_created, is_write_due, refused
from unit.operator.builders import (
    IMAGE,
    NOW,
    UID,
    ago,
    build_child,
    build_pod,
    build_record,
    build_spec,
    end,
    observe,
    running,
    true_conditions,
)

SUSPENDED_SPEC = build_spec(suspend=True)
RESUMED_SPEC = build_spec()
SAVED = {"phase": "Interrupted", "step": 120, "totalSteps": 300, "checkpoint": {"step": 120, "time": write_time(ago(1))}}


def suspended(message: str = "suspended", **changes: object) -> FineTuneJobStatus:
    attempt = Attempt(number=1, start_time=write_time(ago(90)), completion_time=write_time(ago(20)), nodes=2, reason="Suspended")
    condition = Condition(
        type="Suspended",
        status="True",
        reason="Suspended",
        message=message,
        last_transition_time=write_time(ago(20)),
        observed_generation=1,
    )
    values = {
        "phase": "Suspended",
        "reason": "Suspended",
        "message": message,
        "running_since": None,
        "running_seconds": 60,
        "attempts": [attempt],
        "conditions": [condition],
        **changes,
    }
    return running(**values)


def test_a_job_that_is_created_suspended_gets_no_children() -> None:
    decision = decide(Observation(build_record(spec=SUSPENDED_SPEC)), None, NOW)
    assert (decision.create_attempt, decision.requeue_after_seconds) == (None, None)
    assert (decision.status.phase, decision.status.attempt, decision.status.attempts) == ("Suspended", None, None)
    assert decision.status.message == "suspended: set spec.suspend to false to resume"
    assert true_conditions(decision.status) == ["Suspended"]
    again = decide(Observation(build_record(decision.status, SUSPENDED_SPEC)), None, NOW)
    assert not is_write_due(build_record(decision.status, SUSPENDED_SPEC, written=600), again.status, NOW)


def test_a_job_that_was_created_suspended_starts_once_it_is_resumed() -> None:
    before = decide(Observation(build_record(spec=SUSPENDED_SPEC)), None, ago(60)).status
    assert decide(Observation(build_record(before, RESUMED_SPEC)), None, NOW).create_attempt == 1


def test_a_running_job_is_suspended_in_the_status_first() -> None:
    observation = observe(build_pod(0), build_pod(1), job=build_record(running(seconds=60), SUSPENDED_SPEC))
    decision = decide(observation, None, NOW)
    status = decision.status
    assert decision.delete_child_job is None
    assert (status.phase, status.reason, status.message) == ("Suspended", "Stopping", "stopping: the pods save a checkpoint")
    assert (status.running_seconds, status.bookkeeping.running_since) == (60, None)
    assert true_conditions(status) == [], "Suspended is true once the pods are gone"
    assert status.attempts is not None
    assert [(item.completion_time, item.reason) for item in status.attempts] == [(write_time(NOW), "Suspended")]
    assert decision.requires_live_read(observation.job.status)


def test_running_times_add_up() -> None:
    observation = observe(build_pod(0), build_pod(1), job=build_record(running(seconds=60, running_seconds=100), SUSPENDED_SPEC))
    assert decide(observation, None, NOW).status.running_seconds == 160


def test_a_job_that_waits_for_its_restart_is_suspended_without_another_attempt() -> None:
    status = running(phase="Restarting", reason="PodLost", restarts=Restarts(failures=1))
    decision = decide(observe(jobs=[], job=build_record(status, SUSPENDED_SPEC)), None, NOW)
    assert (decision.create_attempt, decision.status.phase) == (None, "Suspended")
    assert decision.status.restarts == Restarts(failures=1)


def test_a_suspended_job_deletes_its_child_job_then_waits_for_the_pods_and_then_does_nothing() -> None:
    pods = [build_pod(0, deletion_requested_at=ago(1)), build_pod(1, deletion_requested_at=ago(1))]
    first = decide(observe(*pods, job=build_record(suspended(), SUSPENDED_SPEC)), None, NOW)
    assert first.delete_child_job == build_child()
    second = decide(observe(*pods, jobs=[], job=build_record(suspended(), SUSPENDED_SPEC)), None, NOW)
    assert (second.delete_child_job, second.create_attempt) == (None, None)
    assert second.status.message == "stopping: waiting for pod news-1-0-x to save a checkpoint and end"
    third = decide(observe(jobs=[], job=build_record(second.status, SUSPENDED_SPEC)), None, NOW)
    assert third.status.message == "suspended: set spec.suspend to false to resume"
    assert third.requeue_after_seconds is None


def test_the_checkpoint_that_the_pods_saved_is_written_to_the_status() -> None:
    pods = [
        build_pod(0, deletion_requested_at=ago(9), terminated=end(75, 1, **SAVED)),
        build_pod(1, deletion_requested_at=ago(9)),
    ]
    reported = decide(observe(*pods, jobs=[], job=build_record(suspended(), SUSPENDED_SPEC)), None, NOW).status
    assert reported.checkpoint == CheckpointStatus(step=120, time=write_time(ago(1)))
    stopped = decide(observe(jobs=[], job=build_record(reported, SUSPENDED_SPEC)), None, NOW).status
    assert stopped.message == "suspended, the checkpoint of step 120 is kept: set spec.suspend to false to resume"


def test_the_checkpoint_of_a_pod_that_was_gone_before_the_live_read_is_written_to_the_status() -> None:
    gone = [build_pod(0, terminated=end(75, 1, **SAVED)), build_pod(1, terminated=end(75, 1, phase="Interrupted"))]
    reported = decide(observe(jobs=[], terminated_pods=gone, job=build_record(suspended(), SUSPENDED_SPEC)), None, NOW)
    assert reported.status.checkpoint == CheckpointStatus(step=120, time=write_time(ago(1)))
    assert reported.status.message == "suspended, the checkpoint of step 120 is kept: set spec.suspend to false to resume"
    assert reported.requeue_after_seconds is None, "there is no pod to wait for"
    foreign = [dataclasses.replace(pod, job_uid="another") for pod in gone]
    assert (
        decide(
            observe(jobs=[], terminated_pods=foreign, job=build_record(suspended(), SUSPENDED_SPEC)), None, NOW
        ).status.checkpoint
        is None
    )


@pytest.mark.parametrize("phase", ["Suspended", "Restarting"])
def test_the_final_reports_of_a_stopped_attempt_are_written_at_once(phase: str) -> None:
    message = "stopping: waiting for pod news-1-0-x to save a checkpoint and end"
    status = suspended(message) if phase == "Suspended" else running(phase=phase, reason="PodLost")
    record = build_record(status, SUSPENDED_SPEC if phase == "Suspended" else RESUMED_SPEC, written=3)
    pods = [
        build_pod(0, deletion_requested_at=ago(9), terminated=end(75, 1, **SAVED)),
        build_pod(1, deletion_requested_at=ago(9)),
    ]
    assert is_write_due(record, decide(observe(*pods, jobs=[], job=record), None, NOW).status, NOW)


def test_a_resumed_job_starts_its_next_attempt_and_counts_no_restart() -> None:
    decision = decide(observe(jobs=[], job=build_record(suspended(), RESUMED_SPEC)), None, NOW)
    assert decision.create_attempt == 2
    status = attempt_created(suspended(), RESUMED_SPEC, CreatedAttempt(UID, 1, 2, NOW, IMAGE, 2))
    assert (status.phase, status.attempt, status.restarts, true_conditions(status)) == ("Pending", 2, Restarts(), [])
    assert status.running_seconds == 60
    assert [item.number for item in status.attempts or ()] == [1, 2]


def test_a_job_that_is_resumed_while_it_stops_waits_for_its_pods() -> None:
    pods = [build_pod(0, deletion_requested_at=ago(1))]
    first = decide(observe(*pods, job=build_record(suspended(), RESUMED_SPEC)), None, NOW)
    assert first.delete_child_job == build_child()
    second = decide(observe(*pods, jobs=[], job=build_record(suspended(), RESUMED_SPEC)), None, NOW)
    assert (second.status.phase, second.status.reason) == ("Pending", "WaitingForDeletion")
    third = decide(observe(*pods, jobs=[], job=build_record(second.status, RESUMED_SPEC)), None, NOW)
    assert (third.create_attempt, third.status.reason) == (None, "WaitingForDeletion")
    fourth = decide(observe(jobs=[], job=build_record(second.status, RESUMED_SPEC)), None, NOW)
    assert fourth.create_attempt == 2


def test_a_job_that_waits_to_resume_is_no_longer_suspended() -> None:
    decision = decide(observe(build_pod(0), jobs=[], job=build_record(suspended(), RESUMED_SPEC)), None, NOW)
    assert true_conditions(decision.status) == []


FINAL_REPORT = {
    "phase": "Succeeded",
    "step": 300,
    "totalSteps": 300,
    "published": {"url": "https://hub/team/news", "commit": "abc"},
}


def test_a_job_that_finished_before_it_could_be_stopped_has_succeeded() -> None:
    pods = [build_pod(0, terminated=end(0, **FINAL_REPORT)), build_pod(1, terminated=end(0))]
    assert decide(observe(*pods, job=build_record(suspended(), SUSPENDED_SPEC)), None, NOW).status.phase == "Succeeded"
    assert decide(observe(*pods, job=build_record(running(), SUSPENDED_SPEC)), None, NOW).status.phase == "Succeeded"


def test_a_job_that_finished_before_it_could_be_stopped_has_all_its_results() -> None:
    spec = build_spec(suspend=True, publish={"repository": "team/news"})
    pods = [build_pod(0, terminated=end(0, **FINAL_REPORT)), build_pod(1, terminated=end(0))]
    status = decide(observe(*pods, job=build_record(suspended(), spec)), None, NOW).status
    assert status.published is not None
    assert true_conditions(status) == ["Complete", "Published"]


def test_an_attempt_of_which_only_the_job_exists_can_be_suspended() -> None:
    decision = decide(Observation(build_record(spec=SUSPENDED_SPEC), jobs=[build_child()]), None, NOW)
    assert decision.create_attempt is None


def test_the_first_attempt_waits_for_the_pods_of_one_that_was_partly_created() -> None:
    before = suspended().model_copy(update={"attempt": None, "attempts": None, "running_seconds": None})
    decision = decide(
        Observation(build_record(before, RESUMED_SPEC), pods=[build_pod(0, deletion_requested_at=ago(1))]), None, NOW
    )
    assert decision.create_attempt is None


def test_a_job_that_fails_when_it_is_resumed_is_no_longer_suspended() -> None:
    status = refused(suspended(), Reason.OUTPUT_CONFLICT, "the claim is another's", build_record(spec=RESUMED_SPEC), NOW)
    assert true_conditions(status) == ["Failed"]
