"""The result of one evaluation, as history, checkpoints and status hold it."""

import dataclasses
from collections.abc import Mapping

from finetune_api.status import Evaluation


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """Figures of the evaluation after ``step`` optimizer steps."""

    step: int
    figures: Mapping[str, float]


def evaluation_status(done: Evaluated) -> Evaluation:
    """As the status shows it: rounded."""
    return Evaluation(step=done.step, metrics={name: round(value, 6) for name, value in done.figures.items()})
