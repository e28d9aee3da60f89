"""Text classification: labels, losses, metrics and answers, for each type of problem."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from finetune_api.reasons import FineTuneError
from finetune_api.spec import Sample
from finetune_api.spec.tasks import TASK_METRICS
from finetune_trainer.tasks.base import DataInfo, Row, Task
from unit.trainer.tiny_tasks import (
    SHAPE,
    TEXTS,
    assert_evaluation_does_not_depend_on_batches,
    assert_split_does_not_matter,
    evaluated,
    logits_of,
    make_task,
    make_tokenizer,
    rows_of,
    summed,
)

CLASSES = ("a", "b", "c")
INFOS = {
    "SingleLabel": DataInfo(classes=CLASSES, counts=(4, 1, 1), problem="SingleLabel"),
    "MultiLabel": DataInfo(classes=CLASSES, counts=(3, 2, 1), problem="MultiLabel"),
    "Regression": DataInfo(problem="Regression"),
}
LABELS: dict[str, dict[str, list[Any]]] = {
    "SingleLabel": {"label": ["a", "b", "a", "c", "a", "a"]},
    "MultiLabel": {"labels": [["a"], [], ["b", "a"], ["c"], ["a", "b"], []]},
    "Regression": {"label": [1.0, 5.0, 2.5, 3.0, -1.0, 4.0]},
}
BALANCED = {"classification": {"balanced": True}}
GIVEN = {"classification": {"classWeights": {"b": 3.0}}}


def task_and_rows(problem: str, **spec: Any) -> tuple[Task, list[Row]]:
    task = make_task("text-classification", INFOS[problem], **spec)
    return task, rows_of(task, text=list(TEXTS), **LABELS[problem])


CASES = [(problem, {}) for problem in INFOS] + [("SingleLabel", BALANCED), ("MultiLabel", GIVEN)]


@pytest.mark.parametrize(("problem", "spec"), CASES)
def test_loss_and_gradients_do_not_depend_on_the_split(problem: str, spec: dict[str, Any]) -> None:
    assert_split_does_not_matter(*task_and_rows(problem, **spec))


@pytest.mark.parametrize(("problem", "spec"), CASES)
def test_an_evaluation_does_not_depend_on_its_batches(problem: str, spec: dict[str, Any]) -> None:
    assert_evaluation_does_not_depend_on_batches(*task_and_rows(problem, **spec))


@pytest.mark.parametrize(("problem", "spec"), CASES)
def test_the_evaluation_loss_equals_the_training_loss(problem: str, spec: dict[str, Any]) -> None:
    task, rows = task_and_rows(problem, **spec)
    loss, count, _ = summed(task, [rows])
    assert evaluated(task, [rows])[0]["loss"] == pytest.approx(loss / count, rel=1e-6)


@pytest.mark.parametrize("problem", INFOS)
def test_without_class_weights_the_mean_loss_equals_the_one_of_transformers(problem: str) -> None:
    task, rows = task_and_rows(problem)
    batch = task.collate(rows)
    loss, count, _ = summed(task, [rows])
    labels = batch["labels"].float() if problem == "MultiLabel" else batch["labels"]
    theirs = task.model(**{**batch, "labels": labels}).loss.item()
    assert loss / count == pytest.approx(theirs, rel=1e-6)


def test_loss_labels_are_rows_and_with_several_labels_rows_times_classes() -> None:
    counts = {}
    for problem in INFOS:
        task, rows = task_and_rows(problem)
        counts[problem] = task.count_loss_labels(task.collate([*rows, task.padding_row(rows[0])]))
    assert counts == {"SingleLabel": 6, "MultiLabel": 18, "Regression": 6}


def test_balanced_weights_have_the_mean_1_over_the_training_rows() -> None:
    plain, rows = task_and_rows("SingleLabel")
    balanced, _ = task_and_rows("SingleLabel", **BALANCED)
    losses = [summed(plain, [[row]])[0] for row in rows]
    # 6 rows, 3 classes: a occurs 4 times, b and c once.
    weights = {0: 6 / (3 * 4), 1: 2.0, 2: 2.0}
    mine = [weights[row["labels"]] for row in rows]
    assert np.mean(mine) == pytest.approx(1)
    assert summed(balanced, [rows])[0] == pytest.approx(np.dot(mine, losses), rel=1e-6)


def test_a_given_weight_applies_only_to_rows_of_its_class() -> None:
    plain, rows = task_and_rows("SingleLabel")
    weighted, _ = task_and_rows("SingleLabel", **GIVEN)
    for row in rows:
        factor = 3 if row["labels"] == 1 else 1
        assert summed(weighted, [[row]])[0] == pytest.approx(factor * summed(plain, [[row]])[0], rel=1e-6)


def test_invalid_class_weights_are_refused_with_a_sentence() -> None:
    with pytest.raises(FineTuneError, match=r"^spec.classification.classWeights: there is no class 'd'; write some of: a, b, c"):
        task_and_rows("SingleLabel", classification={"classWeights": {"d": 2.0}})
    with pytest.raises(FineTuneError, match=r"^spec.classification.balanced: a regression has no classes"):
        task_and_rows("Regression", classification={"balanced": True})


def test_a_pair_of_texts_is_one_row_with_both() -> None:
    task = make_task("text-classification", INFOS["SingleLabel"])
    (row,) = rows_of(task, text=["the film"], text_pair=["was dull"], label=["a"])
    assert task.tokenizer.decode(row["input_ids"]) == "[CLS] the film [SEP] was dull [SEP]"
    assert row["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    pair, single = task.answer([Sample(text="the film", text_pair="was dull"), Sample(text="the film")])
    assert pair.score != single.score


def test_long_texts_are_truncated() -> None:
    task = make_task("text-classification", INFOS["SingleLabel"], training={"maxTokens": 8})
    (row,) = rows_of(task, text=["a " * 20], label=["a"])
    assert len(row["input_ids"]) == 8
    assert task.is_truncated(row)


def test_batches_are_as_wide_as_their_longest_row_and_on_a_gpu_a_multiple_of_8(monkeypatch: pytest.MonkeyPatch) -> None:
    task, rows = task_and_rows("SingleLabel")
    longest = max(len(row["input_ids"]) for row in rows)
    assert task.collate(rows)["input_ids"].shape == (6, longest)
    assert task.collate(rows[:1])["input_ids"].shape == (1, 6)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    on_gpu = make_task("text-classification", INFOS["SingleLabel"], training={"maxTokens": 14})
    assert on_gpu.collate(rows[:1])["input_ids"].shape == (1, 8)
    (row,) = rows_of(on_gpu, text=["a " * 20], label=["a"])
    assert on_gpu.collate([row])["input_ids"].shape == (1, 14), "the model may have fewer than 16 positions"


def test_metrics_of_a_single_label() -> None:
    task, _ = task_and_rows("SingleLabel")
    logits = np.eye(3, dtype=np.float32)[[0, 0, 1, 1]]
    scores = {"loss": np.ones(4, np.float32), "logits": logits, "labels": np.array([0, 1, 1, 0])}
    metrics, details = task.compute_metrics(scores)
    assert metrics == {"loss": 1.0, "accuracy": 0.5, "macroF1": 0.5}
    assert details["confusion"] == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert details["perClass"]["b"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert details["classes"] == list(CLASSES)
    predictions = task.predictions(scores)
    assert predictions is not None
    assert predictions[1] == {"label": "a", "score": 0.5761, "expected": "b"}


def test_metrics_of_several_labels() -> None:
    task, _ = task_and_rows("MultiLabel")
    logits = np.array([[1, -1, -1], [1, 1, -1], [-1, -1, -1]], np.float32)
    labels = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]])
    scores = {"loss": np.full(3, 3.0, np.float32), "logits": logits, "labels": labels}
    metrics, _ = task.compute_metrics(scores)
    # a: 2 of 2; b: 1 predicted, 1 true, none right; c: it does not occur, so it does not count.
    assert metrics == {"loss": 1.0, "microF1": pytest.approx(2 / 3), "macroF1": 0.5, "exactMatch": pytest.approx(1 / 3)}
    assert metrics.keys() <= set(TASK_METRICS["text-classification"])
    predictions = task.predictions(scores)
    assert predictions is not None
    assert predictions[1] == {"labels": ["a", "b"], "scores": {"a": 0.7311, "b": 0.7311, "c": 0.2689}, "expected": ["a"]}


def test_an_evaluation_without_rows_has_no_metrics() -> None:
    task, rows = task_and_rows("Regression")
    assert evaluated(task, [[task.padding_row(rows[0])]])[:2] == ({}, {})


@pytest.mark.parametrize("problem", INFOS)
def test_the_configuration_of_the_model_matches_the_problem(problem: str) -> None:
    task, _ = task_and_rows(problem)
    config = task.model.config
    expected = {"SingleLabel": "single_label", "MultiLabel": "multi_label"}.get(problem)
    assert config.problem_type == (f"{expected}_classification" if expected else "regression")
    assert config.num_labels == (1 if problem == "Regression" else 3)
    assert task.model_kwargs()["ignore_mismatched_sizes"]


@pytest.mark.parametrize("problem", INFOS)
def test_an_answer_of_a_diverged_model_has_no_score_because_a_status_cannot_hold_nan(problem: str) -> None:
    task, _ = task_and_rows(problem)
    with torch.no_grad():
        next(task.model.parameters()).fill_(float("nan"))
    [answer] = task.answer([Sample(text="the film was great")])
    assert answer.score is None


def test_answers_have_class_and_probability() -> None:
    for problem in INFOS:
        task, _ = task_and_rows(problem)
        (answer,) = task.answer([Sample(text="the film was great")])
        logits = logits_of(task, task.collate(rows_of(task, text=["the film was great"], **first(problem))))[0]
        if problem == "SingleLabel":
            assert answer.label == CLASSES[int(logits.argmax())]
            assert answer.score == pytest.approx(float(logits.softmax(0).max()), abs=1e-4)
        elif problem == "MultiLabel":
            assert set((answer.label or "").split(", ")) - {""} == {CLASSES[i] for i in range(3) if logits[i] > 0}
            assert answer.score == pytest.approx(float(logits.sigmoid().max()), abs=1e-4)
            likely = logits.argsort(descending=True).tolist()
            assert [tag.label for tag in answer.labels or ()] == [CLASSES[index] for index in likely]
            scores = [float(logits[index].sigmoid()) for index in likely]
            assert [tag.score for tag in answer.labels or ()] == pytest.approx(scores, abs=1e-4)
        else:
            assert answer.label is None
            assert answer.score == pytest.approx(float(logits[0]), abs=1e-4)


def first(problem: str) -> dict[str, list[Any]]:
    return {name: values[:1] for name, values in LABELS[problem].items()}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_decoder_finds_the_last_token_for_any_padding(kind: str) -> None:
    tokenizer = make_tokenizer()
    # As with a decoder without a pad token: another token is used for padding, and the configuration has none.
    tokenizer.pad_token = "[SEP]"
    tokenizer.padding_side = "left"
    tokenizer.backend_tokenizer.post_processor = None
    config: Any = (
        transformers.LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=32, pad_token_id=None, **SHAPE)
        if kind == "llama"
        else transformers.GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2, pad_token_id=None)
    )
    config.attention_dropout = config.attn_pdrop = config.embd_pdrop = config.resid_pdrop = 0.0
    task = make_task("text-classification", INFOS["SingleLabel"], tokenizer, config)
    rows = rows_of(task, text=list(TEXTS), **LABELS["SingleLabel"])
    together = logits_of(task, task.collate(rows))
    alone = torch.cat([logits_of(task, task.collate([row])) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert len(alone.unique(dim=0)) == len(rows)
    assert_split_does_not_matter(task, rows)
