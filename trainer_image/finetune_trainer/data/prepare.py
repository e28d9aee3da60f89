"""From the spec to tokenised rows on disk: made once by rank 0, opened by all ranks, kept for restarts and other jobs."""

import collections
import dataclasses
import errno
import itertools
import logging
import multiprocessing
import os
import pathlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.wire import RunConfig
from finetune_trainer.data import cache
from finetune_trainer.data.fingerprint import describe_contents, fingerprint
from finetune_trainer.data.load import Data, load_data
from finetune_trainer.data.report import DataReport, Lengths
from finetune_trainer.tasks.base import DataInfo, Task

if TYPE_CHECKING:
    import datasets

log = logging.getLogger(__name__)

BATCH_ROWS = 1000  # of one call of encode(), whose result may depend on it (texts laid end to end)
_MASKS = ("attention_mask", "token_type_ids", "special_tokens_mask")
# Other processes start in about this time; they pay where the work is several times as long.
_PROCESS_START_SECONDS = 8.0
_FEW_BATCHES = 20  # for which other processes do not pay once more
_NFS_SECONDS = 60.0  # for so long a machine may believe that a new file is not there


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Tokenised rows: columns as Task.encode returns them, and ``length`` (int32, tokens). Can be pickled.

    report: as it was when the data was read, perhaps by another job. contents: of each data set, see describe_contents.
    """

    directory: str
    info: DataInfo
    report: DataReport
    train_rows: int
    evaluation_rows: int
    contents: Sequence[str] = ()

    def open(self) -> "tuple[datasets.Dataset, datasets.Dataset]":
        """Rows to train on and rows to evaluate on, mapped from disk: they take no memory of their own."""
        import datasets

        directory = pathlib.Path(self.directory)
        deadline = time.monotonic() + _NFS_SECONDS
        while cache.read(directory) is None:
            if time.monotonic() > deadline:
                raise FileNotFoundError(errno.ENOENT, "the tokenised data is gone", self.directory)
            time.sleep(1)
        train, evaluation = (datasets.Dataset.from_file(str(directory / f"{name}.arrow")) for name in ("train", "evaluation"))
        return train, evaluation


def prepare(config: RunConfig, revisions: Sequence[str], tokenizer: Any, model_config: Any, task_type: type[Task]) -> Prepared:
    """Find the tokenised rows, or make them. Raises FineTuneError for data that can't be trained on, and for a full disk.

    revisions: commit of each data set of the Hub, "" for a claim's. On one rank only.
    """
    contents = describe_contents(config, revisions)
    key = fingerprint(config, contents, tokenizer, model_config, task_type)
    roots = cache.places(config.output, config.nodes)
    found = cache.find(roots, key)
    if found is not None:
        prepared = _prepared(*found)
        log.info("the data is tokenised already: %s", prepared.directory)
    else:
        prepared = _make(config, revisions, tokenizer, model_config, task_type, roots, key)
    cache.tidy(config.output, roots, pathlib.Path(prepared.directory))
    for line in prepared.report.lines():
        log.info("%s", line)
    return dataclasses.replace(prepared, contents=contents)


def _prepared(directory: pathlib.Path, kept: Mapping[str, Any]) -> Prepared:
    info, report = DataInfo(**kept["info"]), DataReport.from_json(kept["report"])
    return Prepared(str(directory), info, report, kept["train"], kept["evaluation"])


def _make(
    config: RunConfig, revisions: Sequence[str], tokenizer: Any, model_config: Any, task_type: type[Task],
    roots: Sequence[pathlib.Path], key: str,
) -> Prepared:  # fmt: skip
    work = _Work.begin(config, load_data(config, revisions), tokenizer, model_config, task_type)
    with cache.turn(roots[0], key, lambda: cache.find(roots, key) is not None, work.seconds) as turn:
        found = cache.find(roots, key)
        if found is None:
            try:
                directory = cache.write(roots, key, lambda unfinished: work.write(unfinished, turn))
            except OSError as error:
                raise FineTuneError(
                    Reason.DISK_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else Reason.CONFIGURATION_ERROR,
                    f"spec.output: the tokenised data can't be written to {roots[-1]}: {error.strerror or error}",
                ) from error
            found = cache.find([directory.parent], key)
            assert found is not None, "it was just written"
    return _prepared(*found)


@dataclasses.dataclass(frozen=True)
class _Work:
    """What is to be tokenised. first: the first batch of the training data, which told how long all will take.

    workers: processes to do it with, 0 for this one alone. seconds: that the rest will take.
    """

    task: Task
    data: Data
    first: "Encoded"
    workers: int
    seconds: float

    @classmethod
    def begin(cls, config: RunConfig, data: Data, tokenizer: Any, model_config: Any, task_type: type[Task]) -> "_Work":
        info = DataInfo(list(data.classes), list(data.counts), data.problem, data.format)
        task = task_type(config.spec, tokenizer, model_config, info)
        begin = time.monotonic()
        first = _encode(task, data.train.slice(0, BATCH_ROWS))
        rows = len(data.train) + len(data.evaluation)
        seconds = (time.monotonic() - begin) * max(0, rows - BATCH_ROWS) / BATCH_ROWS
        # A tokenizer with code of its own may not be there for another process to import.
        workers = 0 if config.spec.model.trust_remote_code else _workers(seconds)
        return cls(task, data, first, workers, seconds / max(workers, 1))

    def write(self, directory: pathlib.Path, turn: cache.Turn) -> Mapping[str, Any]:
        """Fill an entry of the cache."""
        rest = _encoded(self.task, self.data.train.slice(BATCH_ROWS), self.workers)
        train, cut = _write(directory / "train.arrow", itertools.chain([self.first], rest), turn, "train on")
        few = len(self.data.evaluation) < _FEW_BATCHES * BATCH_ROWS
        held_out = _encoded(self.task, self.data.evaluation, 0 if few else self.workers)
        evaluation, _ = _write(directory / "evaluation.arrow", held_out, turn, "evaluate on")
        report = dataclasses.replace(self.data.report, lengths=Lengths.of(train, self.task.max_tokens, cut))
        return {
            "info": dataclasses.asdict(self.task.info), "report": dataclasses.asdict(report),
            "train": len(train), "evaluation": len(evaluation),
        }  # fmt: skip


# --- encoding ---------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One batch: its rows, ``length`` among the columns, and how many were cut."""

    rows: pa.RecordBatch
    cut: int


