"""Load what ``spec.datasets`` names, as one training set and one evaluation set with the columns of the task. Without torch."""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import ClaimDataset, FineTuneJobSpec, HubDataset, ProblemType
from finetune_api.spec import Dataset as DatasetSpec
from finetune_api.wire import RunConfig
from finetune_trainer import hub
from finetune_trainer.data import classes as labels
from finetune_trainer.data import readers, splits
from finetune_trainer.data.columns import Format, Wanted, choose_layout
from finetune_trainer.data.files import Found, find_files
from finetune_trainer.data.normalise import normalise
from finetune_trainer.data.readers import Chunk
from finetune_trainer.data.report import DataReport, Tally, overlap

if TYPE_CHECKING:
    import datasets


@dataclasses.dataclass(frozen=True)
class Data:
    """Rows to train and to evaluate on, with the columns that `Task.encode` gets.

    classes: names of the classes or tags in their order; counts: how often each occurs in the training data, perhaps 0.
    """

    train: pa.Table
    evaluation: pa.Table
    classes: Sequence[str]
    counts: Sequence[int]
    problem: ProblemType | None
    format: Format | None
    report: DataReport


@dataclasses.dataclass
class Source:
    """One data set, opened. evaluation: None where rows of train are to be held out. head: the first rows of train."""

    spec: DatasetSpec
    field: str
    tally: Tally
    train_name: str
    train: Iterator[Chunk]
    evaluation_name: str
    evaluation: Iterator[Chunk] | None
    head: Chunk = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.head = next(self.train, Chunk({}, lambda _: "no rows"))
        self.train = itertools.chain([self.head], self.train)


def load_data(config: RunConfig, revisions: Sequence[str]) -> Data:
    """Read, normalise, split, and put together all data sets. Raises FineTuneError that names the field to change.

    revisions: commit of each data set of the Hub, "" for the newest and for a claim's.
    """
    spec = config.spec
    sources = [_open(spec, index, config.claims, revisions[index]) for index in range(len(spec.datasets))]
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
        classes = labels.settle_classes(given, declared, found)
        train, counts = _with_classes(train, column, classes, "training", given is not None)
        evaluation, _ = _with_classes(evaluation, column, classes, "evaluation", given is not None)
    duplicates, shared = overlap(train, evaluation)
    report = DataReport(
        [source.tally.line() for source in sources],
        len(train), len(evaluation), duplicates, shared, dict(zip(classes, counts, strict=True)),
    )  # fmt: skip
    return Data(train, evaluation, classes, counts, layout.problem, layout.format, report)


def count_rows(spec: FineTuneJobSpec, index: int, claims: Mapping[str, str]) -> tuple[int, int]:
    """Rows to train and to evaluate on of one data set in a claim that is given, counted as the training does."""
    source = _open(spec, index, claims, "")
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


# --- opening ----------------------------------------------------------------------------------------------------------------


def _open(spec: FineTuneJobSpec, index: int, claims: Mapping[str, str], revision: str) -> Source:
    dataset, field = spec.datasets[index], f"spec.datasets[{index}]"
    if dataset.hub is not None:
        return _open_hub(dataset, dataset.hub, field, revision)
    assert dataset.claim is not None
    return _open_claim(dataset, dataset.claim, field, pathlib.Path(claims[dataset.claim.claim_name]), spec.task)


def _open_hub(spec: DatasetSpec, source: HubDataset, field: str, revision: str) -> Source:
    loaded = _load_hub(source, field, revision)
    train, evaluation = splits.choose_splits({name: len(rows) for name, rows in loaded.items()}, spec, field)
    return Source(
        spec, field, Tally(source.name),
        spec.train_split, _read_parts(loaded, train),
        spec.eval_split or (evaluation[0][0] if evaluation else ""), _read_parts(loaded, evaluation) if evaluation else None,
    )  # fmt: skip


def _load_hub(source: HubDataset, field: str, revision: str) -> "dict[str, datasets.Dataset]":
    import datasets  # late: it takes a second, and files do without it

    datasets.disable_progress_bars()
    with hub.explained(f"{field}.hub", source.name, Reason.DATASET_NOT_FOUND):
        try:
            loaded = datasets.load_dataset(source.name, source.config, revision=revision or None)
        except datasets.exceptions.DatasetNotFoundError as error:
            raise FineTuneError(Reason.DATASET_NOT_FOUND, f"{field}.hub.name: {error}") from None
        except (ValueError, datasets.exceptions.DatasetGenerationError) as error:
            what = f"{field}.hub.config" if "config" in str(error).lower() else f"{field}.hub"
            raise FineTuneError(Reason.DATA_ERROR, f"{what}: {str(error).strip().splitlines()[0][:300]}") from None
    return {str(name): split for name, split in loaded.items()}


def _read_parts(loaded: "Mapping[str, datasets.Dataset]", parts: Sequence[splits.Part]) -> Iterator[Chunk]:
    for name, start, stop in parts:
        rows = loaded[name]
        declared = readers.class_names(rows.features.to_dict())
        for first in range(start, stop, readers.CHUNK_ROWS):
            columns = rows[first : min(first + readers.CHUNK_ROWS, stop)]
            yield Chunk(columns, lambda row, name=name, first=first: f"split {name}, row {first + row + 1}", declared)


def _open_claim(spec: DatasetSpec, source: ClaimDataset, field: str, root: pathlib.Path, task: str) -> Source:
    found = claim_files(source, field, root)
    train_name, evaluation_name = splits.split_names(list(found.splits), spec, field)
    tally = Tally("/".join(filter(None, (source.claim_name, source.path))))
    if found.ignored:
        tally.notes["file(s) not read, as their names say no split"] += found.ignored
    format_name = "words" if found.format == "text" and task == "token-classification" else found.format
    labelled = task == "text-classification"
    chunks = {name: readers.read_files(format_name, files, tally.notes, labelled) for name, files in found.splits.items()}
    evaluation = chunks[evaluation_name] if evaluation_name else None
    return Source(spec, field, tally, train_name, chunks[train_name], evaluation_name or "", evaluation)


def claim_files(source: ClaimDataset, field: str, root: pathlib.Path) -> Found:
    """Files by split; those of evalPath are validation. Raises FineTuneError."""
    found = find_files(root, source.path, source.format, f"{field}.claim.path")
    if not source.eval_path:
        return found
    evaluation = find_files(root, source.eval_path, source.format or found.format, f"{field}.claim.evalPath")
    if len(evaluation.splits) > 1:
        raise FineTuneError(
            Reason.DATA_ERROR,
            f"{field}.claim.evalPath: holds several splits ({', '.join(evaluation.splits)}); name the file of one of them",
        )
    return Found(found.format, {**found.splits, "validation": next(iter(evaluation.splits.values()))}, found.ignored)
