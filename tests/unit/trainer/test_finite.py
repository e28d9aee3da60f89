"""Losses that are no numbers: the first step is named, on all ranks alike, and its batch may be left out a few times."""

import pathlib
from unittest.mock import Mock

import pytest
import torch

from finetune_api.reasons import FineTuneError
from finetune_api.spec import Recovery
from finetune_trainer.loops import skipped_batches as skipping
from finetune_trainer.loops.finite import LossGuard
from finetune_trainer.output.directory import Output
from finetune_trainer.runtime.distributed import Control, World

NAN = float("nan")


def guard(output: pathlib.Path, policy: str = "Fail", scaled: bool = False) -> LossGuard:
    recovery = Recovery.model_validate({"onNonFiniteLoss": policy})
    return LossGuard(recovery, Control(World(0, 0, 1)), Output(output), Mock(), scaled)


def test_the_first_bad_step_is_named_however_late_it_is_looked_at(tmp_path: pathlib.Path) -> None:
    found = guard(tmp_path)
    for step, loss in ((1, 0.5), (2, 0.9), (3, NAN), (4, NAN)):
        found.observe(step, torch.tensor(loss), torch.tensor(1.0))
    with pytest.raises(FineTuneError, match=r"no number at step 3; lower spec.training.learningRate"):
        found.check()
    assert skipping.load(tmp_path) == frozenset()


def test_a_gradient_that_is_no_number_counts_but_for_fp16_which_scales_it_down(tmp_path: pathlib.Path) -> None:
    for scaled in (False, True):
        found = guard(tmp_path, scaled=scaled)
        found.observe(1, torch.tensor(0.5), torch.tensor(float("inf")))
        assert found.first_bad() == (0 if scaled else 1)
    found.check_logged(1, 0.5, float("inf"))
    with pytest.raises(FineTuneError, match="at step 7"):
        found.check_logged(7, NAN, 1.0)


def test_numbers_are_nothing_to_speak_of(tmp_path: pathlib.Path) -> None:
    found = guard(tmp_path)
    found.check()
    found.observe(1, torch.tensor(0.5), None)
    found.check()
    found.check_logged(1, 0.5, None)


def test_a_batch_is_left_out_a_few_times_and_no_more(tmp_path: pathlib.Path) -> None:
    for step in range(1, skipping.MOST_SKIPPED + 1):
        found = guard(tmp_path, "SkipBatch")
        found.observe(step, torch.tensor(NAN), None)
        with pytest.raises(FineTuneError, match=f"at step {step}: its batch is left out"):
            found.check()
        assert skipping.may_skip(tmp_path)
    found = guard(tmp_path, "SkipBatch")
    assert found.skipped == {1, 2, 3, 4, 5}
    assert found.trained_steps(0, 7) == 2
    with pytest.raises(FineTuneError, match="at step 9, after 5 batches were left out"):
        found.judge([9, 0])
    assert not skipping.may_skip(tmp_path)
    assert skipping.load(tmp_path) == found.skipped


def test_a_step_that_is_left_out_already_is_not_healed_by_leaving_it_out(tmp_path: pathlib.Path) -> None:
    assert skipping.record(tmp_path, 4)
    assert not skipping.record(tmp_path, 4)
    assert not skipping.may_skip(tmp_path)
