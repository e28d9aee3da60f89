"""What became of a job's time, to the second."""

import datetime
from typing import Any

import pytest

from finetune_api.status import Condition, FineTuneJobStatus, Goodput, Progress
from finetune_api.wire import Timing
from finetune_operator.observed import write_time
from finetune_operator.policy.goodput import account, with_timing
from finetune_operator.policy.status import is_due
from unit.operator.builders import NOW, build_record

START = NOW


def at(seconds: float) -> datetime.datetime:
    return START + datetime.timedelta(seconds=seconds)


def stalled(since: float) -> list[Condition]:
    condition = Condition(
        type="TrainingStalled",
        status="True",
        reason="NoProgress",
        message="no step",
        last_transition_time=write_time(at(since)),
        observed_generation=1,
    )
    return [condition]


class Life:
    """A status that is written at one moment after the other."""

    def __init__(self) -> None:
        self.status = FineTuneJobStatus()

    def goes(self, seconds: float, phase: Any, timing: Timing | None = None, **changes: Any) -> Goodput:
        after = self.status.model_copy(update={"phase": phase, "start_time": write_time(START), **changes})
        after = with_timing(after, timing) if timing is not None else after
        self.status = account(self.status, after, at(seconds))
        assert self.status.goodput is not None
        return self.status.goodput


def in_all(goodput: Goodput) -> int:
    return sum(value for name, value in goodput if name.endswith("_seconds"))


def test_each_second_goes_to_the_phase_that_is_left() -> None:
    life = Life()
    life.goes(2, "Queued")
    life.goes(30, "Pending")
    life.goes(40, "Initializing")
    life.goes(60, "Running")
    life.goes(160, "Publishing", Timing(steps=80, evaluation=10, checkpoint=4))
    last = life.goes(170, "Succeeded")
    assert last == Goodput(
        ratio=round(80 / 170, 4),
        productive_seconds=80,
        queued_seconds=28,
        starting_seconds=32,
        evaluation_seconds=10,
        checkpoint_seconds=4,
        redone_seconds=6,
        publishing_seconds=10,
        since=write_time(at(170)),
        until=write_time(at(170)),
    )
    assert in_all(last) == 170


def test_suspended_time_is_left_out() -> None:
    life = Life()
    life.goes(0, "Pending")
    life.goes(10, "Running")
    life.goes(30, "Suspended", Timing(steps=20))
    life.goes(5000, "Suspended")
    life.goes(10_000, "Pending")
    last = life.goes(10_010, "Running")
    assert (in_all(last), last.ratio, last.starting_seconds) == (40, 0.5, 20)


def test_steps_that_were_lost_are_redone_time() -> None:
    life = Life()
    life.goes(0, "Pending")
    life.goes(10, "Running")
    life.goes(60, "Running", Timing(steps=50))
    life.goes(60, "Restarting")
    life.goes(70, "Running")
    back = life.goes(75, "Running", Timing(steps=25))  # it went on from a checkpoint of step 25
    assert (back.productive_seconds, back.redone_seconds, back.starting_seconds) == (25, 30, 20)
    last = life.goes(100, "Succeeded", Timing(steps=50))
    assert (last.productive_seconds, last.redone_seconds, in_all(last), last.ratio) == (50, 30, 100, 0.5)


def test_training_that_began_before_it_was_seen_is_taken_from_the_start() -> None:
    life = Life()
    life.goes(0, "Pending")
    last = life.goes(20, "Succeeded", Timing(steps=12, evaluation=2))
    assert (last.productive_seconds, last.evaluation_seconds, last.starting_seconds, last.ratio) == (12, 2, 6, 0.6)


def test_pods_can_not_make_up_more_time_than_there_was() -> None:
    life = Life()
    life.goes(0, "Pending")
    last = life.goes(20, "Running", Timing(steps=1e300, evaluation=50, checkpoint=-5))
    assert (last.productive_seconds, last.evaluation_seconds, last.checkpoint_seconds, last.ratio) == (20, 0, 0, 1.0)


def test_a_stall_counts_from_the_last_step_on() -> None:
    life = Life()
    life.goes(0, "Pending")
    life.goes(10, "Running")
    progress = Progress(step=5, last_step_time=write_time(at(100)))
    life.goes(100, "Running", Timing(steps=90), progress=progress)
    noticed = life.goes(400, "Running", conditions=stalled(400))
    assert (noticed.stalled_seconds, noticed.redone_seconds) == (300, 0)
    ended = life.goes(700, "Restarting", reason="Stalled", conditions=None)
    assert (ended.stalled_seconds, ended.productive_seconds, ended.redone_seconds) == (600, 90, 0)


def test_a_stall_that_nobody_told_of_counts_once_the_attempt_is_given_up() -> None:
    life = Life()
    life.goes(0, "Pending")
    life.goes(10, "Running")
    progress = Progress(step=5, last_step_time=write_time(at(100)))
    life.goes(100, "Running", Timing(steps=90), progress=progress)
    ended = life.goes(820, "Restarting", reason="Stalled")
    assert (ended.stalled_seconds, ended.productive_seconds) == (720, 90)


def test_the_account_is_final_at_the_end() -> None:
    life = Life()
    life.goes(0, "Pending")
    ended = life.goes(20, "Failed")
    assert life.goes(5000, "Failed") == ended


def test_the_phase_says_since_when() -> None:
    life = Life()
    assert life.goes(3, "Pending").since == write_time(START)
    assert life.goes(10, "Running").since == write_time(at(10))
    later = life.goes(50, "Running")
    assert (later.since, later.until) == (write_time(at(10)), write_time(at(50)))


def test_a_job_without_an_attempt_has_no_account() -> None:
    status = account(FineTuneJobStatus(), FineTuneJobStatus(phase="Suspended"), NOW)
    assert status.goodput is None
    assert with_timing(status, Timing(steps=5)).goodput is None


@pytest.mark.parametrize("seconds", [0, 10**6])
def test_an_account_is_no_reason_to_write(seconds: float) -> None:
    life = Life()
    life.goes(0, "Running")
    before = life.status
    life.goes(seconds + 5, "Running")
    assert not is_due(build_record(before, written=10**6), life.status, at(seconds))
