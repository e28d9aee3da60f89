"""Tokenised rows as the loops ask for them: by epoch and row, or as padding."""

from typing import Any

import datasets
import numpy as np
import torch

from finetune_trainer.data.batches import BatchPlan, Key, TrainBatches
from finetune_trainer.tasks.base import Row, Task


class Rows(torch.utils.data.Dataset[Row]):
    """Rows of one split. varied: whether what is random about a row changes with the epoch, as in training, or never.

    Indexing is by (epoch, row); (epoch, ~row) is the same row, weighing nothing. What is random about a row is a function of
    seed, epoch and row, whichever process asks, and in whichever order.
    """

    def __init__(self, tokenised: datasets.Dataset, task: Task, seed: int, varied: bool) -> None:
        self.lengths = np.asarray(tokenised.with_format("numpy", columns=["length"])[:]["length"], dtype=np.int64)
        self._rows = tokenised.remove_columns("length")
        self._task, self._seed, self._varied = task, seed, varied

    def __len__(self) -> int:
        return len(self._rows)

    def batches(self, plan: BatchPlan, rank: int) -> TrainBatches:
        """Which of them a process trains on."""
        return TrainBatches(plan, self.lengths, self._seed, rank)

    def __getitem__(self, key: Key) -> Row:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[Key]) -> list[Row]:
        """Rows of a batch: read at once, as reading one is nearly as slow as reading all."""
        read: dict[str, list[Any]] = self._rows[[_row_of(key) for key in keys]]
        rows = [dict(zip(read, values, strict=True)) for values in zip(*read.values(), strict=True)]
        return [self._finish(row, key) for row, key in zip(rows, keys, strict=True)]

    def _finish(self, row: Row, key: Key) -> Row:
        epoch, number = key
        moment = [self._seed, epoch, _row_of(key)] if self._varied else [self._seed, _row_of(key)]
        varied = self._task.vary(row, np.random.default_rng(moment))
        return varied if number >= 0 else self._task.blank(varied)


def _row_of(key: Key) -> int:
    return key[1] if key[1] >= 0 else ~key[1]
