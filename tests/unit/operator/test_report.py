"""What a pod tells of trouble, in the status and once as an event."""

from typing import Any

from finetune_api.status import FineTuneJobStatus, Goodput
from finetune_api.wire import Problem, Report, Timing
from finetune_operator.observed import write_time
from finetune_operator.policy.attempt import decide
from finetune_operator.policy.report import take_word
from finetune_operator.policy.status import is_due
from finetune_operator.policy.turns import build_turns
from unit.operator.builders import NOW, ago, build_child, build_pod, build_record, end, observe, running

JOB = build_record()
FULL = Problem(reason="DiskFull", message="/finetune/output is full: no checkpoint of step 40")


def told(status: FineTuneJobStatus, **word: Any) -> FineTuneJobStatus:
    return take_word(status, JOB, Report(**{"attempt": 1, "phase": "Running", **word}), NOW)


def conditions(status: FineTuneJobStatus) -> list[tuple[str, str, str, str]]:
    return [(item.type, item.status, item.reason, item.message) for item in status.conditions or ()]


def events(before: FineTuneJobStatus, after: FineTuneJobStatus) -> list[tuple[str, str, str]]:
    return [(turn.type, turn.reason, turn.message) for turn in build_turns(before, after)]


def test_a_checkpoint_that_can_not_be_saved_is_a_condition_until_one_is() -> None:
    failing = told(running(), checkpoint_problem=FULL)
    assert conditions(failing) == [("CheckpointFailing", "True", "DiskFull", FULL.message)]
    assert events(running(), failing) == [("Warning", "CheckpointFailing", f"DiskFull: {FULL.message}")]
    later = Problem(reason="DiskFull", message="the same of step 80")
    again = told(failing, checkpoint_problem=later)
    assert events(failing, again) == [], "it is told once"
    healed = told(again)
    assert conditions(healed) == []
    assert events(again, healed) == [("Normal", "CheckpointsSaved", "Checkpoints are saved again.")]


def test_another_trouble_of_the_same_kind_is_told_again() -> None:
    failing = told(running(), checkpoint_problem=FULL)
    other = told(failing, checkpoint_problem=Problem(reason="WriteFailed", message="input/output error"))
    assert events(failing, other) == [("Warning", "CheckpointFailing", "WriteFailed: input/output error")]


def test_events_of_two_times_of_trouble_have_names_of_their_own() -> None:
    first = take_word(running(), JOB, Report(attempt=1, phase="Running", checkpoint_problem=FULL), ago(500))
    second = told(running(), checkpoint_problem=FULL)
    occasions = {build_turns(running(), status)[0].occasion for status in (first, second)}
    assert len(occasions) == 2


def test_a_training_that_stands_still_is_a_condition_until_it_goes_on() -> None:
    still = told(running(), stalled="no step for 5m00s: rank 1 does not answer")
    assert conditions(still) == [("TrainingStalled", "True", "NoProgress", "no step for 5m00s: rank 1 does not answer")]
    assert events(running(), still) == [("Warning", "TrainingStalled", "NoProgress: no step for 5m00s: rank 1 does not answer")]
    goes_on = told(still)
    assert conditions(goes_on) == []
    assert events(still, goes_on) == [("Normal", "TrainingGoesOn", "The training makes steps again.")]


def test_a_stall_ends_with_its_attempt_and_is_written_at_once() -> None:
    still = told(running(), stalled="no step for 5m00s")
    assert is_due(build_record(running(), written=0), still, NOW)
    seen = observe(build_pod(0), build_pod(1, deleted_at=ago(0)), job=build_record(still))
    status = decide(seen, None, NOW).status
    assert (status.phase, conditions(status)) == ("Restarting", [])


def test_trouble_of_the_last_word_of_a_stopped_pod_is_told() -> None:
    word = {"phase": "Interrupted", "checkpointProblem": {"reason": "GracePeriodTooShort", "message": "5 s were too short"}}
    status = running(phase="Restarting", reason="NodeLost")
    pod = build_pod(0, deleted_at=ago(5), finished=end(75, 1, **word))
    decision = decide(observe(pod, jobs=[], job=build_record(status)), None, NOW)
    assert conditions(decision.status) == [("CheckpointFailing", "True", "GracePeriodTooShort", "5 s were too short")]


def test_damaged_checkpoints_are_named_once_per_attempt() -> None:
    word = {"phase": "Initializing", "skipped_checkpoints": ["step-40", "step-20"]}
    status = told(running(), **word)
    assert status.attempts is not None
    assert status.attempts[-1].skipped_checkpoints == ["step-40", "step-20"]
    message = "Attempt 1 left out what it found damaged: step-40, step-20."
    assert events(running(), status) == [("Warning", "CheckpointSkipped", message)]
    assert events(status, told(status, **word)) == []
    many = told(running(), skipped_checkpoints=[f"step-{number}" * 30 for number in range(50)]).attempts
    assert many is not None
    names = many[-1].skipped_checkpoints
    assert names is not None
    assert (len(names), max(map(len, names))) == (10, 63)


def test_restarts_in_place_are_told() -> None:
    once = told(running(), in_place=1)
    assert events(running(), once) == [
        ("Warning", "RestartedInPlace", "Processes of attempt 1 were restarted in their pods, for the first time.")
    ]
    often = told(once, in_place=3)
    assert events(once, often)[0][2] == "Processes of attempt 1 were restarted in their pods, 3 times so far."


def test_an_attempt_that_finds_its_place_does_not_yet_know_how_the_time_was_used() -> None:
    known = running(goodput=Goodput(ratio=0.5, productive_seconds=50, since=write_time(ago(9))))
    loading = told(known, phase="Initializing", timing=Timing())
    assert loading.goodput == known.goodput
    trains = told(known, timing=Timing(steps=33.4))
    assert trains.goodput is not None
    assert trains.goodput.productive_seconds == 33


def test_tokens_per_second_are_rounded_like_everything_else() -> None:
    progress = told(running(), step=3, total_steps=9, tokens_per_second=12345.678).progress
    assert progress is not None
    assert progress.tokens_per_second == 12300.0


def test_the_furthest_step_is_kept_while_steps_are_done_again() -> None:
    far = told(running(), step=80, total_steps=100)
    back = told(far, step=50, total_steps=100).progress
    assert back is not None
    assert (back.step, back.furthest_step, back.percent) == (50, 80, 50)
    beyond = told(told(far, step=50, total_steps=100), step=81, total_steps=100).progress
    assert beyond is not None
    assert beyond.furthest_step is None


def test_the_passing_seconds_of_a_stall_are_no_reason_to_write_at_once() -> None:
    first = told(running(), stalled="no step for 5m00s")
    second = told(first, stalled="no step for 5m03s")
    assert not is_due(build_record(first, written=3), second, NOW)
    assert is_due(build_record(first, written=10), second, NOW)
    assert not is_due(build_record(first, written=600), told(first, stalled="no step for 5m00s"), NOW)


def test_a_stall_is_over_for_a_gang_that_its_queue_took_back() -> None:
    still = told(running(), stalled="no step for 5m00s")
    seen = observe(jobs=[build_child(suspended=True)], job=build_record(still))
    status = decide(seen, None, NOW).status
    assert (status.phase, conditions(status)) == ("Queued", [])