def _encode(task: Task, table: pa.Table) -> Encoded:
    columns = task.encode(table.to_pydict())
    names = list(columns)
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    arrays = {name: _narrow(name, pa.array(values)) for name, values in columns.items()}
    arrays["length"] = pa.array([task.length(row) for row in rows], pa.int32())
    return Encoded(pa.record_batch(arrays), sum(task.is_cut(row) for row in rows))


def _narrow(name: str, array: pa.Array) -> pa.Array:
    """Lists of tokens in 4 bytes each, masks in 1: a quarter and less of what they would take to store and to read."""
    if not pa.types.is_list(array.type):
        return array
    inner = array.type.value_type
    if pa.types.is_floating(inner):
        return array.cast(pa.list_(pa.float32()))
    if pa.types.is_integer(inner) or pa.types.is_null(inner):
        return array.cast(pa.list_(pa.int8() if name.endswith(_MASKS) else pa.int32()))
    return array


def _write(path: pathlib.Path, batches: Iterable[Encoded], turn: cache.Turn, purpose: str) -> tuple[np.ndarray, int]:
    """Stream them to a file; lengths, int32 of shape (rows,), and how many rows were cut."""
    lengths, cut = [np.empty(0, np.int32)], 0
    filled = (batch for batch in batches if len(batch.rows))
    begun = next(filled, None)
    if begun is not None:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, begun.rows.schema) as writer:
            for batch in itertools.chain([begun], filled):
                writer.write_batch(batch.rows.cast(begun.rows.schema))
                lengths.append(batch.rows["length"].to_numpy())
                cut += batch.cut
                turn.touch()
    found = np.concatenate(lengths)
    if not len(found):
        raise FineTuneError(Reason.DATA_ERROR, f"spec.datasets: tokenising leaves no row to {purpose}; give longer or more texts")
    return found, cut


# --- several processes ------------------------------------------------------------------------------------------------------

_task: Task  # of a process that only tokenises


def _workers(seconds: float) -> int:
    """Processes to tokenise with; 0 for this one alone. seconds: that it would take this one alone."""
    cores = len(os.sched_getaffinity(0))
    return cores if cores > 1 and seconds > 4 * _PROCESS_START_SECONDS else 0


def _start_worker(task: Task) -> None:
    global _task
    _task = task
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each of us has one core
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_here(table: pa.Table) -> Encoded:
    return _encode(_task, table)


def _encoded(task: Task, table: pa.Table, workers: int) -> Iterator[Encoded]:
    """All rows in order, batch by batch."""
    slices = (table.slice(start, BATCH_ROWS) for start in range(0, len(table), BATCH_ROWS))
    if not workers:
        yield from (_encode(task, rows) for rows in slices)
        return
    # Not forked: threads of torch and of the tokenizer would be left behind locked.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (task,)) as pool:
        pending: collections.deque[Future[Encoded]] = collections.deque()
        for rows in slices:
            pending.append(pool.submit(_encode_here, rows))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
