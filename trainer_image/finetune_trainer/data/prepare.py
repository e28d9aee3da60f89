"""Prepares tokenised rows on disk. Rank 0 makes them once, all ranks open them, and restarts and other jobs reuse them."""

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
from finetune_trainer.runtime.cpus import usable_cpus
from finetune_trainer.tasks.base import DataInfo, Task

if TYPE_CHECKING:
    import datasets

log = logging.getLogger(__name__)

BATCH_ROWS = 1000  # rows of one encode() call; if texts are concatenated, the result depends on it
_MASKS = ("attention_mask", "token_type_ids", "special_tokens_mask")
# Approximate start-up time of worker processes. They are only worth it if the work takes several times as long.
_PROCESS_START_SECONDS = 8.0
_FEW_BATCHES = 20  # with fewer batches of evaluation data, starting workers a second time is not worth it
_NFS_DELAY_SECONDS = 60.0  # NFS clients may cache for this long that a new file does not exist


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Tokenised rows: the columns that Task.encode returns, and ``length`` (int32, tokens). Can be pickled.

    report: from the time when the data was read, perhaps by another job. contents: see describe_contents().
    """

    directory: str
    info: DataInfo
    report: DataReport
    train_rows: int
    evaluation_rows: int
    contents: Sequence[str] = ()

    def open(self) -> "tuple[datasets.Dataset, datasets.Dataset]":
        """Return training and evaluation rows. They are memory-mapped files, so they need no memory of their own."""
        import datasets

        directory = pathlib.Path(self.directory)
        deadline = time.monotonic() + _NFS_DELAY_SECONDS
        while cache.read(directory) is None:
            if time.monotonic() > deadline:
                raise FileNotFoundError(errno.ENOENT, "the tokenised data is gone", self.directory)
            time.sleep(1)
        train, evaluation = (datasets.Dataset.from_file(str(directory / f"{name}.arrow")) for name in ("train", "evaluation"))
        return train, evaluation


def prepare(config: RunConfig, revisions: Sequence[str], tokenizer: Any, model_config: Any, task_type: type[Task]) -> Prepared:
    """Find the tokenised rows, or make them. Raise FineTuneError for data that can't be trained on, and for a full disk.

    Only one rank may call this. revisions: commit of each data set on the Hub, "" for a claim.
    """
    contents = describe_contents(config, revisions)
    key = fingerprint(config, contents, tokenizer, model_config, task_type)
    roots = cache.cache_roots(config.output, config.nodes)
    found = cache.find(roots, key)
    if found is not None:
        prepared = _prepared(*found)
        log.info("the data is already tokenised: %s", prepared.directory)
    else:
        prepared = _tokenise(config, revisions, tokenizer, model_config, task_type, roots, key)
    cache.clean_up(config.output, roots, pathlib.Path(prepared.directory))
    for line in prepared.report.lines():
        log.info("%s", line)
    return dataclasses.replace(prepared, contents=contents)


def _prepared(directory: pathlib.Path, kept: Mapping[str, Any]) -> Prepared:
    info, report = DataInfo(**kept["info"]), DataReport.from_json(kept["report"])
    return Prepared(str(directory), info, report, kept["train"], kept["evaluation"])


def _tokenise(
    config: RunConfig, revisions: Sequence[str], tokenizer: Any, model_config: Any, task_type: type[Task],
    roots: Sequence[pathlib.Path], key: str,
) -> Prepared:  # fmt: skip
    work = _TokenisationJob.create(config, load_data(config, revisions), tokenizer, model_config, task_type)
    with cache.entry_lock(roots[0], key, lambda: cache.find(roots, key) is not None, work.seconds) as entry_lock:
        found = cache.find(roots, key)
        if found is None:
            try:
                directory = cache.write(roots, key, lambda unfinished: work.write(unfinished, entry_lock))
            except OSError as error:
                raise FineTuneError(
                    Reason.DISK_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else Reason.CONFIGURATION_ERROR,
                    f"spec.output: the tokenised data can't be written to {roots[-1]}: {error.strerror or error}",
                ) from error
            found = cache.find([directory.parent], key)
            assert found is not None, "the entry was just written"
    return _prepared(*found)


@dataclasses.dataclass(frozen=True)
class _TokenisationJob:
    """The data to tokenise, and how.

    first: first batch of the training data, already encoded to estimate the total time. workers: number of worker processes;
    0 means this process does the work. seconds: estimated time for the rest.
    """

    task: Task
    data: Data
    first: "Encoded"
    workers: int
    seconds: float

    @classmethod
    def create(
        cls, config: RunConfig, data: Data, tokenizer: Any, model_config: Any, task_type: type[Task]
    ) -> "_TokenisationJob":
        info = DataInfo(list(data.classes), list(data.counts), data.problem, data.format)
        task = task_type(config.spec, tokenizer, model_config, info)
        begin = time.monotonic()
        first = _encode(task, data.train.slice(0, BATCH_ROWS))
        rows = len(data.train) + len(data.evaluation)
        seconds = (time.monotonic() - begin) * max(0, rows - BATCH_ROWS) / BATCH_ROWS
        # Another process may not be able to import a tokenizer with custom code.
        workers = 0 if config.spec.model.trust_remote_code else _workers(seconds, usable_cpus(config))
        return cls(task, data, first, workers, seconds / max(workers, 1))

    def write(self, directory: pathlib.Path, entry_lock: cache.EntryLock) -> Mapping[str, Any]:
        """Write the files of a cache entry, and return its metadata."""
        rest = _encoded(self.task, self.data.train.slice(BATCH_ROWS), self.workers)
        train, cut = _write(directory / "train.arrow", itertools.chain([self.first], rest), entry_lock, "train on")
        few = len(self.data.evaluation) < _FEW_BATCHES * BATCH_ROWS
        held_out = _encoded(self.task, self.data.evaluation, 0 if few else self.workers)
        evaluation, _ = _write(directory / "evaluation.arrow", held_out, entry_lock, "evaluate on")
        report = dataclasses.replace(self.data.report, lengths=Lengths.of(train, self.task.max_tokens, cut))
        return {
            "info": dataclasses.asdict(self.task.info), "report": dataclasses.asdict(report),
            "train": len(train), "evaluation": len(evaluation),
        }  # fmt: skip


# --- encoding ---------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One encoded batch. rows: include the column ``length``. cut: number of rows that were cut."""

    rows: pa.RecordBatch
    cut: int


