"""Metrics of an evaluation. Pure arithmetic on arrays; the results are never NaN.

A metric without a value (the correlation with a constant) is left out. The precision of a class that was never predicted and the
recall of a class that does not occur are 0, as in scikit-learn and seqeval, so that results can be compared with theirs.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_PREFIXED = re.compile(r"O|[BIESLUM](-.+)?")
_SAME_PREFIX = {"L": "E", "U": "S", "M": "I"}  # BILOU and BMES use other letters for the last, the only and the middle word
_STARTS, _ENDS = "BS", "ES"

# (type, first word, last word)
Entity = tuple[str, int, int]


@dataclasses.dataclass(frozen=True)
class ClassCounts:
    """Counts for each class: correctly predicted, predicted, and actual rows. int64, shape (classes,)."""

    true_positives: np.ndarray
    predicted: np.ndarray
    actual: np.ndarray

    @classmethod
    def from_class_ids(cls, actual: np.ndarray, predicted: np.ndarray, classes: int) -> "ClassCounts":
        """Count the actual and predicted class numbers: int (rows,)."""
        true_positives = np.bincount(actual[actual == predicted], minlength=classes)
        return cls(true_positives, np.bincount(predicted, minlength=classes), np.bincount(actual, minlength=classes))

    @classmethod
    def from_multi_hot(cls, actual: np.ndarray, predicted: np.ndarray) -> "ClassCounts":
        """Count the actual and predicted classes of rows with several classes: bool (rows, classes)."""
        return cls((actual & predicted).sum(axis=0), predicted.sum(axis=0), actual.sum(axis=0))

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall: float64 (classes,)."""
        return 2 * self.true_positives / np.maximum(self.predicted + self.actual, 1)

    def macro_f1(self) -> float:
        """Return the mean F1 of the classes that are actual or predicted somewhere; NaN if there are none."""
        occurs = self.predicted + self.actual > 0
        return float(self.f1[occurs].mean()) if occurs.any() else math.nan

    def micro(self) -> dict[str, float]:
        """Return precision, recall and f1 of all classes together; empty if no class is actual or predicted anywhere."""
        true_positives, predicted, actual = int(self.true_positives.sum()), int(self.predicted.sum()), int(self.actual.sum())
        if predicted + actual == 0:
            return {}
        return {
            "precision": true_positives / max(predicted, 1),
            "recall": true_positives / max(actual, 1),
            "f1": 2 * true_positives / (predicted + actual),
        }

    def most_predicted(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the class that is predicted most often: how often it is predicted and actual, and the number of all rows."""
        most = int(self.predicted.argmax())
        counts = {"predicted": self.predicted[most], "actual": self.actual[most], "all": self.actual.sum()}
        return {"class": names[most], **{name: int(count) for name, count in counts.items()}}

    def per_class(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return precision, recall, f1 and support (number of actual rows) of each class by name."""
        precision, recall = self.true_positives / np.maximum(self.predicted, 1), self.true_positives / np.maximum(self.actual, 1)
        columns = zip(names, precision.tolist(), recall.tolist(), self.f1.tolist(), self.actual.tolist(), strict=True)
        return {name: {"precision": p, "recall": r, "f1": f1, "support": support} for name, p, r, f1, support in columns}


def confusion_matrix(actual: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return how often rows of class i were predicted as class j: int64 (classes, classes)."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (actual, predicted), 1)
    return matrix


def regression_metrics(actual: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Return mse, rmse, mae, r2, pearson and spearman. actual, predicted: float (rows,), at least one row."""
    actual, predicted = actual.astype(np.float64), predicted.astype(np.float64)
    errors = predicted - actual
    mse = float(np.mean(errors**2))
    spread = float(np.var(actual))
    return drop_non_finite(
        {
            "mse": mse,
            "rmse": math.sqrt(mse),
            "mae": float(np.abs(errors).mean()),
            "r2": 1 - mse / spread if spread > 0 else math.nan,
            "pearson": _correlation(actual, predicted),
            "spearman": _correlation(_ranks(actual), _ranks(predicted)),
        }
    )


def drop_non_finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the finite metrics, because neither JSON nor the status can hold NaN."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def entities(tags: Sequence[str], prefixed: bool) -> list[Entity]:
    """Find the entities of a sentence as seqeval's get_entities does in its default mode, which is that of conlleval.

    This mode is lenient: an I- without B- begins an entity, and so does a change of the type. prefixed: whether tags are B-PER,
    I-PER, … in IOB2, IOB1, IOBES, BILOU or BMES (see has_prefixes). Otherwise a run of words with the same tag is an entity. O
    is not an entity.
    """
    found: list[Entity] = []
    previous, kind, start = "O", "", 0
    for index, tag in enumerate([*tags, "O"]):
        prefix, new_kind = _split(tag) if prefixed else ("O" if tag == "O" else "I", tag)
        begins = prefix != "O" and (prefix in _STARTS or previous == "O" or previous in _ENDS or new_kind != kind)
        if previous != "O" and (begins or prefix == "O"):
            found.append((kind, start, index - 1))
        if begins:
            start = index
        previous, kind = prefix, new_kind
    return found


def has_prefixes(tags: Sequence[str]) -> bool:
    """Return whether the tags have prefixes that mark where entities begin."""
    return all(_PREFIXED.fullmatch(tag) for tag in tags)


def count_entities(actual: Sequence[Sequence[Entity]], predicted: Sequence[Sequence[Entity]]) -> tuple[list[str], ClassCounts]:
    """Return types in alphabetical order, and their counts. Type, first and last word must match. actual: by sentence."""
    types = sorted({entity[0] for sentences in (actual, predicted) for sentence in sentences for entity in sentence})
    number = {kind: index for index, kind in enumerate(types)}
    counts = np.zeros((3, len(types)), dtype=np.int64)
    for truth, guess in zip(actual, predicted, strict=True):
        for row, sentence in enumerate((set(truth) & set(guess), guess, truth)):
            np.add.at(counts[row], [number[entity[0]] for entity in sentence], 1)
    return types, ClassCounts(*counts)


def _split(tag: str) -> tuple[str, str]:
    """Split B-PER into B and PER. A prefix without a type has the type _."""
    return _SAME_PREFIX.get(tag[0], tag[0]), tag[2:] or "_"


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 0. Equal values get the mean of their ranks."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes) - 1
    return ((2 * last - sizes + 1) / 2)[group]


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    spread = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / spread if spread > 0 else math.nan


def class_details(names: Sequence[str], counts: ClassCounts) -> dict[str, Any]:
    """Return details for the model card: names of the classes, and the metrics of each class."""
    return {"classes": list(names), "perClass": counts.per_class(names)}
