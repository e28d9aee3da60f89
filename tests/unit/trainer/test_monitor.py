"""What a run reports while it trains: each logged step is a line in the log and a line in the history."""

import json
import logging
import pathlib
import time
from unittest.mock import Mock

import pytest

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.status import CheckpointStatus
from finetune_api.wire import Timing
from finetune_trainer.loops.monitor import TrainingMonitor
from finetune_trainer.monitoring.progress import Reporter
from finetune_trainer.output.directory import OutputDirectory
from finetune_trainer.runtime.distributed import Coordinator, World
from finetune_trainer.runtime.state import RunState
from trainer.runner import comparable_history


@pytest.fixture
def monitor(tmp_path: pathlib.Path) -> TrainingMonitor:
    reporter = Mock()
    reporter.report.attempt = 1
    found = TrainingMonitor(Mock(), reporter, Mock(), Coordinator(World(0, 0, 1)), OutputDirectory(tmp_path), 8, Mock())
    found.start(0, 40)
    return found


def test_each_logged_step_is_a_line_in_the_log_and_in_the_history(
    monitor: TrainingMonitor, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "finetune_trainer"):
        monitor.log_step(10, 1.25, 0.5, 2.0, 1e-4)
    assert caplog.messages == ["step 10 of 40: loss 0.5000, gradient norm 2.000, learning rate 0.0001"]
    [line] = (tmp_path / "history.jsonl").read_text().splitlines()
    [entry] = comparable_history([json.loads(line)])
    assert entry == {"step": 10, "epoch": 1.25, "loss": 0.5, "gradientNorm": 2.0, "learningRate": 1e-4}


def test_lines_that_a_full_disk_refused_are_written_when_there_is_space(monitor: TrainingMonitor, tmp_path: pathlib.Path) -> None:
    (tmp_path / "history.jsonl").mkdir()  # appending to a directory fails
    monitor.batch_skipped(1, 0.1)
    monitor.batch_skipped(2, 0.2)
    (tmp_path / "history.jsonl").rmdir()
    monitor.batch_skipped(3, 0.3)
    assert [json.loads(line)["step"] for line in (tmp_path / "history.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_an_attempt_that_lost_the_directory_adds_no_line(tmp_path: pathlib.Path) -> None:
    fence = Mock()
    fence.check.side_effect = FineTuneError(Reason.INTERRUPTED, "another has it")
    monitor = TrainingMonitor(Mock(), Mock(), Mock(), Coordinator(World(0, 0, 1)), OutputDirectory(tmp_path), 8, fence)
    with pytest.raises(FineTuneError, match="another has it"):
        monitor.log_step(10, 1.25, 0.5, 2.0, 1e-4)
    assert not (tmp_path / "history.jsonl").exists()


def test_the_time_of_steps_excludes_evaluations_and_checkpoints(
    monitor: TrainingMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monitor.start(0, 40)
    for took, add_time in ((5.0, monitor.add_evaluation_time), (2.0, monitor.add_checkpoint_time)):
        now[0] += took
        add_time(took)
    now[0] += 1.0
    monitor.step_done(1, 40, 0.1)
    assert monitor.timing.model_dump() == pytest.approx({"steps": 1.0, "evaluation": 5.0, "checkpoint": 2.0})


def test_the_interval_requests_each_checkpoint_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    late = DelayedCoordinator()
    state = Mock()
    state.stop_requested.return_value = False
    monitor = TrainingMonitor(state, Mock(), Mock(), late, OutputDirectory(tmp_path), 8, Mock(), save_every_seconds=60.0)  # type: ignore[arg-type]
    monitor.start(0, 40)
    saved = []
    for step in range(1, 12):
        now[0] += 25.0
        monitor.step_done(step, 40, 0.1)
        if monitor.should_save:
            monitor.add_checkpoint_time(0.0)
            saved.append(step)
    assert saved == [4, 8], "requested after 75 s, agreed on one step later; the next interval starts then"


@pytest.mark.parametrize(("checkpoint", "from_step"), [(None, 0), (40, 40)])
def test_processes_that_are_restarted_in_place_report_the_step_from_which_the_first_ones_started(
    tmp_path: pathlib.Path, checkpoint: int | None, from_step: int
) -> None:
    state = RunState(tmp_path)
    for step in (checkpoint, 80):
        reporter = Reporter(state, 1, writes=True)
        monitor = TrainingMonitor(state, reporter, Mock(), Mock(), Mock(), 8, Mock())
        saved = CheckpointStatus(step=step, time="2026-01-02T03:04:05Z") if step is not None else None
        monitor.resume_from(saved, Timing(), [])
        report = state.read_report()
        assert report is not None
        assert report.from_step == from_step
    assert Reporter(state, 2, writes=True).report.from_step is None, "another attempt starts from another step"


class DelayedCoordinator:
    """Coordinator of several processes, which see a flag one step later."""

    world = World(0, 0, 2)

    def __init__(self) -> None:
        self._pending: tuple[bool, ...] = (False, False)

    def all_reduce_any(self, *flags: bool) -> tuple[bool, ...]:
        agreed, self._pending = self._pending, flags
        return agreed

    def discard_pending(self) -> None:
        return
