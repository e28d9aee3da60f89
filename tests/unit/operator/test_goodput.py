"""Goodput: how each second of a job's time was used."""

import datetime
from typing import Any

import pytest

from finetune_api.status import Condition, FineTuneJobStatus, Goodput, Progress
from finetune_api.wire import Timing
from finetune_operator.observed import write_time
from finetune_operator.policy.goodput import update_goodput, with_timing
from finetune_operator.policy.status import is_write_due
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


class Timeline:
    """Holds the status of a job and advances it in time."""

    def __init__(self) -> None:
        self.status = FineTuneJobStatus()

    def advance(self, seconds: float, phase: Any, timing: Timing | None = None, **changes: Any) -> Goodput:
        after = self.status.model_copy(update={"phase": phase, "start_time": write_time(START), **changes})
        after = with_timing(after, timing) if timing is not None else after
        self.status = update_goodput(self.status, after, at(seconds))
        assert self.status.goodput is not None
        return self.status.goodput


def sum_of_seconds(goodput: Goodput) -> int:
    return sum(value for name, value in goodput if name.endswith("_seconds"))


def test_each_second_counts_for_the_phase_that_ends() -> None:
    timeline = Timeline()
    timeline.advance(2, "Queued")
    timeline.advance(30, "Pending")
    timeline.advance(40, "Initializing")
    timeline.advance(60, "Running")
    timeline.advance(160, "Publishing", Timing(steps=80, evaluation=10, checkpoint=4))
    last = timeline.advance(170, "Succeeded")
    assert last == Goodput(
        ratio=round(80 / 170, 4),
        productive_seconds=80,
        queued_seconds=28,
        starting_seconds=32,
        evaluation_seconds=10,
        checkpoint_seconds=4,
        other_seconds=6,
        publishing_seconds=10,
        since=write_time(at(170)),
        until=write_time(at(170)),
    )
    assert sum_of_seconds(last) == 170


def test_suspended_time_is_left_out() -> None:
    timeline = Timeline()
    timeline.advance(0, "Pending")
    timeline.advance(10, "Running")
    timeline.advance(30, "Suspended", Timing(steps=20))
    timeline.advance(5000, "Suspended")
    timeline.advance(10_000, "Pending")
    last = timeline.advance(10_010, "Running")
    assert (sum_of_seconds(last), last.ratio, last.starting_seconds) == (40, 0.5, 20)


def test_steps_that_were_lost_are_redone_time() -> None:
    timeline = Timeline()
    timeline.advance(0, "Pending")
    timeline.advance(10, "Running")
    timeline.advance(60, "Running", Timing(steps=50))
    timeline.advance(60, "Restarting")
    timeline.advance(70, "Running")
    resumed = timeline.advance(75, "Running", Timing(steps=25))  # it resumed from the checkpoint of step 25
    assert (resumed.productive_seconds, resumed.redone_seconds, resumed.starting_seconds, resumed.other_seconds) == (
        25,
        25,
        20,
        5,
    )
    last = timeline.advance(100, "Succeeded", Timing(steps=50))
    assert (last.productive_seconds, last.redone_seconds, sum_of_seconds(last), last.ratio) == (50, 25, 100, 0.5)


def test_training_before_its_first_observation_is_subtracted_from_the_starting_time() -> None:
    timeline = Timeline()
    timeline.advance(0, "Pending")
    last = timeline.advance(20, "Succeeded", Timing(steps=12, evaluation=2))
    assert (last.productive_seconds, last.evaluation_seconds, last.starting_seconds, last.ratio) == (12, 2, 6, 0.6)


def test_pods_can_not_report_more_time_than_has_passed() -> None:
    timeline = Timeline()
    timeline.advance(0, "Pending")
    last = timeline.advance(20, "Running", Timing(steps=1e300, evaluation=50, checkpoint=-5))
    assert (last.productive_seconds, last.evaluation_seconds, last.checkpoint_seconds, last.ratio) == (20, 0, 0, 1.0)


def test_a_stall_counts_from_the_last_step_on() -> None:
    timeline = Timeline()
    timeline.advance(0, "Pending")
    timeline.advance(10, "Running")
    progress = Progress(step=5, last_step_time=write_time(at(100)))
    timeline.advance(100, "Running", Timing(steps=90), progress=progress)
    noticed = timeline.advance(400, "Running", conditions=stalled(400))
    assert (noticed.stalled_seconds, noticed.redone_seconds) == (300, 0)
    ended = timeline.advance(700, "Restarting", reason="Stalled", conditions=None)
    assert (ended.stalled_seconds, ended.productive_seconds, ended.redone_seconds) == (600, 90, 0)


def test_a_stall_that_no_pod_reported_counts_once_the_attempt_is_given_up() -> None:
    timeline = Timeline()
    timeline.advance(0, "Pending")
    timeline.advance(10, "Running")
    progress = Progress(step=5, last_step_time=write_time(at(100)))
    timeline.advance(100, "Running", Timing(steps=90), progress=progress)
    ended = timeline.advance(820, "Restarting", reason="Stalled")
    assert (ended.stalled_seconds, ended.productive_seconds) == (720, 90)


def test_goodput_is_final_at_the_end_of_the_job() -> None:
    timeline = Timeline()
    timeline.advance(0, "Pending")
    ended = timeline.advance(20, "Failed")
    assert timeline.advance(5000, "Failed") == ended


def test_goodput_has_the_start_time_of_the_phase() -> None:
    timeline = Timeline()
    assert timeline.advance(3, "Pending").since == write_time(START)
    assert timeline.advance(10, "Running").since == write_time(at(10))
    later = timeline.advance(50, "Running")
    assert (later.since, later.until) == (write_time(at(10)), write_time(at(50)))


def test_a_job_without_an_attempt_has_no_goodput() -> None:
    status = update_goodput(FineTuneJobStatus(), FineTuneJobStatus(phase="Suspended"), NOW)
    assert status.goodput is None
    assert with_timing(status, Timing(steps=5)).goodput is None


@pytest.mark.parametrize("seconds", [0, 10**6])
def test_a_change_of_goodput_alone_is_not_written(seconds: float) -> None:
    timeline = Timeline()
    timeline.advance(0, "Running")
    before = timeline.status
    timeline.advance(seconds + 5, "Running")
    assert not is_write_due(build_record(before, written=10**6), timeline.status, at(seconds))
