"""Scores held-out rows, in smaller forward passes where the GPU's memory is not enough."""

import logging
from collections.abc import Sequence

import torch

from finetune_trainer.data.batches import Key
from finetune_trainer.data.rows import RowDataset
from finetune_trainer.runtime import device, heartbeat
from finetune_trainer.tasks.base import Scores, Task

log = logging.getLogger(__name__)

STAGE = "evaluating"


@torch.no_grad()
def score_rows(task: Task, rows: RowDataset, batches: Sequence[list[Key]]) -> list[Scores]:
    """Return the scores of batches of rows, in their order.

    A batch that does not fit the GPU is divided, and so are all later ones: the training's micro-batch stays as it is. Raises
    torch.OutOfMemoryError if not even a single row fits.
    """
    scores: list[Scores] = []
    most = max(map(len, batches), default=1)
    for batch in heartbeat.each(batches, STAGE):
        start = 0
        while start < len(batch):
            found = _score(task, rows, batch[start : start + most], may_fail=most > 1)
            if found is None:
                most = (most + 1) // 2
                device.release_memory()
                log.warning("the GPU's memory is not enough for this evaluation batch: it goes on with %d rows a batch", most)
            else:
                scores.append(found)
                start += most
    return scores


def _score(task: Task, rows: RowDataset, keys: list[Key], *, may_fail: bool) -> Scores | None:
    """Return the scores of some rows; with may_fail, None if the GPU's memory is not enough.

    The error, which holds the tensors of the forward pass, is gone when this function returns.
    """
    batch = task.collate(rows.__getitems__(keys))
    try:
        return task.score(task.model, {name: tensor.to(task.model.device) for name, tensor in batch.items()})
    except torch.OutOfMemoryError:
        if not may_fail:
            raise
        return None
