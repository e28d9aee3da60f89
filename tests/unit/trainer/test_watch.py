"""What a run tells while it goes on: a line in the log for each logged step, and one in its history."""

import json
import logging
import pathlib
from unittest.mock import Mock

import pytest

from finetune_api.reasons import FineTuneError
from finetune_trainer.distributed import Control, World
from finetune_trainer.loops.watch import Watch
from finetune_trainer.output import Output


@pytest.fixture
def watch(tmp_path: pathlib.Path) -> Watch:
    found = Watch(Mock(), Mock(), Mock(), Control(World(0, 0, 1)), Output(tmp_path), 8)
    found.begin(0, 40)
    return found


def test_each_logged_step_is_a_line_in_the_log_and_in_the_history(
    watch: Watch, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "finetune_trainer"):
        watch.logged(10, 1.25, 0.5, 2.0, 1e-4)
    assert caplog.messages == ["step 10 of 40: loss 0.5000, gradient norm 2.000, learning rate 0.0001"]
    [line] = (tmp_path / "history.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 10, "epoch": 1.25, "loss": 0.5, "gradientNorm": 2.0, "learningRate": 1e-4}


def test_a_loss_that_is_no_number_ends_the_job_with_the_step(watch: Watch) -> None:
    with pytest.raises(FineTuneError, match=r"the loss is nan at step 7; lower spec.training.learningRate"):
        watch.logged(7, 1.0, float("nan"), None, 1e-4)
