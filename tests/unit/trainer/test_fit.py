"""What fits a GPU is found out without one: the model is described, never loaded."""

from typing import Any

import pytest
import torch

from finetune_trainer.fit import fit_pass
from finetune_trainer.tasks.base import DataInfo
from unit.trainer.tiny_tasks import make_task

TAGS = DataInfo(classes=["O", "B-PER", "I-PER"], counts=[3, 1, 1])
CLASSES = DataInfo(classes=["good", "bad", "fair"], counts=[1, 1, 1], problem="SingleLabel")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 34, 1 << 34))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("name", "info"), [("text-classification", CLASSES), ("token-classification", TAGS), ("masked-lm", DataInfo())]
)
def test_a_model_with_a_fresh_head_is_fitted_to_the_gpu(name: Any, info: DataInfo) -> None:
    task = make_task(name, info)
    task.config.num_labels = 2  # as the configuration of the model says that it starts from
    assert fit_pass(task, task.spec, world=1, micro=16, longest=512, half=True) == (16, False)
    assert task.config.num_labels == 2


@pytest.mark.parametrize(
    ("name", "longest", "rows"),
    [
        ("text-classification", 27, 32),
        ("text-classification", 128, 16),
        ("text-classification", 512, 4),
        ("text-classification", 9000, 1),
        ("dpo", 128, 8),
    ],
)
def test_on_a_cpu_a_forward_pass_is_as_large_as_it_is_fast(name: Any, longest: int, rows: int) -> None:
    task = make_task("text-classification", CLASSES)
    spec = task.spec.model_copy(update={"task": name})
    assert fit_pass(task, spec, world=1, micro=32, longest=longest, half=False) == (rows, False)


def test_on_a_cpu_what_the_job_says_counts() -> None:
    task = make_task("text-classification", CLASSES)
    training = task.spec.training.model_copy(update={"per_device_batch_size": 32, "activation_checkpointing": True})
    spec = task.spec.model_copy(update={"training": training})
    assert fit_pass(task, spec, world=1, micro=32, longest=512, half=False) == (32, True)
