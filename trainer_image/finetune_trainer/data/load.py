"""Load what ``spec.datasets`` names, as one training set and one evaluation set with the columns of the task. Without torch."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import Dataset as DatasetSpec
from finetune_api.spec import FineTuneJobSpec, ProblemType
from finetune_api.wire import RunConfig
from finetune_trainer.data import classes as labels
from finetune_trainer.data import splits
from finetune_trainer.data.columns import Format, Wanted, choose_layout
from finetune_trainer.data.normalise import normalise
from finetune_trainer.data.readers import Chunk
from finetune_trainer.data.report import DataReport, overlap
from finetune_trainer.data.sources import Source, open_source, open_sources

# Of data that is streamed: the first rows to train on, which tell what they are like; rows to evaluate on, drawn from the first.
_SAMPLE_ROWS = 1000
_STREAM_EVALUATION_ROWS = 1000
_STREAM_EVALUATION_READ = 100_000


@dataclasses.dataclass(frozen=True)
class Data:
    """Rows to train and to evaluate on, with the columns that `Task.encode` gets. Of data that is streamed train is a sample.

    classes: names of the classes or tags in their order; counts: how often each occurs in the training data, perhaps 0.
    """

    train: pa.Table
    evaluation: pa.Table
    classes: Sequence[str]
    counts: Sequence[int]
    problem: ProblemType | None
    format: Format | None
    report: DataReport


def load_data(config: RunConfig, revisions: Sequence[str]) -> Data:
    """Read, normalise, split, and put together all data sets. Raises FineTuneError that names the field to change.

    revisions: commit of each data set of the Hub, "" for the newest and for a claim's.
    """
    spec = config.spec
    sources = open_sources(config, revisions)
    layout = choose_layout(spec, [source.head for source in sources])
    trains, evaluations, found = [], [], set[str]()
    column = labels.COLUMNS.get(layout.kind)
    for source, wanted in zip(sources, layout.wanted, strict=True):
        train, evaluation, names = _load(source, wanted, column, spec.training.seed)
        trains.append(train)
        evaluations.append(evaluation)
        found |= names
    train, evaluation = _concatenated(trains), _concatenated(evaluations)
    if weights := [dataset.weight for dataset in spec.datasets if dataset.weight is not None]:  # of all or of none
        train = train.take(splits.interleave([len(rows) for rows in trains], weights, spec.training.seed))
    classes, counts = list[str](), list[int]()
    if column is not None:
        declared = [
            source.head.classes.get(wanted.columns[column]) for source, wanted in zip(sources, layout.wanted, strict=True)
        ]
        given = spec.classification.labels if spec.classification else None
        if spec.streaming and given is None and (declared[0] is None or any(names != declared[0] for names in declared)):
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                "spec.classification.labels: streaming does not look through all data for the classes: list them, in their order",
            )
        classes = labels.settle_classes(given, declared, found)
        train, counts = _with_classes(train, column, classes, "training", given is not None)
        evaluation, _ = _with_classes(evaluation, column, classes, "evaluation", given is not None)
    duplicates, shared = overlap(train, evaluation)
    report = DataReport(
        [source.tally.line() for source in sources],
        len(train), len(evaluation), duplicates, shared, dict(zip(classes, counts, strict=True)), streaming=spec.streaming,
    )  # fmt: skip
    return Data(train, evaluation, classes, counts, layout.problem, layout.format, report)


def count_rows(spec: FineTuneJobSpec, index: int, claims: Mapping[str, str]) -> tuple[int, int]:
    """Rows to train and to evaluate on of one data set in a claim that is given, counted as the training does."""
    source = open_source(spec, index, claims, "")
    layout = choose_layout(spec.model_copy(update={"datasets": [spec.datasets[index]]}), [source.head])
    wanted = dataclasses.replace(layout.wanted[0], field=source.field)
    train, evaluation, _ = _load(source, wanted, labels.COLUMNS.get(layout.kind), spec.training.seed)
    return len(train), len(evaluation)


def count_listed(listed: Mapping[str, int], dataset: DatasetSpec, field: str) -> tuple[int, int]:
    """The same of a data set of the Hub, whose splits have so many rows; those without a text are counted too."""
    train, evaluation = splits.choose_splits(listed, dataset, field)
    rows = sum(stop - start for _, start, stop in train)
    if evaluation is None:
        held_out = round(rows * (dataset.eval_fraction or splits.DEFAULT_EVAL_FRACTION))
        rows -= held_out
    else:
        held_out = sum(stop - start for _, start, stop in evaluation)
    return min(rows, dataset.max_train_samples or rows), min(held_out, dataset.max_eval_samples or held_out)


def _with_classes(table: pa.Table, column: str, classes: Sequence[str], which: str, given: bool) -> tuple[pa.Table, list[int]]:
    """The table with names for labels that were numbers, and how often each class occurs in it."""
    if given:
        table = labels.name_numbers(table, column, classes)
    counts = labels.count_labels(table, column)
    labels.refuse_unknown(counts, classes, which, given)
    return table, [counts[name] for name in classes]


def _load(source: Source, wanted: Wanted, column: str | None, seed: int) -> tuple[pa.Table, pa.Table, set[str]]:
    """Rows to train and to evaluate on, and all labels that were found where rows to train on come from."""
    spec = source.spec
    if spec.streaming:
        return _load_sample(source, wanted, seed)
    train = normalise(source.train, wanted, source.train_name, source.tally)
    found = set(labels.count_labels(train, column)) if column is not None else set()
    if source.evaluation is not None:
        evaluation = normalise(source.evaluation, wanted, source.evaluation_name, source.tally)
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
    return _drawn(train, spec.max_train_samples, seed), _drawn(evaluation, spec.max_eval_samples, seed), found


def _load_sample(source: Source, wanted: Wanted, seed: int) -> tuple[pa.Table, pa.Table, set[str]]:
    """The same of data that is streamed: the first rows to train on, rows to evaluate on, and no labels."""
    spec = source.spec
    if source.evaluation is None:
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"{source.field}: streaming can't hold rows out, and there is no split validation or test; name evaluation data "
            "(evalSplit, or evalPath of a claim)",
        )
    train = normalise([source.head], wanted, source.train_name, source.tally)
    most = spec.max_eval_samples or _STREAM_EVALUATION_ROWS
    first = _until(source.evaluation, max(_STREAM_EVALUATION_READ, most))
    evaluation = normalise(first, wanted, source.evaluation_name, source.tally)
    return train.slice(0, min(_SAMPLE_ROWS, spec.max_train_samples or _SAMPLE_ROWS)), _drawn(evaluation, most, seed), set()


def _until(chunks: Iterator[Chunk], rows: int) -> Iterator[Chunk]:
    """The first ones, with so many rows or a few more."""
    for chunk in chunks:
        yield chunk
        rows -= len(chunk)
        if rows <= 0:
            return


def _drawn(table: pa.Table, most: int | None, seed: int) -> pa.Table:
    rows = splits.draw(len(table), most, seed)
    return table if rows is None else table.take(rows)


def _concatenated(tables: Sequence[pa.Table]) -> pa.Table:
    """All rows of all; the second text of a pair is empty where a data set has none."""
    names = dict.fromkeys(name for table in tables for name in table.column_names)
    filled = []
    for table in tables:
        for name in names:
            if name not in table.column_names:
                table = table.append_column(name, pa.array([""] * len(table), pa.large_string()))
        filled.append(table.select(list(names)))
    if any(table.schema != filled[0].schema for table in filled):
        raise FineTuneError(Reason.DATA_ERROR, "spec.datasets: some have texts and some have messages; write all alike")
    return pa.concat_tables(filled)
