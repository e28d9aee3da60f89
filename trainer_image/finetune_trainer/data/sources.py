"""Open the data sets that ``spec.datasets`` names: of the Hub or files of a claim, whole or as a stream, they become chunks."""

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
from finetune_trainer.data.files import Found, find_files
from finetune_trainer.data.readers import Chunk
from finetune_trainer.data.report import Tally
from finetune_trainer.hub import client as hub
from finetune_trainer.runtime.disk import is_disk_full

if TYPE_CHECKING:
    import datasets

_STREAM_CHUNK_ROWS = 1000
_UNCOUNTED = 2**40  # rows of a split of which nobody says how many it has


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


def open_sources(config: RunConfig, revisions: Sequence[str]) -> list[Source]:
    """All data sets of a job, opened at their beginning. Raises FineTuneError."""
    return [open_source(config.spec, index, config.claims, revision) for index, revision in enumerate(revisions)]


def open_source(spec: FineTuneJobSpec, index: int, claims: Mapping[str, str], revision: str) -> Source:
    """One of them. claims: name → directory. revision: commit, or "" for the newest."""
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
        spec, field, Tally(source.name),
        spec.train_split, _read_parts(loaded, train),
        spec.eval_split or (evaluation[0][0] if evaluation else ""), _read_parts(loaded, evaluation) if evaluation else None,
    )  # fmt: skip


def _open_hub_stream(spec: DatasetSpec, source: HubDataset, field: str, revision: str) -> Source:
    loaded: dict[str, datasets.IterableDataset] = _load_hub(source, field, revision, streaming=True)
    told = {name: (rows.info.splits or {}).get(name) for name, rows in loaded.items()}
    sizes = {name: split.num_examples if split and split.num_examples else _UNCOUNTED for name, split in told.items()}
    for expression, what in ((spec.train_split, "trainSplit"), (spec.eval_split or "", "evalSplit")):
        if _UNCOUNTED in sizes.values() and set(expression) & set("%-"):
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                f"{field}.{what}: {expression!r} needs the number of rows, which {source.name} does not say; write for example "
                "train[1000:], or a whole split",
            )
    train, evaluation = splits.choose_splits(sizes, spec, field)
    read = functools.partial(_stream_parts, loaded, sizes, f"{field}.hub", source.name)
    return Source(
        spec, field, Tally(source.name),
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
    with hub.explained(field, name, Reason.DATASET_NOT_FOUND):
        for split, start, stop in parts:
            rows = loaded[split].skip(start) if start else loaded[split]
            rows = rows.take(stop - start) if stop < sizes[split] else rows
            declared = readers.class_names(rows.features.to_dict() if rows.features else {})
            for columns in rows.iter(_STREAM_CHUNK_ROWS):
                first = start
                start += len(next(iter(columns.values())))
                yield Chunk(columns, _place(split, first), declared)


def _place(split: str, first: int) -> Callable[[int], str]:
    """Names rows of a chunk that begins with that row of a split."""
    return lambda row: f"split {split}, row {first + row + 1}"


def _load_hub(source: HubDataset, field: str, revision: str, streaming: bool) -> dict[str, Any]:
    import datasets  # late: it takes a second, and files do without it

    datasets.disable_progress_bars()
    with hub.explained(f"{field}.hub", source.name, Reason.DATASET_NOT_FOUND):
        try:
            loaded = datasets.load_dataset(source.name, source.config, revision=revision or None, streaming=streaming)
        except datasets.exceptions.DatasetNotFoundError as error:
            raise FineTuneError(Reason.DATASET_NOT_FOUND, f"{field}.hub.name: {error}") from None
        except (ValueError, datasets.exceptions.DatasetGenerationError) as error:
            if behind := hub.hub_error(error):
                raise behind from None  # the Hub's own: explained as such
            if is_disk_full(error):
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
            yield Chunk(columns, _place(name, first), declared)


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
