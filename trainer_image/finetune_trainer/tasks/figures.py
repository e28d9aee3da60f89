"""Figures of an evaluation: what is right of what was predicted. Pure arithmetic on arrays, never NaN.

Where a figure has no value (the correlation with a constant), it is left out. Precision of a class that nothing was predicted
as, and recall of one that does not occur, are 0, as in scikit-learn and seqeval, with whose figures people compare.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_PREFIXED = re.compile(r"O|[BIESLUM](-.+)?")
_SAME_PREFIX = {"L": "E", "U": "S", "M": "I"}  # BILOU and BMES have other letters for the last, the only and the middle word
_STARTS, _ENDS = "BS", "ES"

# Type, first word, last word.
Entity = tuple[str, int, int]


@dataclasses.dataclass(frozen=True)
class Tally:
    """Of each class: how often it was predicted and right, predicted at all, and true. int64, shape (classes,)."""

    hits: np.ndarray
    predicted: np.ndarray
    actual: np.ndarray

    @classmethod
    def of_numbers(cls, actual: np.ndarray, predicted: np.ndarray, classes: int) -> "Tally":
        """From the numbers of true and predicted classes: int (rows,)."""
        hits = np.bincount(actual[actual == predicted], minlength=classes)
        return cls(hits, np.bincount(predicted, minlength=classes), np.bincount(actual, minlength=classes))

    @classmethod
    def of_sets(cls, actual: np.ndarray, predicted: np.ndarray) -> "Tally":
        """From which classes each row has, and is said to have: bool (rows, classes)."""
        return cls((actual & predicted).sum(axis=0), predicted.sum(axis=0), actual.sum(axis=0))

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall: float64 (classes,)."""
        return 2 * self.hits / np.maximum(self.predicted + self.actual, 1)

    def macro_f1(self) -> float:
        """Mean over the classes that are true or predicted somewhere; NaN where there are none."""
        occurs = self.predicted + self.actual > 0
        return float(self.f1[occurs].mean()) if occurs.any() else math.nan

    def micro(self) -> dict[str, float]:
        """precision, recall and f1 of all classes together; nothing where no class is true or predicted anywhere."""
        hits, predicted, actual = int(self.hits.sum()), int(self.predicted.sum()), int(self.actual.sum())
        if predicted + actual == 0:
            return {}
        return {"precision": hits / max(predicted, 1), "recall": hits / max(actual, 1), "f1": 2 * hits / (predicted + actual)}

    def per_class(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """precision, recall, f1 and support (how often it is true) of each class by name."""
        precision, recall = self.hits / np.maximum(self.predicted, 1), self.hits / np.maximum(self.actual, 1)
        columns = zip(names, precision.tolist(), recall.tolist(), self.f1.tolist(), self.actual.tolist(), strict=True)
        return {name: {"precision": p, "recall": r, "f1": f1, "support": support} for name, p, r, f1, support in columns}


def confusion(actual: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How often class i was taken for class j: int64 (classes, classes)."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (actual, predicted), 1)
    return matrix


def regression(actual: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """mse, rmse, mae, r2, pearson and spearman of at least one row: float (rows,)."""
    actual, predicted = actual.astype(np.float64), predicted.astype(np.float64)
    errors = predicted - actual
    mse = float(np.mean(errors**2))
    spread = float(np.var(actual))
    return finite(
        {
            "mse": mse,
            "rmse": math.sqrt(mse),
            "mae": float(np.abs(errors).mean()),
            "r2": 1 - mse / spread if spread > 0 else math.nan,
            "pearson": _correlation(actual, predicted),
            "spearman": _correlation(_ranks(actual), _ranks(predicted)),
        }
    )


def finite(figures: Mapping[str, float]) -> dict[str, float]:
    """Those that are numbers: JSON and a status know no NaN."""
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}


def entities(tags: Sequence[str], prefixed: bool) -> list[Entity]:
    """Entities of a sentence as seqeval's get_entities finds them (its default mode, which is conlleval's).

    That is lenient: I- without B- begins an entity, and so does a change of the type. prefixed: whether tags are B-PER, I-PER, …
    in IOB2, IOB1, IOBES, BILOU or BMES (see has_prefixes); else a run of words with the same tag is an entity. O is none.
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
    """Whether a set of tags says by prefixes where entities begin."""
    return all(_PREFIXED.fullmatch(tag) for tag in tags)


def entity_tally(actual: Sequence[Sequence[Entity]], predicted: Sequence[Sequence[Entity]]) -> tuple[list[str], Tally]:
    """Types in alphabetical order, and how often each was found: type, first and last word must be right. By sentence."""
    types = sorted({entity[0] for sentences in (actual, predicted) for sentence in sentences for entity in sentence})
    number = {kind: index for index, kind in enumerate(types)}
    counts = np.zeros((3, len(types)), dtype=np.int64)
    for truth, guess in zip(actual, predicted, strict=True):
        for row, sentence in enumerate((set(truth) & set(guess), guess, truth)):
            np.add.at(counts[row], [number[entity[0]] for entity in sentence], 1)
    return types, Tally(*counts)


def _split(tag: str) -> tuple[str, str]:
    """B-PER → B, PER; a prefix without a type has the type _."""
    return _SAME_PREFIX.get(tag[0], tag[0]), tag[2:] or "_"


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values share the mean of theirs."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes) - 1
    return ((2 * last - sizes + 1) / 2)[group]


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    spread = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / spread if spread > 0 else math.nan


def describe(names: Sequence[str], tally: Tally) -> dict[str, Any]:
    """Details for the model card: names of the classes, and the figures of each."""
    return {"classes": list(names), "perClass": tally.per_class(names)}
