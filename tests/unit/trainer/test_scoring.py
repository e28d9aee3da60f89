"""Scores of held-out rows: a batch that does not fit the GPU is divided, and no row is lost."""

from typing import Any

import numpy as np
import pytest
import torch

from finetune_trainer.data.scoring import score_rows

BATCHES = [[(0, row) for row in range(start, start + 5)] for start in (0, 5, 10)] + [[(0, 15)]]


class Rows:
    def __getitems__(self, keys: list[Any]) -> list[int]:
        return [row for _, row in keys]


class SmallGpu:
    """A task and its model, on a GPU with room for ``room`` rows. passes: rows of each forward pass that fitted."""

    device = torch.device("cpu")

    def __init__(self, room: int) -> None:
        self.model, self.room = self, room
        self.passes: list[int] = []

    def collate(self, rows: list[int]) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor(rows)}

    def score(self, model: Any, batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        rows = batch["input_ids"]
        if len(rows) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.passes.append(len(rows))
        return {"row": rows.numpy()}


@pytest.mark.parametrize(
    ("room", "passes"), [(5, [5, 5, 5, 1]), (4, [3, 2, 3, 2, 3, 2, 1]), (2, [2, 2, 1] * 3 + [1]), (1, [1] * 16)]
)
def test_a_batch_that_does_not_fit_and_all_later_ones_are_divided(room: int, passes: list[int]) -> None:
    gpu: Any = SmallGpu(room)
    scores = score_rows(gpu, Rows(), BATCHES)  # type: ignore[arg-type]
    assert np.concatenate([part["row"] for part in scores]).tolist() == list(range(16))
    assert gpu.passes == passes


def test_a_row_that_does_not_fit_alone_is_an_error() -> None:
    gpu: Any = SmallGpu(0)
    with pytest.raises(torch.OutOfMemoryError):
        score_rows(gpu, Rows(), BATCHES)  # type: ignore[arg-type]
