"""Metrics, compared with numbers computed by hand and with the definitions of well-known libraries."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.tasks import metrics
from finetune_trainer.tasks.metrics import ClassCounts, entities

# Tags → (type, first, last), as seqeval 1.2.2 finds them in its default mode.
SENTENCES = {
    "O O O B-MISC I-MISC I-MISC O B-PER I-PER": [("MISC", 3, 5), ("PER", 7, 8)],
    "B-PER I-PER O B-LOC": [("PER", 0, 1), ("LOC", 3, 3)],
    "I-PER I-PER O": [("PER", 0, 1)],  # no B-
    "O I-LOC": [("LOC", 1, 1)],
    "B-PER I-LOC": [("PER", 0, 0), ("LOC", 1, 1)],  # the type changes
    "B-PER B-PER I-PER": [("PER", 0, 0), ("PER", 1, 2)],
    "I-PER B-PER": [("PER", 0, 0), ("PER", 1, 1)],
    "B-PER O I-PER": [("PER", 0, 0), ("PER", 2, 2)],  # a gap
    "S-PER B-LOC E-LOC": [("PER", 0, 0), ("LOC", 1, 2)],
    "S-PER I-PER": [("PER", 0, 0), ("PER", 1, 1)],
    "B-PER E-PER I-PER": [("PER", 0, 1), ("PER", 2, 2)],
    "E-PER E-PER": [("PER", 0, 0), ("PER", 1, 1)],
    "B I O": [("_", 0, 1)],
    "B-a-b I-a-b": [("a-b", 0, 1)],
    "O O": [],
    "": [],
}


@pytest.mark.parametrize("sentence", SENTENCES)
def test_entities_equal_those_of_seqeval(sentence: str) -> None:
    assert entities(sentence.split(), prefixed=True) == SENTENCES[sentence]


def test_other_prefix_letters_have_the_same_meaning() -> None:
    assert entities(["B-X", "L-X", "U-X"], prefixed=True) == entities(["B-X", "E-X", "S-X"], prefixed=True)
    assert entities(["B-X", "M-X", "E-X"], prefixed=True) == [("X", 0, 2)]


def test_a_run_of_equal_plain_tags_is_one_entity() -> None:
    assert entities(["PER", "PER", "O", "PER", "LOC"], prefixed=False) == [("PER", 0, 1), ("PER", 3, 3), ("LOC", 4, 4)]
    assert not metrics.has_prefixes(["O", "PER", "LOC"])
    assert not metrics.has_prefixes(["O", "B-PER", "NOUN"])
    assert metrics.has_prefixes(["O", "B-PER", "I-PER"])


@given(st.lists(st.sampled_from(["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in "xy")]), max_size=12))
@settings(max_examples=300, deadline=None)
def test_every_tagged_word_is_in_one_entity_of_its_type(tags: list[str]) -> None:
    found = entities(tags, prefixed=True)
    covered = [(index, kind) for kind, first, last in found for index in range(first, last + 1)]
    assert covered == [(index, tag[2:]) for index, tag in enumerate(tags) if tag != "O"]


def test_entities_count_when_type_and_both_ends_are_right() -> None:
    actual = [[("PER", 0, 1), ("LOC", 3, 3)], [("LOC", 0, 0)]]
    predicted = [[("PER", 0, 1), ("LOC", 3, 4)], [("PER", 0, 0)]]
    types, counts = metrics.count_entities(actual, predicted)
    assert counts.micro() == {"precision": pytest.approx(1 / 3), "recall": pytest.approx(1 / 3), "f1": pytest.approx(1 / 3)}
    assert types == ["LOC", "PER"]
    assert counts.per_class(types) == {
        "LOC": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 2},
        "PER": {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1},
    }


def test_without_entities_there_are_no_metrics() -> None:
    assert metrics.count_entities([[]], [[]])[1].micro() == {}
    assert metrics.count_entities([[("PER", 0, 0)]], [[]])[1].micro() == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_a_class_that_does_not_occur_is_not_in_the_mean() -> None:
    counts = ClassCounts.from_class_ids(np.array([0, 0, 1]), np.array([0, 1, 1]), classes=3)
    assert counts.macro_f1() == pytest.approx(2 / 3)
    assert math.isnan(ClassCounts.from_multi_hot(np.zeros((2, 3), bool), np.zeros((2, 3), bool)).macro_f1())


def test_the_confusion_matrix_has_true_classes_as_rows() -> None:
    assert metrics.confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist() == [[1, 1], [0, 1]]


def test_metrics_of_a_regression() -> None:
    found = metrics.regression_metrics(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 4.0, 3.0]))
    assert found == pytest.approx({"mse": 0.5, "rmse": 0.5**0.5, "mae": 0.5, "r2": 0.6, "pearson": 0.8, "spearman": 0.8})


def test_ties_share_a_rank() -> None:
    # scipy.stats.spearmanr([1, 2, 2, 3], [1, 3, 2, 2]) = 0.5
    assert metrics.regression_metrics(np.array([1.0, 2, 2, 3]), np.array([1.0, 3, 2, 2]))["spearman"] == pytest.approx(0.5)


def test_undefined_metrics_are_left_out() -> None:
    assert set(metrics.regression_metrics(np.ones(3), np.arange(3.0))) == {"mse", "rmse", "mae"}
    assert set(metrics.regression_metrics(np.arange(3.0), np.ones(3))) == {"mse", "rmse", "mae", "r2"}
    assert metrics.drop_non_finite({"loss": math.nan, "accuracy": 1, "perplexity": math.inf}) == {"accuracy": 1.0}
