"""Masked language modelling: which tokens are masked, which logits are computed, and the guesses of samples."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from finetune_api.reasons import FineTuneError
from finetune_api.spec import Sample
from finetune_trainer.tasks.base import IGNORE_INDEX, DataInfo, Row, Task
from unit.trainer.tiny_tasks import (
    SHAPE,
    TEXTS,
    WORDS,
    assert_evaluation_does_not_depend_on_batches,
    assert_split_does_not_matter,
    evaluated,
    logits_of,
    make_task,
    make_tokenizer,
    rows_of,
    summed,
)


def task_and_rows(**spec: Any) -> tuple[Task, list[Row]]:
    task = make_task("masked-lm", **spec)
    return task, rows_of(task, text=list(TEXTS))


def test_loss_and_gradients_do_not_depend_on_the_split() -> None:
    task, rows = task_and_rows()
    assert_split_does_not_matter(task, rows)
    assert_evaluation_does_not_depend_on_batches(task, rows)


def test_the_evaluation_loss_equals_the_one_of_transformers_over_the_masked_tokens() -> None:
    task, rows = task_and_rows()
    loss, count, _ = summed(task, [rows])
    batch = task.collate(rows)
    labels = task.pad_labels((row["labels"] for row in rows), batch["input_ids"].shape[1])  # type: ignore[attr-defined]
    theirs = task.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.item()
    assert loss / count == pytest.approx(theirs, rel=1e-6)
    metrics, details, _ = evaluated(task, [rows])
    assert metrics["loss"] == pytest.approx(theirs, rel=1e-6)
    assert metrics["perplexity"] == pytest.approx(np.exp(theirs), rel=1e-5)
    assert details == {"tokens": count}


def test_only_ordinary_tokens_are_masked_and_at_least_one_is() -> None:
    task, rows = task_and_rows(maskedLM={"probability": 0.0001})
    special = set(task.tokenizer.all_special_ids)
    for row, text in zip(rows, TEXTS, strict=True):
        original = task.tokenizer(text)["input_ids"]
        masked = [position for position, label in enumerate(row["labels"]) if label != IGNORE_INDEX]
        assert len(masked) == 1
        assert not {original[position] for position in masked} & special
        assert [row["labels"][position] for position in masked] == [original[position] for position in masked]
        changed = {position for position, token in enumerate(row["input_ids"]) if token != original[position]}
        assert changed <= set(masked)


def test_masked_tokens_are_80_10_10_mask_random_and_unchanged() -> None:
    task = make_task("masked-lm", maskedLM={"probability": 0.3})
    ordinary = np.random.default_rng(0).choice(np.arange(5, 5 + len(WORDS)), size=20_000)
    original = [2, *ordinary.tolist(), 3]
    row = task.augment({"input_ids": original}, np.random.default_rng(1))
    ids, labels = np.array(row["input_ids"]), np.array(row["labels"])
    masked = labels != IGNORE_INDEX
    assert masked.mean() == pytest.approx(0.3, abs=0.02)
    assert (ids[masked] == task.tokenizer.mask_token_id).mean() == pytest.approx(0.8, abs=0.02)
    # One in fifteen random words is the original word.
    kept = (ids[masked] == labels[masked]).mean()
    assert kept == pytest.approx(0.1 + 0.1 / len(WORDS), abs=0.02)
    others = ids[masked & (ids != task.tokenizer.mask_token_id)]
    assert not set(others.tolist()) & set(task.tokenizer.all_special_ids)


def test_the_mask_depends_only_on_the_random_generator() -> None:
    task = make_task("masked-lm")
    row = {"input_ids": [2, *range(5, 20), 3]}
    first, again = (task.augment(row, np.random.default_rng([1, 2, 3])) for _ in range(2))
    assert first == again
    assert task.augment(row, np.random.default_rng([1, 3, 3])) != first
    assert row == {"input_ids": [2, *range(5, 20), 3]}


def test_rows_with_nothing_to_mask_are_left_out() -> None:
    task = make_task("masked-lm")
    assert task.encode({"text": ["[UNK] zzz", "film", ""]}) == {"input_ids": [[2, 6, 3]]}


def test_chunks_concatenate_all_texts() -> None:
    task = make_task("masked-lm", training={"maxTokens": 8}, maskedLM={"chunk": True})
    texts = ["the film was great", "", "anna went to new york", "dull"]
    rows = task.encode({"text": texts})["input_ids"]
    assert [task.tokenizer.decode(row) for row in rows] == [
        "[CLS] the film was great [SEP] anna [SEP]",
        "[CLS] went to new york [SEP] dull [SEP]",
    ], "a third chunk would hold only a separator, which can't be masked"
    assert not any(task.is_truncated({"input_ids": row}) for row in rows)
    assert task.encode({"text": ["", ""]}) == {"input_ids": []}


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "DistilBert", "Electra", "Albert", "DebertaV2", "ModernBert", "MobileBert"])
def test_every_model_computes_the_same_logits_at_the_masked_positions(kind: str) -> None:
    tokenizer = make_tokenizer()
    shape: dict[str, Any] = {"vocab_size": len(tokenizer), "max_position_embeddings": 40, "pad_token_id": 0, **SHAPE}
    if kind == "DistilBert":
        shape |= {"dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2}
        for name in SHAPE:
            del shape[name]
    if kind in ("Albert", "Electra", "MobileBert"):
        shape["embedding_size"] = 8
    if kind == "MobileBert":
        shape["intra_bottleneck_size"] = 8
    if kind == "ModernBert":
        shape |= {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    config = getattr(transformers, f"{kind}Config")(**shape)
    task = make_task("masked-lm", DataInfo(), tokenizer, config)
    rows = rows_of(task, text=list(TEXTS))
    batch = task.collate(rows)
    whole = logits_of(task, batch)
    assert whole.dim() == 3
    widths = []
    task.model.get_output_embeddings().register_forward_hook(lambda _, __, output: widths.append(output.shape))
    loss, _, _ = summed(task, [rows])
    expected = torch.nn.functional.cross_entropy(whole.flatten(0, 1)[batch["masked_positions"]], batch["labels"], reduction="sum")
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    if kind != "MobileBert":  # MobileBert does not call the layer
        assert widths == [(task.count_loss_labels(batch), len(tokenizer))], (
            "only masked positions are projected onto the vocabulary"
        )


def test_samples_are_filled_with_the_five_best() -> None:
    task = make_task("masked-lm", samples=[{"text": "This is a [MASK] movie!"}])
    (answer,) = task.answer([Sample(text="the film was [MASK] .")])
    encoded = task.tokenizer("the film was [MASK] .", return_tensors="pt")
    scores = logits_of(task, encoded)[0, 4].softmax(0)
    assert answer.guesses is not None
    assert len(answer.guesses) == 5
    best = scores.argsort(descending=True)[:5]
    assert [guess.token for guess in answer.guesses] == [task.tokenizer.decode([int(token)]) for token in best]
    assert [guess.score for guess in answer.guesses] == [pytest.approx(float(scores[token]), abs=1e-4) for token in best]


def test_a_diverged_model_has_no_guesses_because_a_status_cannot_hold_nan() -> None:
    task = make_task("masked-lm")
    with torch.no_grad():
        next(task.model.parameters()).fill_(float("nan"))
    [answer] = task.answer([Sample(text="the [MASK]")])
    assert answer.guesses == []


def test_samples_write_mask_for_any_mask_token_of_the_model() -> None:
    tokenizer = make_tokenizer()
    tokenizer.mask_token = "dull"
    task = make_task("masked-lm", tokenizer=tokenizer)
    (answer,) = task.answer([Sample(text="the film was [MASK] .")])
    assert len(answer.guesses or ()) == 5


def test_a_sample_without_a_mask_is_refused_with_a_sentence() -> None:
    with pytest.raises(FineTuneError, match=r"^spec.samples\[1\].text: 'the film' has no \[MASK\] in its first 32 tokens; write"):
        make_task("masked-lm", samples=[{"text": "a [MASK]"}, {"text": "the film"}])
    with pytest.raises(FineTuneError, match=r"^'dull' has no \[MASK\]"):
        make_task("masked-lm").answer([Sample(text="dull")])


def test_a_model_without_a_mask_token_is_refused_with_a_sentence() -> None:
    tokenizer = make_tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(FineTuneError, match=r"^spec.model: its tokenizer has no mask token; choose a model such as BERT"):
        make_task("masked-lm", tokenizer=tokenizer)
