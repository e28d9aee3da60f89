"""Which budget an attempt's end counts against, when the next one comes, and when there is none."""

from typing import Any

import pytest

from finetune_api.reasons import VERDICTS, Reason
from finetune_api.status import Attempt, CheckpointStatus, FineTuneJobStatus, Progress, Restarts
from finetune_api.wire import Report
from finetune_operator.observed import write_time
from finetune_operator.policy.attempt import decide
from finetune_operator.policy.failure import build_failure
from finetune_operator.policy.restarts import (
    failures_in_vain,
    lost,
    pause_before_next,
    restarts_left,
    with_in_place,
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
    """A job whose attempts ended like this, none of them beyond the checkpoint of that step that all of them started from."""
    attempts = [ended(number, reason, saved) for number, reason in enumerate(reasons, 1)]
    checkpoint = CheckpointStatus(step=saved, time=write_time(ago(60))) if saved else None
    return running(attempt=len(attempts), attempts=attempts, checkpoint=checkpoint, phase="Restarting", **changes)


def lose(status: FineTuneJobStatus, reason: Reason, **recovery: Any) -> FineTuneJobStatus:
    return lost(status, build_spec(recovery=recovery), build_failure(reason, "so it was"), JOB, NOW)


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_ends_the_job_or_counts_against_its_budget(reason: Reason) -> None:
    verdict, status = VERDICTS[reason], lose(running(), reason)
    if verdict.budget is None:
        assert (status.phase, status.restarts) == ("Failed", Restarts())
    elif verdict.disruption:
        assert (status.phase, status.restarts) == ("Restarting", Restarts(total=1, preemptions=1))
        assert status.message == "preemption 1 of 100: so it was"
    else:
        assert (status.phase, status.restarts) == ("Restarting", Restarts(total=1, failures=1, charged=1))
        assert status.message == "restart 1 of 3, again in 1s: so it was"


def test_disruptions_have_a_limit_of_their_own() -> None:
    before = running(restarts=Restarts(total=9, failures=2, preemptions=7, charged=2))
    status = lose(before, Reason.NODE_LOST, maxRestarts=2, maxPreemptions=8)
    assert (status.phase, status.restarts) == ("Restarting", Restarts(total=10, failures=2, preemptions=8, charged=2))
    status = lose(before, Reason.PREEMPTED, maxRestarts=2, maxPreemptions=7)
    assert (status.phase, status.reason, status.message) == ("Failed", "Preempted", "after 7 preemptions: so it was")
    assert status.restarts == before.restarts


@pytest.mark.parametrize(("charged", "phase"), [(0, "Restarting"), (2, "Restarting"), (3, "Failed")])
def test_failures_are_counted_until_there_are_too_many(charged: int, phase: str) -> None:
    status = lose(running(restarts=Restarts(total=charged, failures=charged, charged=charged)), Reason.WORKER_DIED)
    assert status.phase == phase
    if phase == "Failed":
        assert status.message == "after 3 restarts: so it was"


def test_restarts_in_place_and_of_the_gang_share_a_budget() -> None:
    status = with_in_place(running(), [Report(attempt=1, phase="Running", in_place=2)])
    assert status.restarts == Restarts(total=2, in_place=2, charged=2)
    assert status.attempts is not None
    assert status.attempts[-1].in_place == 2
    assert with_in_place(status, [Report(attempt=1, phase="Running", in_place=2)]) == status, "each is counted once"
    status = lose(with_in_place(status, [Report(attempt=1, phase="Running", in_place=3)]), Reason.WORKER_DIED)
    assert (status.phase, status.message) == ("Failed", "after 3 restarts: so it was")
    assert status.restarts == Restarts(total=3, in_place=3, charged=3)


def test_restarts_in_place_of_the_other_pods_count_while_the_first_one_runs_and_once() -> None:
    heard = Report(attempt=1, phase="Running", in_place=1, in_place_elsewhere=2)
    status = with_in_place(running(), [heard])
    assert status.restarts == Restarts(total=3, in_place=3, charged=3)
    assert with_in_place(status, [heard, Report(attempt=1, phase="Failed", in_place=2)]) == status
    ends = [Report(attempt=1, phase="Failed", in_place=times) for times in (1, 2)]
    assert with_in_place(status, ends) == status


def test_restarts_in_place_of_another_attempt_are_not_counted_again() -> None:
    status = running(attempt=2, restarts=Restarts(total=1, in_place=1, charged=1))
    assert with_in_place(status, [Report(attempt=1, phase="Running", in_place=5)]) == status


def test_restarts_in_place_of_later_attempts_add_up() -> None:
    status = running(attempt=2, restarts=Restarts(total=3, failures=1, in_place=2, charged=1))
    status = with_in_place(status, [Report(attempt=2, phase="Running", in_place=1)])
    assert status.restarts == Restarts(total=4, failures=1, in_place=3, charged=2)


def test_a_last_word_counts_restarts_in_place_that_were_not_heard_of_before() -> None:
    status = lose(running(), Reason.WORKER_DIED)
    told = with_in_place(status, [Report(attempt=1, phase="Failed", in_place=2)])
    assert told.restarts == Restarts(total=3, failures=1, in_place=2, charged=1)


@pytest.mark.parametrize(("charged", "left"), [(0, 3), (2, 1), (3, 0), (9, 0)])
def test_a_pod_is_told_how_many_failures_it_may_still_heal_itself(charged: int, left: int) -> None:
    assert restarts_left(build_spec(), running(restarts=Restarts(charged=charged))) == left
    assert restarts_left(build_spec(), FineTuneJobStatus()) == 3


@pytest.mark.parametrize(("saved", "charged"), [(None, 4), (10, 4), (11, 1)])
def test_a_budget_is_full_again_once_an_attempt_got_beyond_its_checkpoint(saved: int | None, charged: int) -> None:
    checkpoint = CheckpointStatus(step=saved, time=write_time(ago(5))) if saved else None
    attempt = Attempt(number=2, start_time=write_time(ago(60)), nodes=2, from_step=10)
    before = running(attempt=2, attempts=[attempt], checkpoint=checkpoint, restarts=Restarts(total=3, failures=3, charged=3))
    status = lose(before, Reason.WORKER_DIED, maxRestarts=4)
    assert status.restarts == Restarts(total=4, failures=4, charged=charged)


def test_progress_of_an_attempt_that_was_taken_away_settles_its_failures_too() -> None:
    checkpoint = CheckpointStatus(step=5, time=write_time(ago(5)))
    before = running(checkpoint=checkpoint, restarts=Restarts(total=2, in_place=2, charged=2))
    assert lose(before, Reason.NODE_LOST).restarts == Restarts(total=3, in_place=2, preemptions=1, charged=0)


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
def test_the_pause_doubles_with_attempts_that_came_to_nothing(reasons: list[str], seconds: int) -> None:
    assert pause_before_next(after(*reasons)).total_seconds() == seconds
    assert pause_before_next(after(*reasons, saved=100)).total_seconds() == seconds


@pytest.mark.parametrize(("reason", "seconds"), [("WorkerDied", 1), ("NodeLost", 0)])
def test_the_pause_begins_anew_after_progress(reason: str, seconds: int) -> None:
    status = after(*[reason] * 5, saved=100)
    further = status.model_copy(update={"checkpoint": CheckpointStatus(step=150, time=write_time(ago(1)))})
    assert pause_before_next(further).total_seconds() == seconds
    attempts = [*(status.attempts or ()), ended(6, reason, from_step=150)]
    assert pause_before_next(further.model_copy(update={"attempts": attempts})).total_seconds() == seconds


def test_the_next_attempt_waits_for_the_end_of_the_pause() -> None:
    status = after("WorkerDied", "WorkerDied", "WorkerDied")
    early = decide(observe(jobs=[], job=build_record(status)), None, NOW)
    assert (early.create_attempt, early.again_seconds) == (None, 4)
    late = decide(observe(jobs=[], job=build_record(status)), None, ago(-4))
    assert late.create_attempt == 4


def test_a_pause_is_told() -> None:
    attempts = [*(after("WorkerDied", "WorkerDied").attempts or ()), Attempt(number=3, start_time=write_time(ago(9)), nodes=2)]
    status = lose(running(attempt=3, attempts=attempts, restarts=Restarts(charged=2)), Reason.STALLED)
    assert status.message == "restart 3 of 3, again in 4s: so it was"


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
def test_failures_in_a_row_without_a_further_step_are_counted(attempts: list[Attempt], found: int) -> None:
    assert failures_in_vain(attempts) == found


@pytest.mark.parametrize(("reason", "phase"), [(Reason.CODE_ERROR, "Failed"), (Reason.HUB_UNAVAILABLE, "Restarting")])
def test_a_crash_loop_ends_early_unless_its_cause_is_outside(reason: Reason, phase: str) -> None:
    attempts = [ended(number, reason) for number in range(1, 5)]
    attempts.append(Attempt(number=5, start_time=write_time(ago(50)), nodes=2))
    status = lose(running(attempt=5, attempts=attempts), reason, maxRestarts=1000)
    assert (status.phase, status.reason) == (phase, reason)
    if phase == "Failed":
        assert status.message == "5 failures in a row without a further step: so it was"


def test_failures_that_get_further_each_time_are_no_crash_loop() -> None:
    attempts = [ended(number, "CodeError", step=10 * number) for number in range(1, 9)]
    attempts.append(Attempt(number=9, start_time=write_time(ago(50)), nodes=2))
    progress = Progress(step=85, total_steps=100)
    assert (
        lose(running(attempt=9, attempts=attempts, progress=progress), Reason.CODE_ERROR, maxRestarts=1000).phase == "Restarting"
    )


def test_the_furthest_step_outlives_an_attempt_that_got_less_far() -> None:
    progress = Progress(step=3, total_steps=100, furthest_step=40)
    status = lose(running(progress=progress), Reason.WORKER_DIED)
    assert status.attempts is not None
    assert status.attempts[-1].step == 40


def test_a_gang_that_lost_a_pod_costs_no_restart() -> None:
    status = decide(observe(build_pod(0), build_pod(1, deleted_at=ago(0)), job=build_record(running())), None, NOW).status
    assert (status.restarts, restarts_left(build_spec(), status)) == (Restarts(total=1, preemptions=1), 3)


def test_restarts_in_place_of_all_pods_count_before_it_is_decided_whether_they_were_too_many() -> None:
    spent = build_pod(1, finished=failed_with("WorkerDied", seconds_ago=9), attempt=1)
    word = {"phase": "Failed", "inPlace": 2, "failure": {"reason": "WorkerDied", "message": "exit code 1"}}
    pods = [build_pod(0), build_pod(1, finished=end(1, 9, **word))]
    first = Report(attempt=1, phase="Running", step=3, total_steps=9, in_place=1)
    status = decide(observe(*pods, job=build_record(running())), first, NOW).status
    assert (status.phase, status.message) == ("Failed", "after 3 restarts: exit code 1")
    assert status.restarts == Restarts(total=3, in_place=3, charged=3)
    status = decide(observe(build_pod(0), spent, job=build_record(running())), first, NOW).status
    assert (status.phase, status.restarts) == ("Restarting", Restarts(total=2, failures=1, in_place=1, charged=2))


def test_restarts_in_place_of_pods_that_end_one_after_the_other_add_up() -> None:
    status = with_in_place(running(), [Report(attempt=1, phase="Running", in_place=1)])
    both = [Report(attempt=1, phase="Running", in_place=1), Report(attempt=1, phase="Failed", in_place=2), None]
    assert with_in_place(status, both).restarts == Restarts(total=3, in_place=3, charged=3)
    assert with_in_place(with_in_place(status, both), both[:1]).restarts == Restarts(total=3, in_place=3, charged=3)
