"""Opens the data sets of ``spec.datasets`` as chunks: from the Hub or from files of a claim, whole or as a stream."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import ClaimDataset, FineTuneJobSpec, HubDataset
from finetune_api.spec import Dataset as DatasetSpec
from finetune_api.wire import RunConfig
from finetune_trainer.data import readers, splits
from finetune_trainer.data.files import FileSet, find_files
from finetune_trainer.data.readers import Chunk
from finetune_trainer.data.report import ReadCounts
from finetune_trainer.hub.client import explain_errors, hub_error
from finetune_trainer.runtime.disk import is_caused_by_full_disk

if TYPE_CHECKING:
    import datasets

_STREAM_CHUNK_ROWS = 1000
_UNKNOWN_ROWS = 2**40  # stands for the size of a split whose number of rows is not known


@dataclasses.dataclass
class Source:
    """An open data set. evaluation: None if it is held out from the training rows. head: the first chunk of ``train``."""

    spec: DatasetSpec
    field: str
    read_counts: ReadCounts
    train_name: str
    train: Iterator[Chunk]
    evaluation_name: str
    evaluation: Iterator[Chunk] | None
    head: Chunk = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.head = next(self.train, Chunk({}, lambda _: "no rows"))
        self.train = itertools.chain([self.head], self.train)


def open_sources(config: RunConfig, revisions: Sequence[str]) -> list[Source]:
    """Open all data sets of a job at their beginning. Raise FineTuneError."""
    return [open_source(config.spec, index, config.claims, revision) for index, revision in enumerate(revisions)]


def open_source(spec: FineTuneJobSpec, index: int, claims: Mapping[str, str], revision: str) -> Source:
    """Open one data set. claims: name → directory. revision: commit, or "" for the newest."""
    dataset, field = spec.datasets[index], f"spec.datasets[{index}]"
    if dataset.hub is not None:
        return _open_hub(dataset, dataset.hub, field, revision)
    assert dataset.claim is not None
    return _open_claim(dataset, dataset.claim, field, pathlib.Path(claims[dataset.claim.claim_name]), spec.task)


def _open_hub(spec: DatasetSpec, source: HubDataset, field: str, revision: str) -> Source:
    if spec.streaming:
        return _open_hub_stream(spec, source, field, revision)
    loaded: dict[str, datasets.Dataset] = _load_hub(source, field, revision, streaming=False)
    train, evaluation = splits.choose_splits({name: len(rows) for name, rows in loaded.items()}, spec, field)
    return Source(
        spec, field, ReadCounts(source.name),
        spec.train_split, _read_parts(loaded, train),
        spec.eval_split or (evaluation[0][0] if evaluation else ""), _read_parts(loaded, evaluation) if evaluation else None,
    )  # fmt: skip


def _open_hub_stream(spec: DatasetSpec, source: HubDataset, field: str, revision: str) -> Source:
    loaded: dict[str, datasets.IterableDataset] = _load_hub(source, field, revision, streaming=True)
    split_infos = {name: (rows.info.splits or {}).get(name) for name, rows in loaded.items()}
    sizes = {name: split.num_examples if split and split.num_examples else _UNKNOWN_ROWS for name, split in split_infos.items()}
    for expression, what in ((spec.train_split, "trainSplit"), (spec.eval_split or "", "evalSplit")):
        if _UNKNOWN_ROWS in sizes.values() and set(expression) & set("%-"):
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                f"{field}.{what}: {expression!r} needs the number of rows, which {source.name} does not say; write for example "
                "train[1000:], or a whole split",
            )
    train, evaluation = splits.choose_splits(sizes, spec, field)
    read = functools.partial(_stream_parts, loaded, sizes, f"{field}.hub", source.name)
    return Source(
        spec, field, ReadCounts(source.name),
        spec.train_split, read(train),
        spec.eval_split or (evaluation[0][0] if evaluation else ""), read(evaluation) if evaluation else None,
    )  # fmt: skip


def _stream_parts(
    loaded: "Mapping[str, datasets.IterableDataset]",
    sizes: Mapping[str, int],
    field: str,
    name: str,
    parts: Sequence[splits.Part],
) -> Iterator[Chunk]:
    with explain_errors(field, name, Reason.DATASET_NOT_FOUND):
        for split, start, stop in parts:
            rows = loaded[split].skip(start) if start else loaded[split]
            rows = rows.take(stop - start) if stop < sizes[split] else rows
            declared = readers.class_names(rows.features.to_dict() if rows.features else {})
            for columns in rows.iter(_STREAM_CHUNK_ROWS):
                first = start
                start += len(next(iter(columns.values())))
                yield Chunk(columns, _row_location(split, first), declared)


def _row_location(split: str, first: int) -> Callable[[int], str]:
    """Return a function that locates the rows of a chunk. first: index in the split of the chunk's first row."""
    return lambda row: f"split {split}, row {first + row + 1}"


