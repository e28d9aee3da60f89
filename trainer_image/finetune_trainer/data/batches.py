"""Decides which rows a step trains on. The result depends only on seed, epoch, lengths and global batch.

The world size and the micro-batch only decide which process computes which rows. So one process with batch 8, two processes with
batch 4, and one process that accumulates eight batches of 1 take the same steps, and a restart on other nodes continues with the
same data.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from finetune_api.spec import DEFAULT_WARMUP_RATIO, SCHEDULERS_BY_METRIC, Training

# The rows of this many global batches are sorted by length together: enough for good groups, few enough to stay random.
_BATCHES_TO_SORT = 50
DEFAULT_MICRO_BATCH = 32

# This many consecutive rows of a stream are in memory and shuffled together.
SHUFFLE_BUFFER_ROWS = 10_000
# Approximate. For grouping, lengths are capped at max_tokens × this number. Longer rows are cut or unusable, and without the cap
# a batch could consist of unusable rows only.
_CHARACTERS_PER_TOKEN = 4

# (epoch, row); a padding row is ~row.
Key = tuple[int, int]
_Key = TypeVar("_Key")


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """How a global batch is split. All sizes are in rows.

    world_size: number of training processes. micro: maximum rows of one forward pass.
    """

    rows: int
    global_batch: int
    world_size: int
    micro: int

    @classmethod
    def choose(cls, rows: int, global_batch: int, world_size: int, micro: int | None) -> "BatchPlan":
        """Choose the micro-batch: the process's share, at most ``micro`` rows, or at most 32 if that is None."""
        share = math.ceil(min(global_batch, rows) / world_size)
        return cls(rows, min(global_batch, rows), world_size, min(share, micro or DEFAULT_MICRO_BATCH))

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the data. The last step may have fewer rows."""
        return math.ceil(self.rows / self.global_batch)

    @property
    def accumulation(self) -> int:
        """Forward passes of each process per optimizer step: the same number for all processes and steps."""
        return math.ceil(math.ceil(self.global_batch / self.world_size) / self.micro)

    def micro_batches_of_rank(
        self, global_batch_rows: Sequence[_Key], rank: int, padding: Callable[[_Key], _Key]
    ) -> Iterator[list[_Key]]:
        """Yield the rows of each forward pass of a rank. All ranks have equally many passes; one without rows gets padding."""
        mine = list(global_batch_rows[rank :: self.world_size])
        for index in range(self.accumulation):
            yield mine[index * self.micro : (index + 1) * self.micro] or [padding(global_batch_rows[-1])]

    def total_steps(self, epochs: float, max_steps: int | None) -> int:
        """Return the optimizer steps of the whole training."""
        return max_steps or max(1, math.ceil(epochs * self.steps_per_epoch))


def warmup_steps(training: Training, total_steps: int) -> int:
    """Return the number of steps over which the learning rate rises."""
    if training.scheduler in SCHEDULERS_BY_METRIC:
        return 0
    if training.warmup_steps is not None:
        return training.warmup_steps
    return math.ceil((DEFAULT_WARMUP_RATIO if training.warmup_ratio is None else training.warmup_ratio) * total_steps)


def epoch_order(lengths: np.ndarray, global_batch: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of the rows in an epoch: int64 of shape (rows,), the same for any number of processes.

    The order is random, but the rows of a global batch have similar lengths, so that there is little padding; the longest row
    comes first. The batch with the longest row of all is the first of the training, so that an out-of-memory error comes at
    once. lengths: tokens of each row, shape (rows,).
    """
    random = np.random.default_rng([seed, epoch])
    rows = len(lengths)
    order = random.permutation(rows)
    whole = rows - rows % global_batch
    pool = global_batch * _BATCHES_TO_SORT
    batches = [
        batch
        for start in range(0, whole, pool)
        for batch in _longest_first(order[start : min(start + pool, whole)], lengths).reshape(-1, global_batch)
    ]
    random.shuffle(batches)
    if epoch == 0 and batches:
        longest = max(range(len(batches)), key=lambda index: int(lengths[batches[index][0]]))
        batches.insert(0, batches.pop(longest))
    return np.concatenate([*batches, _longest_first(order[whole:], lengths)]).astype(np.int64)


