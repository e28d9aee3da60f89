"""Which rows a step trains on, and on which process: a function of seed, epoch and global batch alone.

The world size and the micro-batch only decide who computes what. So one process with batch 8, two with 4, and one with eight
accumulated rows of 1 take the same steps, and a restart on other machines goes on with the same data.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from finetune_api.spec import DEFAULT_WARMUP_RATIO, Training


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
        return cls(rows, min(global_batch, rows), world, min(share, micro or 32))

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the data; the last may be smaller."""
        return math.ceil(self.rows / self.global_batch)

    @property
    def accumulation(self) -> int:
        """Forward passes of each process per optimizer step, the same for all processes and steps."""
        return math.ceil(math.ceil(self.global_batch / self.world) / self.micro)

    def total_steps(self, epochs: float, max_steps: int | None) -> int:
        """Optimizer steps of the whole training."""
        return max_steps or max(1, math.ceil(epochs * self.steps_per_epoch))


def warmup_steps(training: Training, total_steps: int) -> int:
    """Steps over which the learning rate rises."""
    if training.warmup_steps is not None:
        return training.warmup_steps
    return math.ceil((DEFAULT_WARMUP_RATIO if training.warmup_ratio is None else training.warmup_ratio) * total_steps)


def epoch_order(rows: int, seed: int, epoch: int) -> np.ndarray:
    """Order of the rows in an epoch: int64 of shape (rows,), the same for any number of processes."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def padding_row(row: int) -> int:
    """Key of a row that is there for its shape only and weighs nothing; its own inverse."""
    return ~row


class TrainBatches:
    """Batch sampler of one process: ``accumulation`` lists of row keys per optimizer step.

    Every process runs the same number of forward passes, as DDP needs; where a global batch doesn't divide, the missing rows
    are padding rows (negative keys), which the data set hands out without a label.
    """

    def __init__(self, plan: BatchPlan, seed: int, rank: int) -> None:
        self.plan, self.seed, self.rank = plan, seed, rank
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass; the Trainer calls it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self.plan.steps_per_epoch * self.plan.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        order = epoch_order(self.plan.rows, self.seed, self._epoch)
        for start in range(0, self.plan.rows, self.plan.global_batch):
            everyone = order[start : start + self.plan.global_batch].tolist()
            mine = everyone[self.rank :: self.plan.world]
            for index in range(self.plan.accumulation):
                batch = mine[index * self.plan.micro : (index + 1) * self.plan.micro]
                yield batch or [padding_row(everyone[0])]


def evaluation_batches(rows: int, size: int, rank: int, world: int) -> list[list[int]]:
    """Batches of one process: fixed batches dealt out in turn, so each row counts once and is padded alike in any world."""
    batches = [list(range(start, min(start + size, rows))) for start in range(0, rows, size)]
    return batches[rank::world]