def _load_hub(source: HubDataset, field: str, revision: str, streaming: bool) -> dict[str, Any]:
    import datasets  # imported late: it takes a second, and files do not need it

    datasets.disable_progress_bars()
    with explain_errors(f"{field}.hub", source.name, Reason.DATASET_NOT_FOUND):
        try:
            loaded = datasets.load_dataset(source.name, source.config, revision=revision or None, streaming=streaming)
        except datasets.exceptions.DatasetNotFoundError as error:
            raise FineTuneError(Reason.DATASET_NOT_FOUND, f"{field}.hub.name: {error}") from None
        except (ValueError, datasets.exceptions.DatasetGenerationError) as error:
            if behind := hub_error(error):
                raise behind from None  # explain_errors() explains the Hub's own error
            if is_caused_by_full_disk(error):
                raise
            what = f"{field}.hub.config" if "config" in str(error).lower() else f"{field}.hub"
            raise FineTuneError(Reason.DATA_ERROR, f"{what}: {str(error).strip().splitlines()[0][:300]}") from None
    return {str(name): split for name, split in loaded.items()}


def _read_parts(loaded: "Mapping[str, datasets.Dataset]", parts: Sequence[splits.Part]) -> Iterator[Chunk]:
    for name, start, stop in parts:
        rows = loaded[name]
        declared = readers.class_names(rows.features.to_dict())
        for first in range(start, stop, readers.CHUNK_ROWS):
            columns = rows[first : min(first + readers.CHUNK_ROWS, stop)]
            yield Chunk(columns, _row_location(name, first), declared)


def _open_claim(spec: DatasetSpec, source: ClaimDataset, field: str, root: pathlib.Path, task: str) -> Source:
    found = claim_files(source, field, root)
    train_name, evaluation_name = splits.split_names(list(found.splits), spec, field)
    read_counts = ReadCounts("/".join(filter(None, (source.claim_name, source.path))))
    if found.ignored:
        read_counts.notes["file(s) not read, as their names indicate no split"] += found.ignored
    format_name = "words" if found.format == "text" and task == "token-classification" else found.format
    labelled = task == "text-classification"
    chunks = {name: readers.read_files(format_name, files, read_counts.notes, labelled) for name, files in found.splits.items()}
    evaluation = chunks[evaluation_name] if evaluation_name else None
    return Source(spec, field, read_counts, train_name, chunks[train_name], evaluation_name or "", evaluation)


def claim_files(source: ClaimDataset, field: str, root: pathlib.Path) -> FileSet:
    """Return the files by split. Files of evalPath become the split validation. Raise FineTuneError."""
    found = find_files(root, source.path, source.format, f"{field}.claim.path")
    if not source.eval_path:
        return found
    evaluation = find_files(root, source.eval_path, source.format or found.format, f"{field}.claim.evalPath")
    if len(evaluation.splits) > 1:
        raise FineTuneError(
            Reason.DATA_ERROR,
            f"{field}.claim.evalPath: holds several splits ({', '.join(evaluation.splits)}); name the file of one of them",
        )
    return FileSet(found.format, {**found.splits, "validation": next(iter(evaluation.splits.values()))}, found.ignored)
