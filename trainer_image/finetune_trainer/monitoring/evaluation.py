"""The result of one evaluation, for history, checkpoints and status."""

import dataclasses
from collections.abc import Mapping

from finetune_api.status import Evaluation


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """Metrics of the evaluation after ``step`` optimizer steps."""

    step: int
    metrics: Mapping[str, float]


def evaluation_status(result: EvaluationResult, baseline: Mapping[str, float]) -> Evaluation:
    """Return the evaluation for the status, with rounded metrics. baseline: metrics of the constant answer; may be empty."""
    return Evaluation(step=result.step, metrics=_rounded(result.metrics), baseline=_rounded(baseline) or None)


def _rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in metrics.items()}