def _encode(task: Task, table: pa.Table) -> Encoded:
    columns = task.encode(table.to_pydict())
    names = list(columns)
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    arrays = {name: _compact(name, pa.array(values)) for name, values in columns.items()}
    arrays["length"] = pa.array([task.length(row) for row in rows], pa.int32())
    return Encoded(pa.record_batch(arrays), sum(task.is_truncated(row) for row in rows))


def _compact(name: str, array: pa.Array) -> pa.Array:
    """Store tokens in 4 bytes and masks in 1 byte instead of 8, which makes them faster to store and read."""
    if not pa.types.is_list(array.type):
        return array
    inner = array.type.value_type
    if pa.types.is_floating(inner):
        return array.cast(pa.list_(pa.float32()))
    if pa.types.is_integer(inner) or pa.types.is_null(inner):
        return array.cast(pa.list_(pa.int8() if name.endswith(_MASKS) else pa.int32()))
    return array


def _write(path: pathlib.Path, batches: Iterable[Encoded], entry_lock: cache.EntryLock, purpose: str) -> tuple[np.ndarray, int]:
    """Write the batches to a file. Return the lengths, int32 of shape (rows,), and the number of rows that were cut."""
    lengths, cut = [np.empty(0, np.int32)], 0
    filled = (batch for batch in batches if len(batch.rows))
    begun = next(filled, None)
    if begun is not None:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, begun.rows.schema) as writer:
            for batch in itertools.chain([begun], filled):
                writer.write_batch(batch.rows.cast(begun.rows.schema))
                lengths.append(batch.rows["length"].to_numpy())
                cut += batch.cut
                entry_lock.touch()
    found = np.concatenate(lengths)
    if not len(found):
        raise FineTuneError(Reason.DATA_ERROR, f"spec.datasets: tokenising leaves no row to {purpose}; give longer or more texts")
    return found, cut


# --- several processes ------------------------------------------------------------------------------------------------------

_task: Task  # set in a worker process, which only tokenises


def _workers(seconds: float, cpus: int) -> int:
    """Return the number of worker processes; 0 if this process does the work. seconds: time that this process would need."""
    return cpus if cpus > 1 and seconds > 4 * _PROCESS_START_SECONDS else 0


def _init_worker(task: Task) -> None:
    global _task
    _task = task
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each worker has one core
    threading.Thread(target=_exit_with_parent, name="parent-watch", daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(table: pa.Table) -> Encoded:
    return _encode(_task, table)


def _encoded(task: Task, table: pa.Table, workers: int) -> Iterator[Encoded]:
    """Encode all rows in order, batch by batch."""
    slices = (table.slice(start, BATCH_ROWS) for start in range(0, len(table), BATCH_ROWS))
    if not workers:
        yield from (_encode(task, rows) for rows in slices)
        return
    # Workers are spawned. After a fork, locks that threads of torch and the tokenizer hold would stay locked.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _init_worker, (task,)) as pool:
        pending: collections.deque[Future[Encoded]] = collections.deque()
        for rows in slices:
            pending.append(pool.submit(_encode_in_worker, rows))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
