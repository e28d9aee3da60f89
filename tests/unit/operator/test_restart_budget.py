"""Which budget a failed attempt counts against, when the next attempt starts, and when the job fails instead."""

from typing import Any

import pytest

from finetune_api.reasons import REASONS, Reason
from finetune_api.status import MAX_AVOIDED_NODES, Attempt, CheckpointStatus, FineTuneJobStatus, Progress, Restarts
from finetune_api.wire import Report
from finetune_operator.observed import write_time
from finetune_operator.policy.attempt import decide
from finetune_operator.policy.failure import build_failure
from finetune_operator.policy.restart_budget import (
    attempt_failed,
    backoff_before_next_attempt,
    failures_without_progress,
    restarts_left,
    with_in_place_restarts,
)
from unit.operator.builders import NOW, ago, build_pod, build_record, build_spec, end, failed_with, observe, running

JOB = build_record()


def ended(number: int, reason: str, from_step: int = 0, step: int | None = None, in_place: int | None = None) -> Attempt:
    return Attempt(
        number=number,
        start_time=write_time(ago(50)),
        completion_time=write_time(ago(0)),
        nodes=2,
        from_step=from_step or None,
        step=step,
        in_place=in_place,
        reason=reason,
    )


def after(*reasons: str, saved: int = 0, **changes: Any) -> FineTuneJobStatus:
    """Return the status of a job whose attempts ended for these reasons, without progress beyond the checkpoint ``saved``."""
    attempts = [ended(number, reason, saved) for number, reason in enumerate(reasons, 1)]
    checkpoint = CheckpointStatus(step=saved, time=write_time(ago(60))) if saved else None
    return running(attempt=len(attempts), attempts=attempts, checkpoint=checkpoint, phase="Restarting", **changes)


def counts(status: FineTuneJobStatus) -> tuple[Restarts | None, int]:
    return status.restarts, status.bookkeeping.restarts_count_towards_max


def fail_attempt(status: FineTuneJobStatus, reason: Reason, **recovery: Any) -> FineTuneJobStatus:
    return attempt_failed(status, build_spec(recovery=recovery), build_failure(reason, "test failure"), JOB, NOW)


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_ends_the_job_or_counts_against_its_budget(reason: Reason) -> None:
    entry, status = REASONS[reason], fail_attempt(running(), reason)
    if entry.budget is None or entry.retry_after_checkpoint:
        assert (status.phase, status.restarts) == ("Failed", Restarts())
    elif entry.disruption:
        assert (status.phase, status.restarts) == ("Restarting", Restarts(total=1, preemptions=1))
        assert status.message == "preemption 1 of 100: test failure"
    else:
        assert (status.phase, *counts(status)) == ("Restarting", Restarts(total=1, failures=1), 1)
        assert status.message == "restart 1 of 3, next attempt in 1s: test failure"


@pytest.mark.parametrize(
    ("from_step", "saved", "phase"),
    [
        pytest.param(0, 0, "Failed", id="without a checkpoint"),
        pytest.param(0, 10, "Restarting", id="after its first checkpoint"),
        pytest.param(10, 10, "Failed", id="before its next checkpoint"),
        pytest.param(10, 20, "Restarting", id="after its next checkpoint"),
    ],
)
def test_out_of_memory_is_retried_only_if_the_attempt_saved_a_checkpoint(from_step: int, saved: int, phase: str) -> None:
    checkpoint = CheckpointStatus(step=saved, time=write_time(ago(5))) if saved else None
    attempt = Attempt(number=1, start_time=write_time(ago(50)), nodes=2, from_step=from_step or None)
    status = fail_attempt(running(attempts=[attempt], checkpoint=checkpoint), Reason.OUT_OF_MEMORY)
    assert (status.phase, status.reason) == (phase, "OutOfMemory")
    if phase == "Restarting":
        assert counts(status) == (Restarts(total=1, failures=1), 1)


def test_disruptions_have_their_own_limit() -> None:
    before = running(restarts=Restarts(total=9, failures=2, preemptions=7), counted=2)
    status = fail_attempt(before, Reason.NODE_LOST, maxRestarts=2, maxPreemptions=8)
    assert (status.phase, *counts(status)) == ("Restarting", Restarts(total=10, failures=2, preemptions=8), 2)
    status = fail_attempt(before, Reason.PREEMPTED, maxRestarts=2, maxPreemptions=7)
    assert (status.phase, status.reason, status.message) == ("Failed", "Preempted", "failed after 7 preemptions: test failure")
    assert status.restarts == before.restarts


