"""What a run tells while it goes on: a line in the log for each logged step, and one in its history."""

import json
import logging
import pathlib
import time
from unittest.mock import Mock

import pytest

from finetune_api.reasons import FineTuneError, Reason
from finetune_trainer.loops.watch import Watch
from finetune_trainer.output.directory import Output
from finetune_trainer.runtime.distributed import Control, World
from trainer.runner import same_again


@pytest.fixture
def watch(tmp_path: pathlib.Path) -> Watch:
    reporter = Mock()
    reporter.report.attempt = 1
    found = Watch(Mock(), reporter, Mock(), Control(World(0, 0, 1)), Output(tmp_path), 8, Mock())
    found.begin(0, 40)
    return found


def test_each_logged_step_is_a_line_in_the_log_and_in_the_history(
    watch: Watch, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "finetune_trainer"):
        watch.logged(10, 1.25, 0.5, 2.0, 1e-4)
    assert caplog.messages == ["step 10 of 40: loss 0.5000, gradient norm 2.000, learning rate 0.0001"]
    [line] = (tmp_path / "history.jsonl").read_text().splitlines()
    [entry] = same_again([json.loads(line)])
    assert entry == {"step": 10, "epoch": 1.25, "loss": 0.5, "gradientNorm": 2.0, "learningRate": 1e-4}


def test_lines_that_a_full_disk_did_not_take_come_when_there_is_room(watch: Watch, tmp_path: pathlib.Path) -> None:
    (tmp_path / "history.jsonl").mkdir()  # nothing can be appended to that
    watch.skipped(1, 0.1)
    watch.skipped(2, 0.2)
    (tmp_path / "history.jsonl").rmdir()
    watch.skipped(3, 0.3)
    assert [json.loads(line)["step"] for line in (tmp_path / "history.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_who_lost_the_directory_adds_no_line(tmp_path: pathlib.Path) -> None:
    fence = Mock()
    fence.check.side_effect = FineTuneError(Reason.INTERRUPTED, "another has it")
    watch = Watch(Mock(), Mock(), Mock(), Control(World(0, 0, 1)), Output(tmp_path), 8, fence)
    with pytest.raises(FineTuneError, match="another has it"):
        watch.logged(10, 1.25, 0.5, 2.0, 1e-4)
    assert not (tmp_path / "history.jsonl").exists()


def test_evaluations_and_checkpoints_are_no_part_of_a_step(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch.begin(0, 40)
    for took, told in ((5.0, watch.evaluation_took), (2.0, watch.stood_still)):
        now[0] += took
        told(took)
    now[0] += 1.0
    watch.step_done(1, 40, 0.1)
    assert watch.timing.model_dump() == pytest.approx({"steps": 1.0, "evaluation": 5.0, "checkpoint": 2.0})


def test_the_clock_asks_once_for_each_checkpoint(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    late = LateRanks()
    state = Mock()
    state.stop_requested.return_value = False
    watch = Watch(state, Mock(), Mock(), late, Output(tmp_path), 8, Mock(), save_every_seconds=60.0)  # type: ignore[arg-type]
    watch.begin(0, 40)
    saved = []
    for step in range(1, 12):
        now[0] += 25.0
        watch.step_done(step, 40, 0.1)
        if watch.save_agreed:
            watch.stood_still(0.0)
            saved.append(step)
    assert saved == [4, 8], "asked for after 75 s, agreed on a step later, and counted from then on"


class LateRanks:
    """Control of several processes, which hear of a flag a step late."""

    world = World(0, 0, 2)

    def __init__(self) -> None:
        self._pending: tuple[bool, ...] = (False, False)

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        agreed, self._pending = self._pending, flags
        return agreed

    def forget(self) -> None:
        return
