"""Which rows a step trains on, and on which process: a function of seed, epoch, lengths and global batch alone.

The world size and the micro-batch only decide who computes what. So one process with batch 8, two with 4, and one with eight
accumulated rows of 1 take the same steps, and a restart on other machines goes on with the same data.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from finetune_api.spec import DEFAULT_WARMUP_RATIO, Training

# Rows of so many global batches are sorted by length together: enough to group well, few enough to stay random.
_BATCHES_TO_SORT = 50
DEFAULT_MICRO_BATCH = 32

# So many rows of a stream, one after the other, are in memory and shuffled together.
SHUFFLED_ROWS = 10_000
# About; beyond so many a row is cut or of no use, and those that are of no use should not all be in one batch.
_LETTERS_PER_TOKEN = 4

# (epoch, row); a row that is there for its shape only is ~row.
Key = tuple[int, int]
_Key = TypeVar("_Key")


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """How a global batch is split. All sizes in rows.

    world: training processes in all; micro: most rows of one forward pass.
    """

    rows: int
    global_batch: int
    world: int
    micro: int

    @classmethod
    def choose(cls, rows: int, global_batch: int, world: int, micro: int | None) -> "BatchPlan":
        """Fill in the micro-batch: the process's share, at most 32 rows and never more than asked for."""
        share = math.ceil(min(global_batch, rows) / world)
        return cls(rows, min(global_batch, rows), world, min(share, micro or DEFAULT_MICRO_BATCH))

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the data; the last may be smaller."""
        return math.ceil(self.rows / self.global_batch)

    @property
    def accumulation(self) -> int:
        """Forward passes of each process per optimizer step, the same for all processes and steps."""
        return math.ceil(math.ceil(self.global_batch / self.world) / self.micro)

    def share(self, everyone: Sequence[_Key], rank: int, padding: Callable[[_Key], _Key]) -> Iterator[list[_Key]]:
        """Forward passes of one process, of a global batch: as many for all processes, so those without a row get padding."""
        mine = list(everyone[rank :: self.world])
        for index in range(self.accumulation):
            yield mine[index * self.micro : (index + 1) * self.micro] or [padding(everyone[-1])]

    def total_steps(self, epochs: float, max_steps: int | None) -> int:
        """Optimizer steps of the whole training."""
        return max_steps or max(1, math.ceil(epochs * self.steps_per_epoch))


def warmup_steps(training: Training, total_steps: int) -> int:
    """Steps over which the learning rate rises."""
    if training.warmup_steps is not None:
        return training.warmup_steps
    return math.ceil((DEFAULT_WARMUP_RATIO if training.warmup_ratio is None else training.warmup_ratio) * total_steps)


def epoch_order(lengths: np.ndarray, global_batch: int, seed: int, epoch: int) -> np.ndarray:
    """Order of the rows in an epoch: int64 of shape (rows,), the same for any number of processes.

    Random, but rows of a global batch are of similar length, longest first, so that little is padded. lengths: tokens of each
    row, shape (rows,). The batch with the longest row of all is the first of the training: what does not fit memory fails then.
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
    """Sorted by length; of equal ones those that came first stay first."""
    return rows[np.argsort(-lengths[rows].astype(np.int64), kind="stable")]


def padding_row(row: int) -> int:
    """Key of a row that is there for its shape only and weighs nothing; its own inverse."""
    return ~row


class TrainBatches:
    """Batch sampler of one process: ``accumulation`` lists of keys per optimizer step.

    Every process runs the same number of forward passes, as DDP needs; where a global batch doesn't divide, the missing rows
    are padding rows (negative), which weigh nothing. lengths: tokens of each row, shape (rows,).
    """

    def __init__(self, plan: BatchPlan, lengths: np.ndarray, seed: int, rank: int) -> None:
        self.plan, self.seed, self.rank = plan, seed, rank
        self._lengths = lengths
        self._epoch, self._first_step = 0, 0

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Choose the order of the next pass, and where in it to begin; the loop calls it."""
        self._epoch, self._first_step = epoch, first_step

    def epoch(self, step: int) -> float:
        """Passes over the data after ``step`` steps of the training."""
        return step / self.plan.steps_per_epoch

    def __len__(self) -> int:
        return self.plan.steps_per_epoch * self.plan.accumulation

    def __iter__(self) -> Iterator[list[Key]]:
        order = epoch_order(self._lengths, self.plan.global_batch, self.seed, self._epoch)
        for start in range(self._first_step * self.plan.global_batch, self.plan.rows, self.plan.global_batch):
            everyone = order[start : start + self.plan.global_batch].tolist()
            for batch in self.plan.share(everyone, self.rank, padding_row):
                yield [(self._epoch, row) for row in batch]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A row of a stream, not tokenised yet. epoch: pass over the data; number: of the row in it. blank: for its shape only."""

    epoch: int
    number: int
    values: Mapping[str, Any]
    blank: bool = False


