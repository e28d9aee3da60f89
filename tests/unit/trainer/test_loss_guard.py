"""Non-finite losses: the error names the first step on all ranks, and a limited number of batches may be skipped."""

import pathlib
from unittest.mock import Mock

import pytest
import torch

from finetune_api.reasons import FineTuneError
from finetune_api.spec import Recovery
from finetune_trainer.loops import skipped_batches
from finetune_trainer.loops.loss_guard import LossGuard
from finetune_trainer.output.directory import OutputDirectory
from finetune_trainer.runtime.distributed import Coordinator, World

NAN = float("nan")


def guard(output: pathlib.Path, policy: str = "Fail", loss_scaling: bool = False) -> LossGuard:
    recovery = Recovery.model_validate({"onNonFiniteLoss": policy})
    return LossGuard(recovery, Coordinator(World(0, 0, 1)), OutputDirectory(output), Mock(), loss_scaling)


def test_the_first_non_finite_step_is_named_even_if_the_check_comes_later(tmp_path: pathlib.Path) -> None:
    found = guard(tmp_path)
    for step, loss in ((1, 0.5), (2, 0.9), (3, NAN), (4, NAN)):
        found.observe(step, torch.tensor(loss), torch.tensor(1.0))
    with pytest.raises(FineTuneError, match=r"NaN or infinite at step 3; lower spec.training.learningRate"):
        found.check()
    assert skipped_batches.load(tmp_path) == frozenset()


def test_a_non_finite_gradient_is_an_error_unless_fp16_scales_the_loss(tmp_path: pathlib.Path) -> None:
    for loss_scaling in (False, True):
        found = guard(tmp_path, loss_scaling=loss_scaling)
        found.observe(1, torch.tensor(0.5), torch.tensor(float("inf")))
        assert found.first_non_finite_step() == (0 if loss_scaling else 1)
    found.check_logged(1, 0.5, float("inf"))
    with pytest.raises(FineTuneError, match="at step 7"):
        found.check_logged(7, NAN, 1.0)


def test_finite_losses_raise_no_error(tmp_path: pathlib.Path) -> None:
    found = guard(tmp_path)
    found.check()
    found.observe(1, torch.tensor(0.5), None)
    found.check()
    found.check_logged(1, 0.5, None)


def test_only_a_limited_number_of_batches_is_skipped(tmp_path: pathlib.Path) -> None:
    for step in range(1, skipped_batches.MAX_SKIPPED + 1):
        found = guard(tmp_path, "SkipBatch")
        found.observe(step, torch.tensor(NAN), None)
        with pytest.raises(FineTuneError, match=f"at step {step}: the batch of this step is skipped"):
            found.check()
        assert skipped_batches.may_skip(tmp_path)
    found = guard(tmp_path, "SkipBatch")
    assert found.skipped_steps == {1, 2, 3, 4, 5}
    assert found.trained_steps(0, 7) == 2
    with pytest.raises(FineTuneError, match="at step 9, after 5 batches were skipped"):
        found.raise_if_non_finite([9, 0])
    assert not skipped_batches.may_skip(tmp_path)
    assert skipped_batches.load(tmp_path) == found.skipped_steps


def test_a_step_that_is_already_skipped_is_not_skipped_again(tmp_path: pathlib.Path) -> None:
    assert skipped_batches.record(tmp_path, 4)
    assert not skipped_batches.record(tmp_path, 4)
    assert not skipped_batches.may_skip(tmp_path)
