"""Evaluations: every held-out row counts once, whatever the number of processes; the best model is kept."""

import contextlib
import logging
import pathlib
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from finetune_api.spec import EvaluationPlan
from finetune_trainer.data.batches import BatchPlan, evaluation_batches
from finetune_trainer.data.rows import Rows
from finetune_trainer.loops.best import Standing, is_due, standing, stops_early
from finetune_trainer.loops.watch import Watch
from finetune_trainer.monitoring.evaluation import Evaluated
from finetune_trainer.output.directory import Output
from finetune_trainer.runtime import heartbeat
from finetune_trainer.runtime.distributed import Control
from finetune_trainer.tasks.base import Scores, Task

log = logging.getLogger(__name__)

_LARGEST_BATCH = 32
# Nothing is kept for a backward pass: so many times the rows of a training's forward pass fit, too.
_TIMES_TRAINING = 4
_STAGE = "evaluating"


class Evaluator:
    """Evaluates a task's model when it is due.

    batches: of the training. history: evaluations of earlier attempts, up to where this one goes on. save: writes the model to a
    directory; called on rank 0. improved: told of each better model, with its directory.
    """

    def __init__(
        self,
        task: Task,
        rows: Rows,
        plan: EvaluationPlan,
        batches: BatchPlan,
        ranks: Control,
        output: Output,
        watch: Watch,
        history: list[Evaluated],
        save: Callable[[pathlib.Path], None],
        improved: Callable[[pathlib.Path, Evaluated], None] | None = None,
    ) -> None:
        self._task, self._rows, self._plan = task, rows, plan
        self._steps_per_epoch = batches.steps_per_epoch
        self.batch_size = min(_LARGEST_BATCH, _TIMES_TRAINING * batches.micro)
        self._ranks, self._output, self._watch = ranks, output, watch
        self._done = history
        self._save, self._improved = save, improved
        self.details: dict[str, Any] = {}

    @property
    def last(self) -> Evaluated | None:
        """The newest evaluation."""
        return self._done[-1] if self._done else None

    @property
    def history(self) -> Sequence[Evaluated]:
        """All so far, those of earlier attempts among them."""
        return self._done

    def best_step(self, step: int) -> int | None:
        """Which evaluation was the best when ``step`` steps were done."""
        found = standing([entry for entry in self._done if entry.step <= step], self._plan)
        return found.step if found else None

    @property
    def standing(self) -> Standing | None:
        """The best so far."""
        return standing(self._done, self._plan)

    def is_due(self, step: int, total_steps: int) -> bool:
        """Whether to evaluate after ``step`` steps, and nobody has yet."""
        return is_due(self._plan, step, total_steps, self._steps_per_epoch) and (self.last is None or self.last.step < step)

    def stops_early(self) -> bool:
        """Whether it has not become better for long enough."""
        return stops_early(self.standing, self._plan)

    def run(self, step: int, context: contextlib.AbstractContextManager[Any]) -> Evaluated:
        """Evaluate on all ranks, tell of it, and keep the model if it is the best. context: of mixed precision."""
        started = time.monotonic()
        done = Evaluated(step, self.measure(context))
        self._done.append(done)
        self._watch.evaluated(done)
        best = self.standing
        if best is not None and best.step == step and step > 0:
            self._watch.improved(done)
            self._keep(done)
        self._watch.evaluation_took(time.monotonic() - started)
        return done

    def measure(self, context: contextlib.AbstractContextManager[Any]) -> dict[str, float]:
        """Figures over all held-out rows, the same on every rank; leaves the details in ``details``."""
        figures, self.details = self._task.metrics(self.score(context))
        return figures

    @torch.no_grad()
    def score(self, context: contextlib.AbstractContextManager[Any]) -> Scores:
        """What the task needs of every held-out row, of all ranks in order (see batches.evaluation_order)."""
        model = self._task.model
        was_training = model.training
        model.eval()
        world = self._ranks.world
        loader = DataLoader(
            self._rows,
            batch_sampler=evaluation_batches(self._rows.lengths, self.batch_size, world.rank, world.size),
            collate_fn=self._task.collate,
            generator=torch.Generator(),  # a loader draws a number when it starts: not from those of the training's dropout
        )
        with context:
            mine = [
                self._task.score(model, {name: tensor.to(model.device) for name, tensor in batch.items()})
                for batch in heartbeat.each(loader, _STAGE)
            ]
        model.train(was_training)
        everyone = [scores for part in self._ranks.gather(mine) for scores in part]
        return {name: np.concatenate([scores[name] for scores in everyone]) for name in everyone[0]}

    def _keep(self, done: Evaluated) -> None:
        """Write the best model down; older ones go when a checkpoint is complete that knows of this one."""
        if self._ranks.world.rank == 0:
            heartbeat.beat(heartbeat.WRITING)
            directory = self._output.best_model(done.step)
            shutil.rmtree(directory, ignore_errors=True)
            self._save(directory)
            log.info("the best model so far is that of step %d", done.step)
            if self._improved:
                self._improved(directory, done)
            heartbeat.beat(_STAGE)
        self._ranks.barrier()
