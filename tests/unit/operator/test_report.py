"""Problems that a pod reports: a condition in the status, and one event."""

from typing import Any

import pytest

from finetune_api.status import Attempt, CheckpointStatus, FineTuneJobStatus, Goodput
from finetune_api.wire import Problem, Report, Timing
from finetune_operator.observed import write_time
from finetune_operator.policy.attempt import decide
from finetune_operator.policy.events import build_events
from finetune_operator.policy.report import apply_report
from finetune_operator.policy.status import is_write_due
from unit.operator.builders import NOW, ago, build_child, build_pod, build_record, end, observe, running, true_conditions

JOB = build_record()
FULL = Problem(reason="DiskFull", message="/finetune/output is full: no checkpoint of step 40")


def reported(status: FineTuneJobStatus, **report: Any) -> FineTuneJobStatus:
    return apply_report(status, JOB, Report(**{"attempt": 1, "phase": "Running", **report}), NOW)


def conditions(status: FineTuneJobStatus) -> list[tuple[str, str, str, str]]:
    return [(item.type, item.status, item.reason, item.message) for item in status.conditions or ()]


def events(before: FineTuneJobStatus, after: FineTuneJobStatus) -> list[tuple[str, str, str]]:
    return [(event.type, event.reason, event.message) for event in build_events(before, after)]


def test_a_checkpoint_that_can_not_be_saved_is_a_condition_until_one_is_saved() -> None:
    failing = reported(running(), checkpoint_problem=FULL)
    assert conditions(failing) == [("CheckpointFailing", "True", "DiskFull", FULL.message)]
    assert events(running(), failing) == [("Warning", "CheckpointFailing", f"DiskFull: {FULL.message}")]
    later = Problem(reason="DiskFull", message="the same of step 80")
    again = reported(failing, checkpoint_problem=later)
    assert events(failing, again) == [], "a problem has one event"
    recovered = reported(again)
    assert conditions(recovered) == []
    assert events(again, recovered) == [("Normal", "CheckpointsSaved", "Checkpoints are saved again.")]


def test_another_reason_for_the_same_condition_is_another_event() -> None:
    failing = reported(running(), checkpoint_problem=FULL)
    other = reported(failing, checkpoint_problem=Problem(reason="WriteFailed", message="input/output error"))
    assert events(failing, other) == [("Warning", "CheckpointFailing", "WriteFailed: input/output error")]


def test_two_occurrences_have_events_with_different_names() -> None:
    first = apply_report(running(), JOB, Report(attempt=1, phase="Running", checkpoint_problem=FULL), ago(500))
    second = reported(running(), checkpoint_problem=FULL)
    occurrences = {build_events(running(), status)[0].occurrence for status in (first, second)}
    assert len(occurrences) == 2


def test_a_stalled_training_is_a_condition_until_it_continues() -> None:
    stalled = reported(running(), stalled="no step for 5m00s: rank 1 does not answer")
    assert conditions(stalled) == [("TrainingStalled", "True", "NoProgress", "no step for 5m00s: rank 1 does not answer")]
    assert events(running(), stalled) == [("Warning", "TrainingStalled", "NoProgress: no step for 5m00s: rank 1 does not answer")]
    resumed = reported(stalled)
    assert conditions(resumed) == []
    assert events(stalled, resumed) == [("Normal", "TrainingGoesOn", "The training makes progress again.")]


def test_a_stall_ends_with_its_attempt_and_is_written_at_once() -> None:
    stalled = reported(running(), stalled="no step for 5m00s")
    assert is_write_due(build_record(running(), written=0), stalled, NOW)
    observation = observe(build_pod(0), build_pod(1, deletion_requested_at=ago(0)), job=build_record(stalled))
    status = decide(observation, None, NOW).status
    assert (status.phase, conditions(status)) == ("Restarting", [])


def test_a_problem_in_the_final_report_of_a_stopped_pod_is_a_condition() -> None:
    report = {"phase": "Interrupted", "checkpointProblem": {"reason": "GracePeriodTooShort", "message": "5 s were too short"}}
    status = running(phase="Restarting", reason="NodeLost")
    pod = build_pod(0, deletion_requested_at=ago(5), terminated=end(75, 1, **report))
    decision = decide(observe(pod, jobs=[], job=build_record(status)), None, NOW)
    assert conditions(decision.status) == [("CheckpointFailing", "True", "GracePeriodTooShort", "5 s were too short")]


