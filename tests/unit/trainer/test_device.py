"""The device: precisions that it supports, and a GPU that was asked for and is not there."""

import pytest
import torch

from finetune_api.reasons import FineTuneError, Reason
from finetune_trainer.runtime import device
from finetune_trainer.runtime.precision import choose_precision


@pytest.mark.parametrize(
    ("requested", "gpu", "bf16", "tf32", "chosen"),
    [
        ("Auto", True, True, True, "bf16"),
        ("Auto", True, False, False, "fp16"),
        ("Auto", False, False, False, "fp32"),
        ("fp32", True, True, True, "fp32"),
        ("tf32", True, True, True, "tf32"),
    ],
)
def test_the_precision_follows_from_request_and_device(requested: str, gpu: bool, bf16: bool, tf32: bool, chosen: str) -> None:
    assert choose_precision(requested, gpu, bf16, tf32) == chosen


@pytest.mark.parametrize(("requested", "gpu"), [("fp16", False), ("tf32", False), ("tf32", True)])
def test_a_precision_that_the_device_lacks_is_refused(requested: str, gpu: bool) -> None:
    with pytest.raises(ValueError, match=rf"spec\.training\.precision: {requested} needs a"):
        choose_precision(requested, gpu, bf16=False, tf32=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the error appears only without a GPU")
def test_a_job_that_asks_for_gpus_does_not_train_on_the_cpu() -> None:
    with pytest.raises(FineTuneError, match=r"spec\.distributed\.gpusPerNode: .* torch sees none") as refused:
        device.require_gpu()
    assert refused.value.reason == Reason.CONFIGURATION_ERROR


@pytest.mark.parametrize(
    ("built_for", "driver", "message"),
    [
        (None, "driver 580.65.06", "this image was built for the CPU only"),
        ("CUDA 13.0", None, "the container has no GPU driver"),
        ("CUDA 13.0", "driver 550.54.15", "needs a driver for CUDA 13.0, and the node has driver 550.54.15"),
    ],
)
def test_the_reason_for_a_missing_gpu_is_named(built_for: str | None, driver: str | None, message: str) -> None:
    assert message in device.explain_missing_gpu("2.13.0", built_for, driver)
