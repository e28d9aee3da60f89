"""Serves tokenised rows to the training loop by epoch and row, or as padding rows."""

from typing import Any

import datasets
import numpy as np
import torch

from finetune_trainer.data.batches import BatchPlan, Key, TrainBatchSampler
from finetune_trainer.tasks.base import Row, Task


class RowDataset(torch.utils.data.Dataset[Row]):
    """Rows of one split, indexed by (epoch, row). (epoch, ~row) is a padding row: the same row with zero weight.

    augmented: whether the random augmentation of a row changes with the epoch, as in training. It depends only on seed, epoch
    and row, and not on the process or on the order of requests.
    """

    def __init__(self, tokenised: datasets.Dataset, task: Task, seed: int, augmented: bool) -> None:
        self.lengths = np.asarray(tokenised.with_format("numpy", columns=["length"])[:]["length"], dtype=np.int64)
        self._rows = tokenised.remove_columns("length")
        self._task, self._seed, self._augmented = task, seed, augmented

    def __len__(self) -> int:
        return len(self._rows)

    def batch_sampler(self, plan: BatchPlan, rank: int) -> TrainBatchSampler:
        """Return the sampler of the batches that one process trains on."""
        return TrainBatchSampler(plan, self.lengths, self._seed, rank)

    def __getitem__(self, key: Key) -> Row:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[Key]) -> list[Row]:
        """Return the rows of a batch. They are read at once, because reading one row takes nearly as long as reading all."""
        read: dict[str, list[Any]] = self._rows[[_row_of(key) for key in keys]]
        rows = [dict(zip(read, values, strict=True)) for values in zip(*read.values(), strict=True)]
        return [self._finish(row, key) for row, key in zip(rows, keys, strict=True)]

    def _finish(self, row: Row, key: Key) -> Row:
        epoch, number = key
        seed = [self._seed, epoch, _row_of(key)] if self._augmented else [self._seed, _row_of(key)]
        augmented = self._task.augment(row, np.random.default_rng(seed))
        return augmented if number >= 0 else self._task.padding_row(augmented)


def _row_of(key: Key) -> int:
    return key[1] if key[1] >= 0 else ~key[1]
