"""Maps the columns of the data to the normalised columns of the tasks, and decides which kind of rows they form.

A field of ``columns`` that the spec leaves out has its usual column name. The first rows show which kind of labels there are,
and which of the three formats an sft data set has.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic.alias_generators import to_camel

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import Columns, FineTuneJobSpec, ProblemType
from finetune_trainer.data.cells import choose_separator, is_list
from finetune_trainer.data.readers import Chunk

Format = Literal["text", "prompt", "messages"]
# Kinds of rows; _COLUMNS lists the normalised columns of each.
Kind = Literal["single", "multi", "regression", "words", "text", "prompt", "messages", "preference"]
_COLUMNS: dict[Kind, tuple[str, ...]] = {
    "single": ("text", "label"),
    "multi": ("text", "labels"),
    "regression": ("text", "label"),
    "words": ("tokens", "tags"),
    "text": ("text",),
    "prompt": ("prompt", "completion"),
    "messages": ("messages",),
    "preference": ("prompt", "chosen", "rejected"),
}
_PROBLEMS: dict[ProblemType, Kind] = {"SingleLabel": "single", "MultiLabel": "multi", "Regression": "regression"}
_FORMATS: tuple[Format, ...] = ("messages", "prompt", "text")  # in order of preference


@dataclasses.dataclass(frozen=True)
class ColumnMapping:
    """Columns of one data set.

    columns: normalised name → name in the data. field: spec field of the data set, for errors. optional: normalised names of
    columns that the data may lack. separator: of tags in one cell of a table.
    """

    kind: Kind
    columns: Mapping[str, str]
    field: str
    optional: frozenset[str] = frozenset()
    separator: str = ","

    def select(self, chunk: Chunk) -> dict[str, Sequence[Any]]:
        """Return the chunk's columns by normalised name. Raise FineTuneError for a missing column."""
        found = {}
        for name, source in self.columns.items():
            if source in chunk.columns:
                found[name] = chunk.columns[source]
            elif name not in self.optional:
                raise FineTuneError(
                    Reason.CONFIGURATION_ERROR,
                    f"{self.field}.columns.{to_camel(name)}: the data has no column {source!r}; write one of: "
                    f"{', '.join(chunk.columns)} ({chunk.location(0)})",
                )
        return found


@dataclasses.dataclass(frozen=True)
class Layout:
    """Properties that all data sets of a job share, and the columns of each data set."""

    kind: Kind
    problem: ProblemType | None
    format: Format | None
    mappings: Sequence[ColumnMapping]


def choose_layout(spec: FineTuneJobSpec, heads: Sequence[Chunk]) -> Layout:
    """Choose kind, problem, format and columns. heads: first rows of each data set. Raise FineTuneError if they do not match."""
    problem: ProblemType | None = None
    format_name: Format | None = None
    kind: Kind
    if spec.task == "text-classification":
        problem = _problem(spec, heads)
        kind = _PROBLEMS[problem]
    elif spec.task == "token-classification":
        kind = "words"
    elif spec.task == "sft":
        format_name = _format(spec, heads)
        kind = format_name
    else:
        kind = "preference" if spec.task == "dpo" else "text"
    mappings = [
        _column_mapping(kind, dataset.columns, f"spec.datasets[{i}]", heads[i]) for i, dataset in enumerate(spec.datasets)
    ]
    return Layout(kind, problem, format_name, mappings)


def _column_mapping(kind: Kind, columns: Columns, field: str, head: Chunk) -> ColumnMapping:
    names = {part: getattr(columns, part) or part for part in _COLUMNS[kind]}
    if kind == "multi" and columns.labels is None and (columns.label is not None or "labels" not in head.columns):
        names["labels"] = columns.label or "label"
    if kind in ("single", "multi", "regression") and columns.text_pair is not None:
        names["text_pair"] = columns.text_pair
    without_prompt = kind == "preference" and columns.prompt is None
    separator = choose_separator(head.columns.get(names["labels"], ())) if kind == "multi" else ","
    return ColumnMapping(kind, names, field, frozenset({"prompt"}) if without_prompt else frozenset(), separator)


def _problem(spec: FineTuneJobSpec, heads: Sequence[Chunk]) -> ProblemType:
    """Return the spec's problem type, else infer it from the labels: lists, numbers with decimals, or single classes."""
    asked = spec.classification.problem_type if spec.classification else None
    if asked is not None:
        return asked
    if any(dataset.columns.labels is not None for dataset in spec.datasets):
        return "MultiLabel"
    named = spec.classification is not None and spec.classification.labels is not None
    labels: list[Any] = []
    for dataset, head in zip(spec.datasets, heads, strict=True):
        name = dataset.columns.label or "label"
        if dataset.columns.label is None and name not in head.columns and "labels" in head.columns:
            name = "labels"
        labels += head.columns.get(name, ())
    if any(is_list(label) for label in labels):
        return "MultiLabel"
    return "Regression" if not named and _are_ratings(labels) else "SingleLabel"


def _are_ratings(labels: Iterable[Any]) -> bool:
    """Return whether all labels that are present are numbers, and at least one has decimals."""
    fractional = False
    for label in labels:
        if label is None or label == "":
            continue
        try:
            number = float(label)
        except (TypeError, ValueError):
            return False
        fractional = fractional or (number == number and not number.is_integer())
    return fractional


def _format(spec: FineTuneJobSpec, heads: Sequence[Chunk]) -> Format:
    """Return the format of sft rows: the one whose columns the spec names, else the first whose columns the data has."""
    found = [
        _format_of(dataset.columns, head, f"spec.datasets[{index}].columns")
        for index, (dataset, head) in enumerate(zip(spec.datasets, heads, strict=True))
    ]
    for index, name in enumerate(found):
        if name != found[0]:
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                f"spec.datasets[{index}].columns: this data set has {name}, the first {found[0]}; name columns of the same kind",
            )
    return found[0]


# Columns of well-known data sets → the columns of ours that hold the same.
_ALSO_KNOWN_AS = {
    "messages": ("conversations", "conversation", "chat", "dialogue"),
    "prompt": ("instruction", "question", "query", "input"),
    "completion": ("output", "response", "answer"),
}


def _format_of(columns: Columns, head: Chunk, field: str) -> Format:
    for name in _FORMATS:
        if any(getattr(columns, part) is not None for part in _COLUMNS[name]):
            return name
    present = next((name for name in _FORMATS if all(part in head.columns for part in _COLUMNS[name])), None)
    if present is None:
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"{field}: a row of sft is messages (role and content), or prompt and completion, or text, and the data has none of "
            f"these columns, but: {', '.join(head.columns)} ({head.location(0)}); name its columns{_proposal(head)}",
        )
    return present


def _proposal(head: Chunk) -> str:
    """Return the columns to write for data whose columns have other well-known names; "" if there are none."""
    for parts in (("messages",), ("prompt", "completion")):
        found = {part: next((name for name in _ALSO_KNOWN_AS[part] if name in head.columns), None) for part in parts}
        if all(found.values()):
            return f", for example {{{', '.join(f'{part}: {name}' for part, name in found.items())}}}"
    return ""
