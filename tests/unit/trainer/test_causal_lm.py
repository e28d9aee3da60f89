"""Causal language modelling: every token is learned once, and the loss equals the one of transformers."""

import math

import numpy as np
import pytest
import torch

from finetune_api.reasons import FineTuneError
from finetune_api.spec.tasks import TASK_METRICS
from finetune_trainer.tasks.base import IGNORE_INDEX, DataInfo
from finetune_trainer.tasks.causal_lm import CausalLanguageModeling
from unit.trainer.tiny_models import (
    TEXTS,
    assert_same_step,
    build_model,
    build_spec,
    build_task,
    build_tokenizer,
    rows_of,
    splits_with_padding,
)


def build(kind: str = "llama", max_tokens: int = 64, **fields: object) -> CausalLanguageModeling:
    tokenizer = build_tokenizer()
    spec = build_spec("causal-lm", training={"maxTokens": max_tokens}, **fields)
    return build_task(CausalLanguageModeling, spec, tokenizer, build_model(kind, len(tokenizer)))


def test_every_token_of_a_text_except_the_first_is_learned_exactly_once_and_so_is_eos() -> None:
    task = build(max_tokens=8)
    rows = rows_of(task, text=TEXTS)
    assert max(len(row["input_ids"]) for row in rows) == 8
    learned = [label for row in rows for label in row["labels"] if label != IGNORE_INDEX]
    expected = [token for text in TEXTS for token in [*task.tokenizer(text)["input_ids"], task.tokenizer.eos_token_id][1:]]
    assert learned == expected


def test_an_empty_text_gives_no_row() -> None:
    assert rows_of(build(), text=["", TEXTS[0]]) == rows_of(build(), text=[TEXTS[0]])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_loss_equals_the_one_of_transformers(kind: str) -> None:
    task = build(kind)
    batch = task.collate(rows_of(task, text=TEXTS))
    theirs = task.model(batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    ours = task.loss(task.model, batch) / task.count_loss_labels(batch)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_loss_and_gradient_do_not_depend_on_how_rows_are_split(kind: str) -> None:
    task = build(kind)
    rows = rows_of(task, text=TEXTS)
    whole, *others = splits_with_padding(task, rows)
    for other in others:
        assert_same_step(task, whole, other)


def test_a_batch_of_padding_rows_has_no_loss_and_no_gradient() -> None:
    task = build()
    batch = task.collate([task.padding_row(row) for row in rows_of(task, text=TEXTS)])
    loss = task.loss(task.model, batch)
    loss.backward()
    assert (loss.item(), task.count_loss_labels(batch)) == (0.0, 0)
    assert all(weight.grad is None or not weight.grad.any() for weight in task.model.parameters())


def test_metrics_of_an_evaluation_do_not_depend_on_its_batches() -> None:
    task = build()
    rows = rows_of(task, text=TEXTS)

    def evaluate(batches: list[list[dict]]) -> dict[str, float]:
        with torch.no_grad():
            scores = [task.score(task.model, task.collate(batch)) for batch in batches]
        return task.compute_metrics({name: np.concatenate([part[name] for part in scores]) for name in scores[0]})[0]

    whole, *others = [evaluate(split) for split in splits_with_padding(task, rows)]
    assert whole.keys() == set(TASK_METRICS["causal-lm"]) == set(TASK_METRICS["sft"])
    batch = task.collate(rows)
    assert whole["loss"] == pytest.approx(task.loss(task.model, batch).item() / task.count_loss_labels(batch), rel=1e-6)
    assert whole["perplexity"] == pytest.approx(math.exp(whole["loss"]))
    assert 0 <= whole["tokenAccuracy"] <= 1
    for other in others:
        assert other == pytest.approx(whole, rel=1e-6)


def test_the_perplexity_of_a_huge_loss_is_finite() -> None:
    metrics, _ = build().compute_metrics({"loss": np.array([1e6]), "count": np.array([1]), "correct": np.array([0])})
    assert math.isfinite(metrics["perplexity"])


def test_non_finite_metrics_of_a_diverged_model_are_left_out() -> None:
    metrics, _ = build().compute_metrics({"loss": np.array([np.nan]), "count": np.array([1]), "correct": np.array([0])})
    assert metrics == {"tokenAccuracy": 0.0}


def test_a_sample_is_continued_and_the_answer_is_the_same_each_time() -> None:
    task = build(samples=[{"text": "The film was"}, {"text": TEXTS[3] * 20}])
    task.model.eval()
    answers = task.answer(task.spec.samples)
    assert [answer.text[:12] for answer in answers] == ["The film was", "Nothing happ"]
    assert answers == task.answer(task.spec.samples)
    assert all(answer.answer for answer in answers)


def test_a_masked_language_model_is_refused() -> None:
    from transformers import BertConfig

    with pytest.raises(FineTuneError, match=r"bert is a masked language model; write masked-lm"):
        CausalLanguageModeling(build_spec("causal-lm"), build_tokenizer(), BertConfig(), DataInfo())
