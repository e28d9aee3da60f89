"""The micro-batch that fits a GPU is computed without a GPU: the model is described and never loaded."""

from typing import Any

import pytest
import torch
import transformers

from finetune_trainer.plan.micro_batch import fit_micro_batch
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
def test_the_micro_batch_of_a_model_with_a_new_head_is_fitted_to_the_gpu(name: Any, info: DataInfo) -> None:
    task = make_task(name, info)
    task.config.num_labels = 2  # as in the configuration of the model that the training starts from
    assert fit_micro_batch(task, task.spec, world_size=1, micro=16, longest=512, half=True) == (16, False)
    assert task.config.num_labels == 2


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("checkpoints", [True, False])
def test_activation_checkpointing_is_used_only_if_the_model_supports_it(
    monkeypatch: pytest.MonkeyPatch, checkpoints: bool
) -> None:
    monkeypatch.setattr(
        "finetune_trainer.plan.micro_batch.choose_micro_batch", lambda *_: (1, True)
    )  # it fits only with checkpointing
    monkeypatch.setattr("transformers.BertPreTrainedModel.supports_gradient_checkpointing", checkpoints)
    task = make_task("text-classification", CLASSES)
    assert fit_micro_batch(task, task.spec, world_size=1, micro=16, longest=512, half=True) == (1, checkpoints)


@pytest.mark.usefixtures("gpu")
def test_a_model_for_another_task_is_left_to_the_loader_to_refuse() -> None:
    task = make_task("text-classification", CLASSES)
    task.config = transformers.T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2)
    task.auto_model = "AutoModelForCausalLM"  # type: ignore[misc]
    assert fit_micro_batch(task, task.spec, world_size=1, micro=16, longest=512, half=True) == (16, False)


@pytest.mark.usefixtures("gpu")
def test_an_estimate_runs_no_code_of_a_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task("text-classification", CLASSES, model={"hub": {"name": "a/b"}, "trustRemoteCode": True})
    task.config.auto_map = {"AutoModelForSequenceClassification": "code.Model"}
    monkeypatch.setattr("transformers.AutoModelForSequenceClassification.from_config", None)
    assert fit_micro_batch(task, task.spec, world_size=1, micro=16, longest=512, half=True) == (16, False)


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
def test_on_a_cpu_the_micro_batch_shrinks_with_the_longest_row(name: Any, longest: int, rows: int) -> None:
    task = make_task("text-classification", CLASSES)
    spec = task.spec.model_copy(update={"task": name})
    assert fit_micro_batch(task, spec, world_size=1, micro=32, longest=longest, half=False) == (rows, False)


def test_on_a_cpu_the_values_of_the_job_are_used() -> None:
    task = make_task("text-classification", CLASSES)
    training = task.spec.training.model_copy(update={"per_device_batch_size": 32, "activation_checkpointing": True})
    spec = task.spec.model_copy(update={"training": training})
    assert fit_micro_batch(task, spec, world_size=1, micro=32, longest=512, half=False) == (32, True)