@pytest.mark.parametrize(("counted", "phase"), [(0, "Restarting"), (2, "Restarting"), (3, "Failed")])
def test_failures_are_counted_until_there_are_too_many(counted: int, phase: str) -> None:
    status = fail_attempt(running(restarts=Restarts(total=counted, failures=counted), counted=counted), Reason.WORKER_DIED)
    assert status.phase == phase
    if phase == "Failed":
        assert status.message == "failed after 3 restarts: test failure"


def test_restarts_in_place_and_new_attempts_share_a_budget() -> None:
    status = with_in_place_restarts(running(), [Report(attempt=1, phase="Running", in_place=2)])
    assert counts(status) == (Restarts(total=2, in_place=2), 2)
    assert status.attempts is not None
    assert status.attempts[-1].in_place == 2
    assert with_in_place_restarts(status, [Report(attempt=1, phase="Running", in_place=2)]) == status, "each is counted once"
    status = fail_attempt(with_in_place_restarts(status, [Report(attempt=1, phase="Running", in_place=3)]), Reason.WORKER_DIED)
    assert (status.phase, status.message) == ("Failed", "failed after 3 restarts: test failure")
    assert counts(status) == (Restarts(total=3, in_place=3), 3)


def test_restarts_in_place_of_other_pods_count_once_while_the_first_pod_runs() -> None:
    reported = Report(attempt=1, phase="Running", in_place=1, in_place_elsewhere=2)
    status = with_in_place_restarts(running(), [reported])
    assert counts(status) == (Restarts(total=3, in_place=3), 3)
    assert with_in_place_restarts(status, [reported, Report(attempt=1, phase="Failed", in_place=2)]) == status
    ends = [Report(attempt=1, phase="Failed", in_place=times) for times in (1, 2)]
    assert with_in_place_restarts(status, ends) == status


def test_restarts_in_place_of_another_attempt_are_not_counted_again() -> None:
    status = running(attempt=2, restarts=Restarts(total=1, in_place=1), counted=1)
    assert with_in_place_restarts(status, [Report(attempt=1, phase="Running", in_place=5)]) == status


def test_restarts_in_place_of_later_attempts_add_up() -> None:
    status = running(attempt=2, restarts=Restarts(total=3, failures=1, in_place=2), counted=1)
    status = with_in_place_restarts(status, [Report(attempt=2, phase="Running", in_place=1)])
    assert counts(status) == (Restarts(total=4, failures=1, in_place=3), 2)


def test_a_final_report_counts_restarts_in_place_that_were_not_reported_before() -> None:
    status = fail_attempt(running(), Reason.WORKER_DIED)
    updated = with_in_place_restarts(status, [Report(attempt=1, phase="Failed", in_place=2)])
    assert counts(updated) == (Restarts(total=3, failures=1, in_place=2), 1)


@pytest.mark.parametrize(("counted", "left"), [(0, 3), (2, 1), (3, 0), (9, 0)])
def test_a_pod_gets_the_number_of_failures_that_are_left_in_the_budget(counted: int, left: int) -> None:
    assert restarts_left(build_spec(), running(counted=counted)) == left
    assert restarts_left(build_spec(), FineTuneJobStatus()) == 3


@pytest.mark.parametrize(("saved", "counted"), [(None, 4), (10, 4), (11, 1)])
def test_a_budget_is_full_again_once_an_attempt_got_beyond_its_checkpoint(saved: int | None, counted: int) -> None:
    checkpoint = CheckpointStatus(step=saved, time=write_time(ago(5))) if saved else None
    attempt = Attempt(number=2, start_time=write_time(ago(60)), nodes=2, from_step=10)
    before = running(attempt=2, attempts=[attempt], checkpoint=checkpoint, restarts=Restarts(total=3, failures=3), counted=3)
    status = fail_attempt(before, Reason.WORKER_DIED, maxRestarts=4)
    assert counts(status) == (Restarts(total=4, failures=4), counted)


