"""The constant answer of each task: its metrics are those of the task, computed by hand here."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from finetune_api.spec.tasks import TASK_METRICS
from finetune_trainer.tasks.base import DataInfo, Task
from finetune_trainer.tasks.constant import unigram_losses
from unit.trainer.test_causal_lm import build
from unit.trainer.tiny_tasks import make_task

CLASSES = ("a", "b", "c")
SINGLE = DataInfo(CLASSES, (6, 3, 1), "SingleLabel")
LABELS = ["a"] * 6 + ["b"] * 3 + ["c"]
HELD_OUT = ["a", "a", "b", "c"]


def encoded(task: Task, **columns: list[Any]) -> pa.Table:
    return pa.table(task.encode(columns))


def classify(info: DataInfo, train: dict[str, list[Any]], held_out: dict[str, list[Any]], **spec: Any) -> dict[str, float]:
    task = make_task("text-classification", info, **spec)
    tables = [encoded(task, text=["the film"] * len(next(iter(columns.values()))), **columns) for columns in (train, held_out)]
    found = task.baseline(*tables)
    assert found.keys() <= set(TASK_METRICS["text-classification"])
    return found


def test_the_most_frequent_class_of_the_training_rows_is_measured_on_the_held_out_rows() -> None:
    found = classify(SINGLE, {"label": LABELS}, {"label": HELD_OUT})
    shares = {"a": 7 / 13, "b": 4 / 13, "c": 2 / 13}  # with one more row of each
    loss = -sum(math.log(shares[label]) for label in HELD_OUT) / 4
    assert found == pytest.approx({"accuracy": 0.5, "loss": loss, "macroF1": 2 / 3 / 3}, rel=1e-5)


def test_with_class_weights_the_loss_is_that_of_the_weighted_shares_and_the_answer_is_still_the_most_frequent_class() -> None:
    found = classify(SINGLE, {"label": LABELS}, {"label": HELD_OUT}, classification={"classWeights": {"c": 9.0}})
    weighted = {"a": 7 / 29, "b": 4 / 29, "c": 18 / 29}
    loss = -sum((9 if label == "c" else 1) * math.log(weighted[label]) for label in HELD_OUT) / 4
    assert found["accuracy"] == 0.5
    assert found["loss"] == pytest.approx(loss, rel=1e-5)


def test_of_several_labels_those_of_most_rows_are_the_answer() -> None:
    info = DataInfo(CLASSES, (8, 2, 0), "MultiLabel")
    found = classify(info, {"labels": [["a"]] * 6 + [["a", "b"]] * 2 + [[]] * 2}, {"labels": [["a"], ["b"]]})
    assert (found["exactMatch"], found["microF1"]) == (0.5, 0.5)
    shares = (9 / 12, 3 / 12, 1 / 12)
    loss = (
        -sum(math.log(value) for value in (shares[0], 1 - shares[1], 1 - shares[2], 1 - shares[0], shares[1], 1 - shares[2])) / 6
    )
    assert found["loss"] == pytest.approx(loss, rel=1e-5)


def test_the_mean_is_the_answer_of_a_regression() -> None:
    found = classify(DataInfo(problem="Regression"), {"label": [1.0, 2.0, 6.0]}, {"label": [3.0, 5.0]})
    assert (found["mse"], found["loss"], found["mae"]) == (2.0, 2.0, 1.0)
    assert found["r2"] == -1.0, "the mean of the held-out rows is another"
    assert "pearson" not in found, "a constant has no correlation"


def test_the_most_frequent_tag_finds_no_entity() -> None:
    task = make_task("token-classification", DataInfo(("O", "B-X"), (8, 2)))
    table = encoded(task, tokens=[["the", "films"], ["anna"]], tags=[["O", "O"], ["B-X"]])
    found = task.baseline(table, table)
    assert found.keys() == set(TASK_METRICS["token-classification"])
    assert (found["accuracy"], found["f1"]) == (pytest.approx(2 / 3), 0.0)
    assert found["loss"] == pytest.approx(-(2 * math.log(9 / 12) + math.log(3 / 12)) / 3, rel=1e-5)


def test_a_unigram_model_knows_the_tokens_of_the_training_data_and_leaves_some_weight_for_others() -> None:
    losses, most = unigram_losses(np.array([3, 3, 5, 3]), np.array([3, 5, 7]), vocabulary=8)
    assert most == 3
    assert np.exp(-losses) == pytest.approx([(3 + 2 / 8) / 6, (1 + 2 / 8) / 6, (2 / 8) / 6])


def test_language_models_are_compared_with_a_unigram_model() -> None:
    causal = build()
    table = encoded(causal, text=["a b a a"])
    found = causal.baseline(table, table)
    assert found.keys() == set(TASK_METRICS["causal-lm"])
    assert 0 < found["tokenAccuracy"] <= 1
    masked = make_task("masked-lm")
    table = encoded(masked, text=["the the the film"])
    found = masked.baseline(table, table)
    assert found.keys() == set(TASK_METRICS["masked-lm"])
    assert found["accuracy"] == 0.75, "special tokens are never hidden"
    size = len(masked.tokenizer)
    expected = -(3 * math.log((3 + 2 / size) / 6) + math.log((1 + 2 / size) / 6)) / 4
    assert found["loss"] == pytest.approx(expected)