def _longest_first(rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Sort rows by length, the longest first. Rows of equal length keep their order."""
    return rows[np.argsort(-lengths[rows].astype(np.int64), kind="stable")]


def padding_key(row: int) -> int:
    """Convert the key of a row to that of its padding row, or back. A padding row has zero weight in the loss."""
    return ~row


class TrainBatchSampler:
    """Batch sampler of one process: ``accumulation`` lists of keys per optimizer step.

    Every process runs the same number of forward passes, because DDP requires it. If a global batch does not divide evenly, the
    missing rows are padding rows (negative keys) with zero weight. lengths: tokens of each row, shape (rows,).
    """

    def __init__(self, plan: BatchPlan, lengths: np.ndarray, seed: int, rank: int) -> None:
        self.plan, self.seed, self.rank = plan, seed, rank
        self._lengths = lengths
        self._epoch, self._first_step = 0, 0

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Set the next epoch, and the step of it to begin at. The training loop calls this."""
        self._epoch, self._first_step = epoch, first_step

    def epoch(self, step: int) -> float:
        """Return the number of passes over the data after ``step`` steps of the training."""
        return step / self.plan.steps_per_epoch

    def __len__(self) -> int:
        return self.plan.steps_per_epoch * self.plan.accumulation

    def __iter__(self) -> Iterator[list[Key]]:
        order = epoch_order(self._lengths, self.plan.global_batch, self.seed, self._epoch)
        for start in range(self._first_step * self.plan.global_batch, self.plan.rows, self.plan.global_batch):
            global_batch_rows = order[start : start + self.plan.global_batch].tolist()
            for batch in self.plan.micro_batches_of_rank(global_batch_rows, self.rank, padding_key):
                yield [(self._epoch, row) for row in batch]


@dataclasses.dataclass(frozen=True)
class StreamedRow:
    """A row of a stream that is not tokenised yet.

    epoch: pass over the data. number: index of the row in that pass. is_padding: whether the row has zero weight.
    """

    epoch: int
    number: int
    values: Mapping[str, Any]
    is_padding: bool = False


def _num_characters(value: Any) -> int:
    """Return the number of characters of a row. It is roughly proportional to the tokens, which are not known yet."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list):
        return 0
    return sum(map(_num_characters, value))


class StreamBatchSampler:
    """Batch sampler of one process for a stream, of which only some rows are known at a time.

    For the training loop, the whole training is one epoch. Rows are shuffled, and grouped by length, within a block that is in
    memory. Rows that do not fill a global batch are kept for the next block, so that every batch is full.

    read: begins a pass over the data, always in the same order. max_tokens: length at which rows are cut.
    """

    def __init__(
        self, plan: BatchPlan, read: Callable[[], Iterator[Mapping[str, Any]]], max_tokens: int, seed: int, rank: int
    ) -> None:
        self.plan, self.seed, self.rank = plan, seed, rank
        self._read, self._max_characters = read, max_tokens * _CHARACTERS_PER_TOKEN
        self._first_step = 0
        self._rows_per_pass: int | None = None

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Set the step to begin at. Rows of earlier steps are read again, but not tokenised."""
        self._first_step = first_step

    def epoch(self, step: int) -> float:
        """Return the passes over the data after ``step`` steps; 0 during the first pass, because its length is not known yet."""
        rows = step * self.plan.global_batch
        return rows / self._rows_per_pass if self._rows_per_pass is not None and rows > self._rows_per_pass else 0.0

    def __len__(self) -> int:
        return self.plan.steps_per_epoch * self.plan.accumulation

    def __iter__(self) -> Iterator[list[StreamedRow]]:
        for global_batch_rows in itertools.islice(self._global_batches(), self._first_step, self.plan.steps_per_epoch):
            yield from self.plan.micro_batches_of_rank(
                global_batch_rows, self.rank, lambda row: dataclasses.replace(row, is_padding=True)
            )

    def _global_batches(self) -> Iterator[list[StreamedRow]]:
        size = self.plan.global_batch
        waiting: list[StreamedRow] = []
        for number, block in enumerate(self._blocks()):
            rows = waiting + block
            whole = len(rows) - len(rows) % size
            lengths = np.array([min(_num_characters(row.values), self._max_characters) for row in rows])
            order = epoch_order(lengths, size, self.seed, number)
            yield from ([rows[index] for index in order[start : start + size]] for start in range(0, whole, size))
            waiting = [rows[index] for index in order[whole:]]

    def _blocks(self) -> Iterator[list[StreamedRow]]:
        """Yield blocks of rows. A block has rows of one pass only, so that rows of a small data set are not repeated in it."""
        for epoch in itertools.count():
            rows = (StreamedRow(epoch, number, values) for number, values in enumerate(self._read()))
            count = 0
            while block := list(itertools.islice(rows, SHUFFLE_BUFFER_ROWS)):
                yield block
                count += len(block)
            assert count, "load_data() refuses data without rows"
            self._rows_per_pass = count


def evaluation_batches(lengths: np.ndarray, size: int, rank: int, world_size: int) -> list[list[Key]]:
    """Return the batches of one process: every ``world_size``-th of a fixed list of batches with rows of similar length.

    Each row is in exactly one batch, and its padding does not depend on the world size. lengths: tokens of each row, shape
    (rows,).
    """
    order = _longest_first(np.arange(len(lengths)), lengths).tolist()
    batches = [[(0, row) for row in order[start : start + size]] for start in range(0, len(order), size)]
    return batches[rank::world_size]


def evaluation_order(lengths: np.ndarray, size: int, world_size: int) -> np.ndarray:
    """Return the rows in the order of all evaluation batches, rank after rank: int64 of shape (rows,)."""
    keys = [key for rank in range(world_size) for batch in evaluation_batches(lengths, size, rank, world_size) for key in batch]
    return np.array([row for _, row in keys], dtype=np.int64)
