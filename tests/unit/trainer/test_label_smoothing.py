"""spec.training.labelSmoothing trains with transformers' smoothed loss. Evaluations do not smooth."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.trainer_pt_utils import LabelSmoother

from finetune_api.reasons import FineTuneError
from finetune_trainer.tasks.base import IGNORE_INDEX
from finetune_trainer.tasks.causal_lm import CausalLanguageModeling
from finetune_trainer.tasks.text_classification import TextClassification
from finetune_trainer.tasks.token_classification import TokenClassification
from unit.trainer.tiny_models import build_model, build_spec, build_task, build_tokenizer

SMOOTHED = {"training": {"labelSmoothing": 0.1}}
INFO: dict[str, Any] = {"classes": ["a", "b", "c"], "counts": [1, 1, 1]}


class FixedLogits:
    """A model that returns the same logits for every batch."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits

    def __call__(self, **_: Any) -> Any:
        return SimpleNamespace(logits=self.logits)


def expected(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the sum of the smoothed losses, which transformers divides by the number of labels."""
    mean = LabelSmoother(epsilon=0.1)({"logits": logits}, labels)
    return float(mean * (labels != IGNORE_INDEX).sum())


def test_the_loss_of_tokens_is_that_of_transformers() -> None:
    tokenizer = build_tokenizer()
    task = build_task(
        CausalLanguageModeling, build_spec("causal-lm", **SMOOTHED), tokenizer, build_model("llama", len(tokenizer))
    )
    task.model.requires_grad_(requires_grad=False)
    batch = task.collate([{"input_ids": [5, 6, 7], "labels": [IGNORE_INDEX, 6, 7]}, {"input_ids": [5, 6], "labels": [-100, 6]}])
    logits, targets = task.logits_and_targets(task.model, batch)
    assert task.loss(task.model, batch).item() == pytest.approx(expected(logits, targets), rel=1e-5)
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    assert task.score(task.model, batch)["loss"].sum() == pytest.approx(float(plain), rel=1e-5)


@pytest.mark.parametrize("kind", [TextClassification, TokenClassification])
def test_the_loss_of_classes_is_that_of_transformers(kind: Any) -> None:
    tokenizer = build_tokenizer()
    name = "text-classification" if kind is TextClassification else "token-classification"
    task = build_task(kind, build_spec(name, **SMOOTHED), tokenizer, build_model("llama", len(tokenizer)), **INFO)
    logits = torch.randn((4, 3) if kind is TextClassification else (2, 2, 3), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, IGNORE_INDEX]).reshape(logits.shape[:-1])
    assert float(task.loss(FixedLogits(logits), {"labels": labels})) == pytest.approx(expected(logits, labels), rel=1e-5)


def test_each_tag_of_a_text_is_smoothed() -> None:
    tokenizer = build_tokenizer()
    spec, model = build_spec("text-classification", **SMOOTHED), build_model("llama", len(tokenizer))
    task = build_task(TextClassification, spec, tokenizer, model, **INFO, problem="MultiLabel")
    logits, labels = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1, 0, 1]])
    wanted = torch.tensor([[0.95, 0.05, 0.95]])
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
    assert float(task.loss(FixedLogits(logits), {"labels": labels})) == pytest.approx(float(loss))


def test_a_regression_that_was_found_in_the_data_refuses_it() -> None:
    tokenizer = build_tokenizer()
    with pytest.raises(FineTuneError, match=r"spec\.training\.labelSmoothing: the labels are numbers"):
        build_task(
            TextClassification, build_spec("text-classification", **SMOOTHED), tokenizer, build_model("llama", len(tokenizer)),
            problem="Regression",
        )  # fmt: skip
