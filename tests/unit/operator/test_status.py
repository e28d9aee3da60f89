"""How the status changes: what is kept, when conditions are set and removed, and which changes require a live read."""

from typing import Any

import pytest

from finetune_api.reasons import Reason
from finetune_api.status import Attempt, FineTuneJobStatus, Phase, Progress, Restarts
from finetune_api.wire import Report
from finetune_operator.observed import CreatedAttempt, write_time
from finetune_operator.policy.attempt import decide
from finetune_operator.policy.decision import Decision
from finetune_operator.policy.events import build_events
from finetune_operator.policy.failure import build_failure
from finetune_operator.policy.progress import merge_report
from finetune_operator.policy.restart_budget import attempt_failed
from finetune_operator.policy.status import (
    attempt_created,
    blocked,
    failed,
    in_phase,
    is_write_due,
    refused,
    running_seconds,
    succeeded,
)
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
)

JOB = build_record()


def blocked_conditions(status: FineTuneJobStatus) -> list[tuple[str, str]]:
    return [(item.reason, item.message) for item in status.conditions or () if item.type == "Blocked"]


def test_the_last_ten_attempts_are_kept() -> None:
    status = FineTuneJobStatus()
    for number in range(1, 14):
        status = attempt_created(status, build_spec(), CreatedAttempt(UID, 1, number, ago(100 - number), IMAGE, 2))
    assert [item.number for item in status.attempts or ()] == list(range(4, 14))


def test_an_attempt_that_is_created_twice_is_listed_once() -> None:
    status = attempt_created(running(), build_spec(), CreatedAttempt(UID, 1, 2, ago(9), IMAGE, 2))
    again = attempt_created(status, build_spec(), CreatedAttempt(UID, 1, 2, ago(9), IMAGE, 2))
    assert again == status


def test_a_failed_attempt_ends_with_its_reason_its_steps_and_its_time() -> None:
    status = running(seconds=60, progress=Progress(step=7, total_steps=10))
    after = attempt_failed(status, build_spec(), build_failure(Reason.NODE_LOST, "evicted"), JOB, NOW)
    assert after.attempts == [
        Attempt(
            number=1,
            start_time=write_time(ago(70)),
            completion_time=write_time(NOW),
            nodes=2,
            step=7,
            reason="NodeLost",
            message="evicted",
        )
    ]
    assert after.failure is None
    assert after.last_failure is not None
    assert after.last_failure.message == "evicted"
    assert (after.running_seconds, after.bookkeeping.running_since) == (60, None)


def test_an_attempt_that_ended_is_not_ended_again() -> None:
    once = attempt_failed(running(), build_spec(), build_failure(Reason.NODE_LOST, "evicted"), JOB, ago(50))
    ended = refused(once, Reason.OUTPUT_CONFLICT, "taken", JOB, NOW)
    assert ended.attempts == once.attempts


@pytest.mark.parametrize(("before", "since", "seconds"), [(None, None, 0), (5, None, 5), (None, 7, 7), (5, 7, 12), (5, -7, 5)])
def test_running_time_is_the_sum_of_earlier_periods_and_the_current_one(
    before: int | None, since: float | None, seconds: int
) -> None:
    status = running(running_seconds=before, running_since=write_time(ago(since)) if since is not None else None)
    assert running_seconds(status, NOW) == seconds


def test_a_blocked_job_has_a_condition_until_it_is_unblocked() -> None:
    status = blocked(FineTuneJobStatus(), JOB, "Pending", "NameTaken", "Service news-gang is there", NOW)
    assert blocked_conditions(status) == [("NameTaken", "Service news-gang is there")]
    assert (status.phase, status.reason) == ("Pending", "NameTaken")
    assert blocked_conditions(attempt_created(status, build_spec(), CreatedAttempt(UID, 1, 1, NOW, IMAGE, 2))) == []


@pytest.mark.parametrize("phase", ["Initializing", "Running", "Publishing", "Suspended"])
def test_a_job_that_makes_progress_is_not_blocked(phase: Phase) -> None:
    status = blocked(running(), JOB, "Restarting", "NameTaken", "Service news-gang is there", NOW)
    assert blocked_conditions(in_phase(status, phase, "Training", "")) == []


def test_a_job_that_has_ended_is_not_blocked() -> None:
    status = blocked(running(), JOB, "Restarting", "NameTaken", "Service news-gang is there", NOW)
    failure = build_failure(Reason.DATA_ERROR, "wrong")
    assert blocked_conditions(failed(status, failure, "wrong", JOB, NOW)) == []
    assert blocked_conditions(succeeded(status, build_spec(), JOB, NOW)) == []


