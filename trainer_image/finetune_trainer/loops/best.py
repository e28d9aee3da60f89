"""Which evaluation is the best, and whether it is time to stop: pure, a function of the evaluations so far."""

import dataclasses
from collections.abc import Sequence

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import Best, EvaluationPlan
from finetune_trainer.monitoring.evaluation import Evaluated

# Of these less is better.
_LESS_IS_BETTER = ("loss", "perplexity", "mse", "rmse", "mae")
# These may be left out of an evaluation: a correlation with a constant, the loss of a model that diverged.
_SOMETIMES_UNDEFINED = ("loss", "perplexity", "f1", "precision", "recall", "pearson", "spearman", "r2")
_CHANCES = 3


@dataclasses.dataclass(frozen=True)
class Standing:
    """step: of the best evaluation. since: evaluations after it that were no better."""

    step: int
    value: float
    since: int


def standing(evaluations: Sequence[Evaluated], plan: EvaluationPlan) -> Standing | None:
    """The best so far; None without evaluations of the training, or where nobody asked which is the best.

    An evaluation in which the figure is not defined (the loss of a model that diverged) is no better than any. Raises
    FineTuneError where none had a figure of that name.
    """
    if plan.best is None or not evaluations:
        return None
    _check_name(evaluations, plan.best.metric)
    delta = plan.early_stopping.min_delta if plan.early_stopping else 0.0
    sign = -1.0 if _wants_less(plan.best) else 1.0
    found: Standing | None = None
    for entry in evaluations:
        if entry.step == 0:  # of the model as it came
            continue
        value = entry.figures.get(plan.best.metric)
        if value is not None and (found is None or sign * (value - found.value) > delta):
            found = Standing(entry.step, value, 0)
        elif found is not None:
            found = dataclasses.replace(found, since=found.since + 1)
    return found


def stops_early(found: Standing | None, plan: EvaluationPlan) -> bool:
    """Whether the last evaluations were no better for as long as the spec's patience."""
    return found is not None and plan.early_stopping is not None and found.since >= plan.early_stopping.patience


def is_due(plan: EvaluationPlan, step: int, total_steps: int, steps_per_epoch: int) -> bool:
    """Whether to evaluate after ``step`` steps: before the first, after the last, and as often as the spec says."""
    if step in (0, total_steps):
        return True
    if plan.every_steps is not None:
        return step % plan.every_steps == 0
    interval = (plan.every_epochs or 1.0) * steps_per_epoch
    return int(step / interval) > int((step - 1) / interval)


def _wants_less(best: Best) -> bool:
    return best.mode == "Min" if best.mode else best.metric in _LESS_IS_BETTER


def _check_name(evaluations: Sequence[Evaluated], metric: str) -> None:
    """A figure that is not defined for one model may be for the next: only what stays away is taken for misspelt."""
    known = dict.fromkeys(name for entry in evaluations for name in entry.figures)
    if metric not in known and (metric not in _SOMETIMES_UNDEFINED or len(evaluations) > _CHANCES):
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"spec.evaluation.best.metric: there is no figure {metric!r}; write one of: {', '.join(known)}",
        )
