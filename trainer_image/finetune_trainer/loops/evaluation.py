"""Evaluates during the training, and keeps the best model. Every held-out row counts once, for any number of processes."""

import contextlib
import logging
import pathlib
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from finetune_api.spec import EvaluationPlan
from finetune_trainer.data.batches import BatchPlan, evaluation_batches
from finetune_trainer.data.rows import RowDataset
from finetune_trainer.data.scoring import STAGE, score_rows
from finetune_trainer.loops.best import BestEvaluation, best_evaluation, describe_early_stop, should_stop_early
from finetune_trainer.loops.monitor import TrainingMonitor
from finetune_trainer.monitoring.evaluation import EvaluationResult
from finetune_trainer.monitoring.schedule import is_due
from finetune_trainer.output.directory import OutputDirectory
from finetune_trainer.runtime import heartbeat
from finetune_trainer.runtime.distributed import Coordinator
from finetune_trainer.tasks.base import Scores, Task

log = logging.getLogger(__name__)

_MAX_BATCH_SIZE = 32
# An evaluation keeps no activations for a backward pass, so its batch can have this many times the rows of a micro-batch.
_BATCH_SIZE_FACTOR = 4


class Evaluator:
    """Evaluates a task's model when an evaluation is due.

    batches: of the training. history: evaluations of earlier attempts, up to the step where this one resumes. save: writes the
    model to a directory; called on rank 0. on_improved: called on rank 0 for each new best model, with its directory.
    """

    def __init__(
        self,
        task: Task,
        rows: RowDataset,
        plan: EvaluationPlan,
        batches: BatchPlan,
        coordinator: Coordinator,
        output: OutputDirectory,
        monitor: TrainingMonitor,
        history: list[EvaluationResult],
        save: Callable[[pathlib.Path], None],
        on_improved: Callable[[pathlib.Path, EvaluationResult], None] | None = None,
    ) -> None:
        self._task, self._rows, self._plan = task, rows, plan
        self._steps_per_epoch = batches.steps_per_epoch
        self.batch_size = min(_MAX_BATCH_SIZE, _BATCH_SIZE_FACTOR * batches.micro)
        self._coordinator, self._output, self._monitor = coordinator, output, monitor
        self._results = history
        self._save, self._on_improved = save, on_improved
        self.details: dict[str, Any] = {}

    @property
    def last(self) -> EvaluationResult | None:
        """The newest evaluation."""
        return self._results[-1] if self._results else None

    @property
    def history(self) -> Sequence[EvaluationResult]:
        """All evaluations so far, including those of earlier attempts."""
        return self._results

    def best_step(self, step: int) -> int | None:
        """Return the step of the best evaluation among those up to ``step``; None if there is none."""
        found = best_evaluation([entry for entry in self._results if entry.step <= step], self._plan)
        return found.step if found else None

    @property
    def best_evaluation(self) -> BestEvaluation | None:
        """The best evaluation so far."""
        return best_evaluation(self._results, self._plan)

    def is_due(self, step: int, total_steps: int) -> bool:
        """Return whether to evaluate after ``step`` steps; False if that was already done."""
        return is_due(self._plan, step, total_steps, self._steps_per_epoch) and (self.last is None or self.last.step < step)

    def should_stop_early(self) -> bool:
        """Return whether the metric has not improved for as many evaluations as the spec allows."""
        return should_stop_early(self.best_evaluation, self._plan)

    def early_stop(self, step: int, total_steps: int) -> str | None:
        """Return why the training stopped before its last step; None if it did not."""
        best = self.best_evaluation
        if step >= total_steps or best is None or self._plan.best is None:
            return None
        return describe_early_stop(best, self._plan.best.metric, step, total_steps)

    def run(self, step: int, context: contextlib.AbstractContextManager[Any]) -> EvaluationResult:
        """Evaluate on all ranks, report the result, and keep the model if it is the best. context: for mixed precision."""
        started = time.monotonic()
        result = EvaluationResult(step, self.compute_metrics(context))
        self._results.append(result)
        self._monitor.log_evaluation(result, self.details)
        best = self.best_evaluation
        if best is not None and best.step == step and step > 0:
            self._monitor.record_best(result)
            self._save_best(result)
        self._monitor.add_evaluation_time(time.monotonic() - started)
        return result

    def compute_metrics(self, context: contextlib.AbstractContextManager[Any]) -> dict[str, float]:
        """Return the metrics over all held-out rows, the same on every rank. Stores the details in ``details``."""
        metrics, self.details = self._task.compute_metrics(self.score(context))
        return metrics

    def score(self, context: contextlib.AbstractContextManager[Any]) -> Scores:
        """Return the task's scores of every held-out row, in the order of batches.evaluation_order, on every rank."""
        model = self._task.model
        was_training = model.training
        model.eval()
        world = self._coordinator.world
        batches = evaluation_batches(self._rows.lengths, self.batch_size, world.rank, world.size)
        with context:
            mine = score_rows(self._task, self._rows, batches)
        model.train(was_training)
        everyone = [scores for part in self._coordinator.all_gather(mine) for scores in part]
        return {name: np.concatenate([scores[name] for scores in everyone]) for name in everyone[0]}

    def _save_best(self, result: EvaluationResult) -> None:
        """Save the best model. Older best models are deleted when a complete checkpoint names this one."""
        if self._coordinator.world.rank == 0:
            heartbeat.beat(heartbeat.WRITING)
            directory = self._output.best_model(result.step)
            shutil.rmtree(directory, ignore_errors=True)
            self._save(directory)
            log.info("the best model so far is that of step %d", result.step)
            if self._on_improved:
                self._on_improved(directory, result)
            heartbeat.beat(STAGE)
        self._coordinator.barrier()
