"""Loads ``spec.datasets`` into one training set and one evaluation set with the columns of the task. Does not import torch."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import Dataset as DatasetSpec
from finetune_api.spec import FineTuneJobSpec, ProblemType
from finetune_api.wire import RunConfig
from finetune_trainer.data import splits
from finetune_trainer.data.classes import LABEL_COLUMNS, count_labels, name_numbers, refuse_unknown_labels, resolve_classes
from finetune_trainer.data.columns import ColumnMapping, Format, Layout, choose_layout
from finetune_trainer.data.labels import describe_labels
from finetune_trainer.data.normalise import normalise
from finetune_trainer.data.readers import Chunk
from finetune_trainer.data.report import DataReport, count_disagreeing, overlap
from finetune_trainer.data.sources import Source, open_source, open_sources

# For streamed data: rows of the training sample, evaluation rows, and how many rows are read to draw the evaluation rows from.
_SAMPLE_ROWS = 1000
_STREAM_EVALUATION_ROWS = 1000
_STREAM_EVALUATION_READ = 100_000


@dataclasses.dataclass(frozen=True)
class Data:
    """Training and evaluation rows, with the columns that `Task.encode` gets. If data is streamed, ``train`` is a sample.

    classes: names of the classes or tags in their order. counts: how often each occurs in the training data; may be 0.
    """

    train: pa.Table
    evaluation: pa.Table
    classes: Sequence[str]
    counts: Sequence[int]
    problem: ProblemType | None
    format: Format | None
    report: DataReport


def load_data(config: RunConfig, revisions: Sequence[str]) -> Data:
    """Read, normalise, split and combine all data sets. Raise FineTuneError that names the field to change.

    revisions: commit of each data set on the Hub; "" for the newest commit, and for a claim.
    """
    spec = config.spec
    sources = open_sources(config, revisions)
    layout = choose_layout(spec, [source.head for source in sources])
    trains, evaluations, found = [], [], set[str]()
    column = LABEL_COLUMNS.get(layout.kind)
    for source, mapping in zip(sources, layout.mappings, strict=True):
        train, evaluation, names = _load(source, mapping, column, spec.training.seed)
        trains.append(train)
        evaluations.append(evaluation)
        found |= names
    train, evaluation = _concatenated(trains), _concatenated(evaluations)
    if weights := [dataset.weight for dataset in spec.datasets if dataset.weight is not None]:  # all have a weight, or none
        train = train.take(splits.interleave([len(rows) for rows in trains], weights, spec.training.seed))
    classes, counts = list[str](), list[int]()
    if column is not None:
        declared = [
            source.head.classes.get(mapping.columns[column]) for source, mapping in zip(sources, layout.mappings, strict=True)
        ]
        given = spec.classification.labels if spec.classification else None
        if spec.streaming and given is None and (declared[0] is None or any(names != declared[0] for names in declared)):
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                "spec.classification.labels: streaming does not look through all data for the classes: list them, in their order",
            )
        classes = resolve_classes(given, declared, found)
        train, counts = _with_classes(train, column, classes, "training", given is not None)
        evaluation, _ = _with_classes(evaluation, column, classes, "evaluation", given is not None)
    report = _report(spec, sources, layout, train, evaluation, dict(zip(classes, counts, strict=True)))
    return Data(train, evaluation, classes, counts, layout.problem, layout.format, report)


def _report(
    spec: FineTuneJobSpec,
    sources: Sequence[Source],
    layout: Layout,
    train: pa.Table,
    evaluation: pa.Table,
    counts: Mapping[str, int],
) -> DataReport:
    duplicates, shared = overlap(train, evaluation)
    mapping = layout.mappings[0]
    column = next((mapping.columns[name] for name in ("label", "labels", "tags") if name in mapping.columns), "")
    inferred = spec.classification is None or (spec.classification.problem_type is None and spec.classification.labels is None)
    in_cells = any(isinstance(cell, str) for cell in sources[0].head.columns.get(column, ()))
    skipped = sum((source.read_counts.skipped for source in sources), collections.Counter[str]())
    labelled = LABEL_COLUMNS.get(layout.kind)
    labels = describe_labels(layout.kind, column, mapping.separator if in_cells else None, inferred, train, counts)
    return DataReport(
        [source.read_counts.line() for source in sources],
        len(train),
        len(evaluation),
        duplicates,
        shared,
        counts,
        streaming=spec.streaming,
        labels=labels.what if labels else "",
        hints=labels.hints if labels else (),
        read=sum(source.read_counts.read.total() for source in sources),
        skipped=dict(skipped),
        disagreeing=count_disagreeing(train, labelled) if labelled is not None else 0,
    )


def count_rows(spec: FineTuneJobSpec, index: int, claims: Mapping[str, str]) -> tuple[int, int]:
    """Return the training and evaluation rows of one data set in a given claim, counted as the training does."""
    source = open_source(spec, index, claims, "")
    layout = choose_layout(spec.model_copy(update={"datasets": [spec.datasets[index]]}), [source.head])
    mapping = dataclasses.replace(layout.mappings[0], field=source.field)
    train, evaluation, _ = _load(source, mapping, LABEL_COLUMNS.get(layout.kind), spec.training.seed)
    return len(train), len(evaluation)


def count_from_split_sizes(listed: Mapping[str, int], dataset: DatasetSpec, field: str) -> tuple[int, int]:
    """Return the training and evaluation rows of a data set on the Hub. listed: rows of each split, also those without text."""
    train, evaluation = splits.choose_splits(listed, dataset, field)
    rows = sum(stop - start for _, start, stop in train)
    if evaluation is None:
        held_out = round(rows * (dataset.eval_fraction or splits.DEFAULT_EVAL_FRACTION))
        rows -= held_out
    else:
        held_out = sum(stop - start for _, start, stop in evaluation)
    return min(rows, dataset.max_train_samples or rows), min(held_out, dataset.max_eval_samples or held_out)


def _with_classes(table: pa.Table, column: str, classes: Sequence[str], which: str, given: bool) -> tuple[pa.Table, list[int]]:
    """Return the table with names instead of label numbers, and how often each class occurs."""
    if given:
        table = name_numbers(table, column, classes)
    counts = count_labels(table, column)
    refuse_unknown_labels(counts, classes, which, given)
    return table, [counts[name] for name in classes]


def _load(source: Source, mapping: ColumnMapping, column: str | None, seed: int) -> tuple[pa.Table, pa.Table, set[str]]:
    """Return training rows, evaluation rows, and all labels of the training data before it is split."""
    spec = source.spec
    if spec.streaming:
        return _load_sample(source, mapping, seed)
    train = normalise(source.train, mapping, source.train_name, source.read_counts)
    found = set(count_labels(train, column)) if column is not None else set()
    if source.evaluation is not None:
        evaluation = normalise(source.evaluation, mapping, source.evaluation_name, source.read_counts)
    else:
        by = train["label"] if column == "label" else None
        kept, held_out = splits.hold_out(len(train), by, spec.eval_fraction or splits.DEFAULT_EVAL_FRACTION, seed)
        if not len(held_out):
            raise FineTuneError(
                Reason.DATA_ERROR,
                f"{source.field}: {len(train)} row(s) are too few to hold any out for evaluation; name evaluation data "
                "(evalSplit, or evalPath of a claim)",
            )
        train, evaluation = train.take(kept), train.take(held_out)
    return _sampled(train, spec.max_train_samples, seed), _sampled(evaluation, spec.max_eval_samples, seed), found


def _load_sample(source: Source, mapping: ColumnMapping, seed: int) -> tuple[pa.Table, pa.Table, set[str]]:
    """Return the first training rows and the evaluation rows of streamed data, and an empty set of labels."""
    spec = source.spec
    if source.evaluation is None:
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"{source.field}: streaming can't hold rows out, and there is no split validation or test; name evaluation data "
            "(evalSplit, or evalPath of a claim)",
        )
    train = normalise([source.head], mapping, source.train_name, source.read_counts)
    max_rows = spec.max_eval_samples or _STREAM_EVALUATION_ROWS
    first = _take_rows(source.evaluation, max(_STREAM_EVALUATION_READ, max_rows))
    evaluation = normalise(first, mapping, source.evaluation_name, source.read_counts)
    return train.slice(0, min(_SAMPLE_ROWS, spec.max_train_samples or _SAMPLE_ROWS)), _sampled(evaluation, max_rows, seed), set()


def _take_rows(chunks: Iterator[Chunk], rows: int) -> Iterator[Chunk]:
    """Yield the first chunks, until they have at least ``rows`` rows."""
    for chunk in chunks:
        yield chunk
        rows -= len(chunk)
        if rows <= 0:
            return


def _sampled(table: pa.Table, max_rows: int | None, seed: int) -> pa.Table:
    rows = splits.sample_rows(len(table), max_rows, seed)
    return table if rows is None else table.take(rows)


def _concatenated(tables: Sequence[pa.Table]) -> pa.Table:
    """Concatenate the tables. A column that a table lacks (the second text of a pair) is empty."""
    names = dict.fromkeys(name for table in tables for name in table.column_names)
    filled = []
    for table in tables:
        for name in names:
            if name not in table.column_names:
                table = table.append_column(name, pa.array([""] * len(table), pa.large_string()))
        filled.append(table.select(list(names)))
    if any(table.schema != filled[0].schema for table in filled):
        raise FineTuneError(Reason.DATA_ERROR, "spec.datasets: some have texts and some have messages; write one kind in all")
    return pa.concat_tables(filled)