def test_a_condition_keeps_its_time_while_its_value_does_not_change() -> None:
    first = blocked(FineTuneJobStatus(), JOB, "Pending", "NameTaken", "one", ago(60))
    second = blocked(first, JOB, "Pending", "Forbidden", "two", NOW)
    assert [(item.reason, item.last_transition_time) for item in second.conditions or ()] == [("Forbidden", write_time(ago(60)))]


def test_a_failure_is_that_of_the_job_and_the_failure_of_an_attempt_stays_beside_it() -> None:
    lost, wrong = build_failure(Reason.POD_LOST, "gone"), build_failure(Reason.DATA_ERROR, "wrong")
    restarting = attempt_failed(running(), build_spec(), lost, JOB, NOW)
    assert (restarting.failure, restarting.last_failure) == (None, lost)
    success = succeeded(restarting, build_spec(), JOB, NOW)
    assert (success.failure, success.last_failure, success.restarts) == (None, lost, Restarts(total=1, preemptions=1))
    end = attempt_failed(restarting, build_spec(), wrong, JOB, NOW)
    assert (end.phase, end.failure, end.last_failure) == ("Failed", wrong, lost)


def test_a_job_that_stopped_early_says_why_and_has_the_steps_that_it_trained() -> None:
    reason = "stopped early after step 40 of 100: in 2 evaluation(s) loss was not better than 2 after step 20"
    status = merge_report(running(), Report(attempt=1, phase="Succeeded", step=40, total_steps=100, stopped_early=reason), NOW)
    after = succeeded(status, build_spec(), JOB, NOW)
    assert (after.stopped_early, after.message) == (reason, f"trained 40 steps; {reason}")
    assert after.progress is not None
    assert (after.progress.step, after.progress.percent) == (40, 100)
    [event] = [event for event in build_events(status, after) if event.reason == "Succeeded"]
    assert reason in event.message


@pytest.mark.parametrize(
    ("before", "after", "live_read"),
    [
        (None, "Pending", True),
        (None, "Failed", True),
        ("Pending", "Pending", False),
        ("Pending", "Initializing", False),
        ("Pending", "Running", False),
        ("Initializing", "Running", False),
        ("Running", "Publishing", False),
        ("Publishing", "Succeeded", False),
        ("Running", "Pending", True),
        ("Running", "Initializing", True),
        ("Running", "Restarting", True),
        ("Running", "Suspended", True),
        ("Running", "Queued", True),
        ("Running", "Failed", True),
        ("Pending", "Failed", True),
        ("Queued", "Pending", True),
        ("Suspended", "Pending", True),
        ("Suspended", "Succeeded", True),
        ("Restarting", "Pending", True),
    ],
)
def test_only_a_forward_phase_change_may_rely_on_the_cache(before: Any, after: Any, live_read: bool) -> None:
    decision = Decision(FineTuneJobStatus(phase=after))
    assert decision.requires_live_read(FineTuneJobStatus(phase=before)) == live_read


@pytest.mark.parametrize(
    "action", [{"create_attempt": 1}, {"delete_child_job": build_child()}, {"delete_claim": "uid"}, {"delete_job": True}]
)
def test_an_action_always_requires_a_live_read(action: dict[str, Any]) -> None:
    assert Decision(running(), **action).requires_live_read(running())


def test_a_success_without_its_final_report_requires_a_live_read() -> None:
    observation = observe(build_pod(0), build_pod(1), jobs=[build_child(complete=True)], job=build_record(running()), live=False)
    assert decide(observation, None, NOW).requires_live_read(observation.job.status)


def test_a_success_with_its_final_report_requires_no_live_read() -> None:
    report = end(0, phase="Succeeded", step=3, totalSteps=3)
    pods = [build_pod(0, terminated=report), build_pod(1, terminated=end(0))]
    observation = observe(*pods, jobs=[build_child(complete=True)], job=build_record(running()), live=False)
    assert not decide(observation, None, NOW).requires_live_read(observation.job.status)


def test_a_normal_start_is_throttled_and_a_problem_is_written_at_once() -> None:
    status = running(phase="Pending", reason="PodsPending", message="0 of 2 pods created")
    record = build_record(status, written=3)
    ordinary = status.model_copy(update={"reason": "ContainerCreating", "message": "pod a is being created"})
    assert not is_write_due(record, ordinary, NOW)
    assert not is_write_due(build_record(status, written=29), ordinary, NOW)
    assert is_write_due(build_record(status, written=30), ordinary, NOW)
    assert is_write_due(record, status.model_copy(update={"reason": "Unschedulable"}), NOW)
