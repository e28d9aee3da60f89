"""The record of a training, as plain values, and the findings that follow from it."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from finetune_api.findings import FINDINGS, MAX_FINDINGS, FindingType
from finetune_api.status import Finding
from finetune_trainer.data.report import DataReport
from finetune_trainer.monitoring.evaluation import EvaluationResult

# Our order of severity.
_RANK = {kind: number for number, kind in enumerate(FindingType)}

# A type, and a sentence with figures. The remedy of the type follows it.
Found = tuple[FindingType, str]


@dataclasses.dataclass(frozen=True)
class Hardware:
    """How one process used its machine in this start.

    step_seconds, data_wait_seconds: time of steps, and the part of it in which it waited for a batch. memory_share: peak of the
    GPU's memory, 0 to 1; None without a GPU. accumulation: forward passes of a step.
    """

    step_seconds: float = 0.0
    data_wait_seconds: float = 0.0
    memory_share: float | None = None
    accumulation: int = 1


@dataclasses.dataclass(frozen=True)
class Record:
    """What is known of a training so far.

    steps: lines of the history with a loss. evaluations: in order; the one at step 0 is of the model before the training. chosen:
    evaluation of the finished model; None while it trains. details: of the last evaluation. baseline: metrics of the constant
    answer. clip_norm: limit of the gradient's norm; 0 for none. keeps_best: whether the best model becomes the finished one.
    missing: layers that the model's files lack and the task expects.
    """

    task: str
    data: DataReport
    total_steps: int = 0
    steps: Sequence[Mapping[str, Any]] = ()
    evaluations: Sequence[EvaluationResult] = ()
    chosen: EvaluationResult | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    baseline: Mapping[str, float] = dataclasses.field(default_factory=dict)
    clip_norm: float = 0.0
    keeps_best: bool = False
    missing: Sequence[str] = ()
    hardware: Hardware = Hardware()

    @property
    def before(self) -> EvaluationResult | None:
        """The evaluation before the training."""
        return next((entry for entry in self.evaluations if entry.step == 0), None)

    @property
    def last(self) -> EvaluationResult | None:
        """The evaluation that decides: of the finished model, else the newest one; None before the first step."""
        newest = self.chosen or (self.evaluations[-1] if self.evaluations else None)
        return newest if newest is not None and newest.step > 0 else None

    @property
    def share_of_steps(self) -> float:
        """Share of the steps that the newest evaluation or log line covers, 0 to 1."""
        if self.chosen is not None:
            return 1.0
        done = max([entry.step for entry in self.evaluations[-1:]] + [int(entry["step"]) for entry in self.steps[-1:]], default=0)
        return done / self.total_steps if self.total_steps else 0.0


Check = Callable[[Record], Iterator[Found]]


def run_checks(record: Record, checks: Sequence[Check]) -> list[Finding]:
    """Return what the checks find, the worst first, without the least important ones if there are many."""
    found = sorted((entry for check in checks for entry in check(record)), key=lambda entry: _RANK[entry[0]])
    return [Finding(type=kind, message=f"{text}; {FINDINGS[kind].remedy}") for kind, text in found[:MAX_FINDINGS]]
