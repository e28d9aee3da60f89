"""Gathers the record of a training on rank 0, and keeps the findings in the report current."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import transformers

from finetune_trainer.data.report import DataReport
from finetune_trainer.findings import find
from finetune_trainer.findings.record import Hardware, Record
from finetune_trainer.monitoring.evaluation import EvaluationResult
from finetune_trainer.monitoring.progress import Reporter
from finetune_trainer.runtime import device
from finetune_trainer.tasks.base import Task

log = logging.getLogger(__name__)

# Besides after each evaluation, findings are computed when the history has grown by this many lines and by this share, because
# they read all of it. So a long training spends no more time on them than a short one, per line.
_LINES, _GROWTH = 20, 1.1


class Diagnosis:
    """The findings of a training so far. history: lines of the earlier attempts and starts. evaluations: the evaluator's list."""

    def __init__(
        self,
        task: Task,
        data: DataReport,
        baseline: Mapping[str, float],
        args: transformers.TrainingArguments,
        history: Sequence[Mapping[str, Any]],
        evaluations: Sequence[EvaluationResult],
        reporter: Reporter,
    ) -> None:
        self._reporter, self._logged = reporter, frozenset[str]()
        self._steps = [entry for entry in history if "loss" in entry]
        self._next_update = len(self._steps) + _LINES
        self._step_seconds = self._data_wait_seconds = 0.0
        self._accumulation = args.gradient_accumulation_steps
        self._record = Record(
            task.spec.task, data, args.max_steps, self._steps, evaluations,
            baseline=baseline,
            clip_norm=0.0 if task.info.problem == "Regression" else args.max_grad_norm or 0.0,
            keeps_best=task.spec.evaluation.best is not None,
            missing=task.missing_layers,
        )  # fmt: skip
        self._update()

    @property
    def baseline(self) -> Mapping[str, float]:
        """The metrics of the constant answer."""
        return self._record.baseline

    def add_time(self, step_seconds: float, data_wait_seconds: float) -> None:
        """Count the time of a step, or the part of it in which it waited for data."""
        self._step_seconds += step_seconds
        self._data_wait_seconds += data_wait_seconds

    def add_step(self, entry: Mapping[str, Any]) -> None:
        """Add a logged step."""
        self._steps.append(entry)
        if len(self._steps) >= self._next_update:
            self._next_update = max(len(self._steps) + _LINES, int(_GROWTH * len(self._steps)))
            self._update()

    def add_evaluation(self, details: Mapping[str, Any]) -> None:
        """Consider the newest evaluation. details: its details."""
        self._record = dataclasses.replace(self._record, details=details)
        self._update()

    def conclude(self, chosen: EvaluationResult, details: Mapping[str, Any]) -> None:
        """Consider the evaluation of the finished model."""
        self._record = dataclasses.replace(self._record, chosen=chosen, details=details)
        self._update()

    def _update(self) -> None:
        memory = device.gpu_memory()
        hardware = Hardware(
            self._step_seconds,
            self._data_wait_seconds,
            memory.peak / memory.total if memory is not None and self._steps else None,
            self._accumulation,
        )
        found = find(dataclasses.replace(self._record, hardware=hardware))
        for finding in found:
            if finding.type not in self._logged:
                log.warning("%s: %s", finding.type, finding.message)
        self._logged |= {finding.type for finding in found}
        self._reporter.update(findings=found)
