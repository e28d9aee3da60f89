"""The result of one evaluation, for history, checkpoints and status."""

import dataclasses
from collections.abc import Mapping

from finetune_api.status import Evaluation


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """Metrics of the evaluation after ``step`` optimizer steps."""

    step: int
    metrics: Mapping[str, float]


def evaluation_status(result: EvaluationResult) -> Evaluation:
    """Return the evaluation for the status, with rounded metrics."""
    return Evaluation(step=result.step, metrics={name: round(value, 6) for name, value in result.metrics.items()})