def test_progress_of_a_disrupted_attempt_resets_the_budget_too() -> None:
    checkpoint = CheckpointStatus(step=5, time=write_time(ago(5)))
    before = running(checkpoint=checkpoint, restarts=Restarts(total=2, in_place=2), counted=2)
    assert counts(fail_attempt(before, Reason.NODE_LOST)) == (Restarts(total=3, in_place=2, preemptions=1), 0)


@pytest.mark.parametrize(
    ("reasons", "seconds"),
    [
        ([], 0),
        (["WorkerDied"], 1),
        (["WorkerDied"] * 2, 2),
        (["WorkerDied"] * 4, 8),
        (["WorkerDied"] * 9, 256),
        (["WorkerDied"] * 10, 300),
        (["NodeLost"], 0),
        (["NodeLost"] * 2, 1),
        (["NodeLost"] * 3, 2),
        (["WorkerDied", "NodeLost"], 0),
        (["WorkerDied", "NodeLost", "WorkerDied"], 2),
        (["WorkerDied", "Suspended"], 0),
        (["WorkerDied", "QuotaExceeded"], 0),
        (["NodeLost", "Unschedulable"], 0),
        (["NoSuchReason"] * 2, 2),
    ],
)
def test_the_backoff_doubles_with_attempts_without_progress(reasons: list[str], seconds: int) -> None:
    assert backoff_before_next_attempt(after(*reasons)).total_seconds() == seconds
    assert backoff_before_next_attempt(after(*reasons, saved=100)).total_seconds() == seconds


@pytest.mark.parametrize(("reason", "seconds"), [("WorkerDied", 1), ("NodeLost", 0)])
def test_the_backoff_is_reset_after_progress(reason: str, seconds: int) -> None:
    status = after(*[reason] * 5, saved=100)
    further = status.model_copy(update={"checkpoint": CheckpointStatus(step=150, time=write_time(ago(1)))})
    assert backoff_before_next_attempt(further).total_seconds() == seconds
    attempts = [*(status.attempts or ()), ended(6, reason, from_step=150)]
    assert backoff_before_next_attempt(further.model_copy(update={"attempts": attempts})).total_seconds() == seconds


def test_the_next_attempt_waits_for_the_end_of_the_backoff() -> None:
    status = after("WorkerDied", "WorkerDied", "WorkerDied")
    early = decide(observe(jobs=[], job=build_record(status)), None, NOW)
    assert (early.create_attempt, early.requeue_after_seconds) == (None, 4)
    late = decide(observe(jobs=[], job=build_record(status)), None, ago(-4))
    assert late.create_attempt == 4


def test_a_backoff_is_in_the_message() -> None:
    attempts = [*(after("WorkerDied", "WorkerDied").attempts or ()), Attempt(number=3, start_time=write_time(ago(9)), nodes=2)]
    status = fail_attempt(running(attempt=3, attempts=attempts, counted=2), Reason.STALLED)
    assert status.message == "restart 3 of 3, next attempt in 4s: test failure"


@pytest.mark.parametrize(
    ("attempts", "found"),
    [
        ([], 0),
        ([ended(1, "CodeError")], 1),
        ([ended(1, "CodeError", step=3)], 0),
        ([ended(1, "CodeError", step=3), ended(2, "CodeError", step=3)], 1),
        ([ended(1, "CodeError", step=3), ended(2, "CodeError", step=3, in_place=2)], 3),
        ([ended(1, "CodeError"), ended(2, "CodeError", step=4)], 0),
        ([ended(1, "CodeError"), ended(2, "NodeLost"), ended(3, "CodeError")], 2),
        ([ended(1, "CodeError"), ended(2, "NodeLost", step=5), ended(3, "CodeError", step=5)], 1),
        ([ended(1, "CodeError"), ended(2, "HubUnavailable", in_place=3), ended(3, "CodeError")], 2),
        ([ended(1, "CodeError"), ended(2, "Suspended"), ended(3, "CodeError")], 2),
        ([ended(7, "CodeError", step=9), ended(8, "CodeError", step=9)], 1),
    ],
)
def test_consecutive_failures_without_progress_are_counted(attempts: list[Attempt], found: int) -> None:
    assert failures_without_progress(attempts) == found