def _letters(value: Any) -> int:
    """What a row is grouped by: its tokens are not known yet, and rows of as many letters have about as many."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list):
        return 0
    return sum(map(_letters, value))


class StreamBatches:
    """The same for data of which only some rows are known at a time. To the loops the whole training is one pass.

    Rows are shuffled, and grouped by length, among those that are in memory together; those that fill no global batch wait for
    the next ones, so that no batch is ragged. read: begins a pass over the data, whose order is always the same.
    max_tokens: where a row is cut.
    """

    def __init__(
        self, plan: BatchPlan, read: Callable[[], Iterator[Mapping[str, Any]]], max_tokens: int, seed: int, rank: int
    ) -> None:
        self.plan, self.seed, self.rank = plan, seed, rank
        self._read, self._max_letters = read, max_tokens * _LETTERS_PER_TOKEN
        self._first_step = 0
        self._rows_per_pass: int | None = None

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Where to begin: what comes before is read again, but not tokenised."""
        self._first_step = first_step

    def epoch(self, step: int) -> float:
        """Passes over the data after ``step`` steps of the training; 0 in the first, whose length nobody knows."""
        rows = step * self.plan.global_batch
        return rows / self._rows_per_pass if self._rows_per_pass is not None and rows > self._rows_per_pass else 0.0

    def __len__(self) -> int:
        return self.plan.steps_per_epoch * self.plan.accumulation

    def __iter__(self) -> Iterator[list[Drawn]]:
        for everyone in itertools.islice(self._global_batches(), self._first_step, self.plan.steps_per_epoch):
            yield from self.plan.share(everyone, self.rank, lambda row: dataclasses.replace(row, blank=True))

    def _global_batches(self) -> Iterator[list[Drawn]]:
        size = self.plan.global_batch
        waiting: list[Drawn] = []
        for number, block in enumerate(self._blocks()):
            rows = waiting + block
            whole = len(rows) - len(rows) % size
            lengths = np.array([min(_letters(row.values), self._max_letters) for row in rows])
            order = epoch_order(lengths, size, self.seed, number)
            yield from ([rows[index] for index in order[start : start + size]] for start in range(0, whole, size))
            waiting = [rows[index] for index in order[whole:]]

    def _blocks(self) -> Iterator[list[Drawn]]:
        """Rows that are in memory together; never of two passes, or a small data set would be there several times at once."""
        for epoch in itertools.count():
            rows = (Drawn(epoch, number, values) for number, values in enumerate(self._read()))
            count = 0
            while block := list(itertools.islice(rows, SHUFFLED_ROWS)):
                yield block
                count += len(block)
            assert count, "data without any row is refused before"
            self._rows_per_pass = count


def evaluation_batches(lengths: np.ndarray, size: int, rank: int, world: int) -> list[list[Key]]:
    """Batches of one process: fixed batches of similar length dealt out in turn, so each row counts once, padded alike in any
    world. lengths: tokens of each row, shape (rows,)."""
    order = _longest_first(np.arange(len(lengths)), lengths).tolist()
    batches = [[(0, row) for row in order[start : start + size]] for start in range(0, len(order), size)]
    return batches[rank::world]


def evaluation_order(lengths: np.ndarray, size: int, world: int) -> np.ndarray:
    """Rows in the order in which all ranks' evaluation batches follow one another: int64 of shape (rows,)."""
    keys = [key for rank in range(world) for batch in evaluation_batches(lengths, size, rank, world) for key in batch]
    return np.array([row for _, row in keys], dtype=np.int64)
