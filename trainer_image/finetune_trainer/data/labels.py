"""Says for what the labels of the data were taken, and which field decides it if the user meant something else."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from finetune_trainer.data.cells import SEPARATORS
from finetune_trainer.data.columns import Kind

_PROBLEM_FIELD = "classification.problemType"
_WHAT: Mapping[Kind, str] = {"single": "classes", "multi": "tags of texts", "words": "tags of words"}
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


@dataclasses.dataclass(frozen=True)
class LabelReport:
    """For what the labels were taken. what: one phrase. hints: a sentence for each other kind that the labels may be."""

    what: str
    hints: Sequence[str] = ()


def describe_labels(
    kind: Kind, column: str, separator: str | None, inferred: bool, train: pa.Table, counts: Mapping[str, int]
) -> LabelReport | None:
    """Return what the labels are; None for tasks without labels.

    column: its name in the data. separator: of tags in a cell. inferred: whether the data decided the kind, not the spec. counts:
    training rows by class.
    """
    if kind == "regression":
        return _describe_numbers(column, train["label"], inferred)
    if kind not in _WHAT:
        return None
    split = f", separated by {separator!r}" if kind == "multi" and separator else ""
    hints = list(_class_hints(counts)) if kind == "single" and inferred else []
    return LabelReport(f"{_WHAT[kind]} in column {column!r}{split}", hints)


def _describe_numbers(column: str, values: pa.ChunkedArray, inferred: bool) -> LabelReport:
    least, most = (pc.min_max(values)[name].as_py() for name in ("min", "max"))
    different = len(pc.unique(values))
    what = f"numbers in column {column!r}, for a regression: {least:g} to {most:g}, {different:,} different"
    hint = f"the labels are taken for numbers because some have decimals; for classes, write {_PROBLEM_FIELD}: SingleLabel"
    return LabelReport(what, [hint] if inferred else [])


def _class_hints(counts: Mapping[str, int]) -> Iterable[str]:
    """Yield what else the classes may be: numbers, or several tags in one cell."""
    if all(_NUMBER.fullmatch(name) for name in counts) and len(counts) > 2:
        yield f"all classes are numbers; to predict a number, such as stars, write {_PROBLEM_FIELD}: Regression"
    joined = _joined_tags(counts)
    if joined:
        yield (
            f"{joined!r} looks like several tags in one cell, and is one class now; if a text can have several, write "
            "columns: {labels: …} in place of label"
        )


def _joined_tags(counts: Mapping[str, int]) -> str | None:
    """Return a class that consists of names that also occur on their own, or with others."""
    for separator in SEPARATORS:
        parts = {name: [part.strip() for part in name.split(separator)] for name in counts if separator in name}
        known = collections.Counter(part for names in parts.values() for part in names) + collections.Counter(
            name for name in counts if separator not in name
        )
        found = next((name for name, names in parts.items() if all(names) and all(known[part] > 1 for part in names)), None)
        if found is not None:
            return found
    return None