def test_damaged_checkpoints_are_named_once_per_attempt() -> None:
    report = {"phase": "Initializing", "skipped_checkpoints": ["step-40", "step-20"]}
    status = reported(running(), **report)
    assert status.attempts is not None
    assert status.attempts[-1].skipped_checkpoints == ["step-40", "step-20"]
    message = "Attempt 1 skipped damaged checkpoints: step-40, step-20."
    assert events(running(), status) == [("Warning", "CheckpointSkipped", message)]
    assert events(status, reported(status, **report)) == []
    many = reported(running(), skipped_checkpoints=[f"step-{number}" * 30 for number in range(50)]).attempts
    assert many is not None
    names = many[-1].skipped_checkpoints
    assert names is not None
    assert (len(names), max(map(len, names))) == (10, 63)


def test_restarts_in_place_are_events() -> None:
    once = reported(running(), in_place=1)
    assert events(running(), once) == [
        ("Warning", "RestartedInPlace", "Processes of attempt 1 were restarted in their pods, for the first time.")
    ]
    often = reported(once, in_place=3)
    assert events(once, often)[0][2] == "Processes of attempt 1 were restarted in their pods, 3 times so far."


def test_an_attempt_that_is_still_loading_does_not_change_goodput() -> None:
    known = running(goodput=Goodput(ratio=0.5, productive_seconds=50, since=write_time(ago(9))))
    loading = reported(known, phase="Initializing", timing=Timing())
    assert loading.goodput == known.goodput
    trains = reported(known, timing=Timing(steps=33.4))
    assert trains.goodput is not None
    assert trains.goodput.productive_seconds == 33


def test_tokens_per_second_are_rounded_like_other_numbers() -> None:
    progress = reported(running(), step=3, total_steps=9, tokens_per_second=12345.678).progress
    assert progress is not None
    assert progress.tokens_per_second == 12300.0


def test_the_furthest_step_is_kept_while_steps_are_repeated() -> None:
    far = reported(running(), step=80, total_steps=100)
    back = reported(far, step=50, total_steps=100).progress
    assert back is not None
    assert (back.step, back.furthest_step, back.percent) == (50, 80, 50)
    beyond = reported(reported(far, step=50, total_steps=100), step=81, total_steps=100).progress
    assert beyond is not None
    assert beyond.furthest_step is None


def test_the_growing_duration_of_a_stall_is_not_written_at_once() -> None:
    first = reported(running(), stalled="no step for 5m00s")
    second = reported(first, stalled="no step for 5m03s")
    assert not is_write_due(build_record(first, written=3), second, NOW)
    assert is_write_due(build_record(first, written=10), second, NOW)
    assert not is_write_due(build_record(first, written=600), reported(first, stalled="no step for 5m00s"), NOW)


def test_a_stall_is_over_once_kueue_has_evicted_the_job() -> None:
    stalled = reported(running(), stalled="no step for 5m00s")
    observation = observe(jobs=[build_child(suspended=True)], job=build_record(stalled))
    status = decide(observation, None, NOW).status
    assert (status.phase, true_conditions(status)) == ("Queued", [])


def test_a_job_that_goes_on_from_the_claim_of_an_earlier_job_says_so_and_saved_no_checkpoint_itself() -> None:
    before = running(attempts=[Attempt(number=1, start_time=write_time(ago(60)), nodes=2)])
    found = {"step": 40, "total_steps": 100, "checkpoint": CheckpointStatus(step=40, time=write_time(ago(9000)))}
    resumed = reported(before, from_step=40, **found)
    assert resumed.attempts is not None
    assert resumed.attempts[-1].from_step == 40
    assert events(before, resumed) == [("Normal", "Resumed", "Attempt 1 goes on from the checkpoint of step 40.")]
    saved = {"step": 81, "total_steps": 100, "checkpoint": CheckpointStatus(step=80, time=write_time(ago(1)))}
    assert [reason for _, reason, _ in events(resumed, reported(resumed, from_step=40, **saved))] == ["CheckpointSaved"]


@pytest.mark.parametrize(("known", "told", "event"), [(40, 40, []), (40, 20, ["Resumed"]), (40, 0, []), (None, 0, [])])
def test_the_step_that_an_attempt_starts_from_is_what_its_pods_say(known: int | None, told: int, event: list[str]) -> None:
    before = running(attempts=[Attempt(number=1, start_time=write_time(ago(60)), nodes=2, from_step=known)])
    after = reported(before, from_step=told)
    assert after.attempts is not None
    assert after.attempts[-1].from_step == (told or None)
    assert [reason for _, reason, _ in events(before, after)] == event