@pytest.mark.parametrize(("reason", "phase"), [(Reason.CODE_ERROR, "Failed"), (Reason.HUB_UNAVAILABLE, "Restarting")])
def test_a_crash_loop_ends_early_unless_its_cause_is_external(reason: Reason, phase: str) -> None:
    attempts = [ended(number, reason) for number in range(1, 5)]
    attempts.append(Attempt(number=5, start_time=write_time(ago(50)), nodes=2))
    status = fail_attempt(running(attempt=5, attempts=attempts), reason, maxRestarts=1000)
    assert (status.phase, status.reason) == (phase, reason)
    if phase == "Failed":
        assert status.message == "5 failures in a row without a further step: test failure"


def test_failures_that_get_further_each_time_are_no_crash_loop() -> None:
    attempts = [ended(number, "CodeError", step=10 * number) for number in range(1, 9)]
    attempts.append(Attempt(number=9, start_time=write_time(ago(50)), nodes=2))
    progress = Progress(step=85, total_steps=100)
    assert (
        fail_attempt(running(attempt=9, attempts=attempts, progress=progress), Reason.CODE_ERROR, maxRestarts=1000).phase
        == "Restarting"
    )


def test_the_furthest_step_is_kept_after_an_attempt_that_got_less_far() -> None:
    progress = Progress(step=3, total_steps=100, furthest_step=40)
    status = fail_attempt(running(progress=progress), Reason.WORKER_DIED)
    assert status.attempts is not None
    assert status.attempts[-1].step == 40


def test_a_lost_pod_does_not_use_the_restart_budget() -> None:
    status = decide(
        observe(build_pod(0), build_pod(1, deletion_requested_at=ago(0)), job=build_record(running())), None, NOW
    ).status
    assert (status.restarts, restarts_left(build_spec(), status)) == (Restarts(total=1, preemptions=1), 3)


def test_restarts_in_place_of_all_pods_count_before_the_budget_is_checked() -> None:
    failed_pod = build_pod(1, terminated=failed_with("WorkerDied", seconds_ago=9), attempt=1)
    report = {"phase": "Failed", "inPlace": 2, "failure": {"reason": "WorkerDied", "message": "exit code 1"}}
    pods = [build_pod(0), build_pod(1, terminated=end(1, 9, **report))]
    first = Report(attempt=1, phase="Running", step=3, total_steps=9, in_place=1)
    status = decide(observe(*pods, job=build_record(running())), first, NOW).status
    assert (status.phase, status.message) == ("Failed", "failed after 3 restarts: exit code 1")
    assert counts(status) == (Restarts(total=3, in_place=3), 3)
    status = decide(observe(build_pod(0), failed_pod, job=build_record(running())), first, NOW).status
    assert (status.phase, *counts(status)) == ("Restarting", Restarts(total=2, failures=1, in_place=1), 2)


def test_restarts_in_place_of_pods_that_end_one_after_the_other_add_up() -> None:
    status = with_in_place_restarts(running(), [Report(attempt=1, phase="Running", in_place=1)])
    both = [Report(attempt=1, phase="Running", in_place=1), Report(attempt=1, phase="Failed", in_place=2), None]
    assert counts(with_in_place_restarts(status, both)) == (Restarts(total=3, in_place=3), 3)
    assert counts(with_in_place_restarts(with_in_place_restarts(status, both), both[:1])) == (Restarts(total=3, in_place=3), 3)


def test_the_nodes_of_failed_gpus_are_avoided_and_the_oldest_are_forgotten() -> None:
    status = running()
    for number in (0, 1, 0, *range(2, 12)):
        failure = build_failure(Reason.GPU_FAILED, "uncorrectable ECC error").model_copy(update={"node": f"node-{number}"})
        status = attempt_failed(status, build_spec(recovery={"maxRestarts": 100}), failure, JOB, NOW)
        status = status.model_copy(update={"attempts": None})  # each attempt got further
    assert status.avoided_nodes == [f"node-{number}" for number in (0, *range(2, 12))][-MAX_AVOIDED_NODES:]
    elsewhere = attempt_failed(status, build_spec(), build_failure(Reason.STALLED, "stalled"), JOB, NOW)
    assert elsewhere.avoided_nodes == status.avoided_nodes
