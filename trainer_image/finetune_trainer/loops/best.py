"""Finds the best evaluation, and decides on early stopping. All functions are pure."""

import dataclasses
from collections.abc import Sequence

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import Best, EvaluationPlan
from finetune_trainer.monitoring.evaluation import EvaluationResult

# For these metrics a lower value is better.
_LOWER_IS_BETTER = ("loss", "perplexity", "mse", "rmse", "mae")
# An evaluation lacks these metrics if they are undefined: a correlation with a constant, the loss of a model that diverged.
_SOMETIMES_UNDEFINED = ("loss", "perplexity", "f1", "precision", "recall", "pearson", "spearman", "r2")
_MAX_EVALUATIONS_WITHOUT_METRIC = 3


@dataclasses.dataclass(frozen=True)
class BestEvaluation:
    """The best evaluation so far. evaluations_since: number of evaluations after it that were no better."""

    step: int
    value: float
    evaluations_since: int


def best_evaluation(evaluations: Sequence[EvaluationResult], plan: EvaluationPlan) -> BestEvaluation | None:
    """Return the best evaluation so far; None if the training has no evaluation yet, or if the spec has no evaluation.best.

    An evaluation in which the metric is undefined (the loss of a model that diverged) is never the best. Raises FineTuneError if
    no evaluation has a metric of that name.
    """
    if plan.best is None or not evaluations:
        return None
    _check_metric_name(evaluations, plan.best.metric)
    delta = plan.early_stopping.min_delta if plan.early_stopping else 0.0
    sign = -1.0 if lower_is_better(plan.best) else 1.0
    found: BestEvaluation | None = None
    for entry in evaluations:
        if entry.step == 0:  # the model before the training
            continue
        value = entry.metrics.get(plan.best.metric)
        if value is not None and (found is None or sign * (value - found.value) > delta):
            found = BestEvaluation(entry.step, value, 0)
        elif found is not None:
            found = dataclasses.replace(found, evaluations_since=found.evaluations_since + 1)
    return found


def should_stop_early(found: BestEvaluation | None, plan: EvaluationPlan) -> bool:
    """Return whether the last ``patience`` evaluations were no better than the best one."""
    return found is not None and plan.early_stopping is not None and found.evaluations_since >= plan.early_stopping.patience


def describe_early_stop(found: BestEvaluation, metric: str, step: int, total_steps: int) -> str:
    """Return one sentence: when the training stopped, why, and which model became the finished one."""
    return (
        f"stopped early after step {step} of {total_steps}: in {found.evaluations_since} evaluation(s) {metric} was not better "
        f"than {found.value:.4g} after step {found.step}, whose model is the finished one"
    )


def lower_is_better(best: Best) -> bool:
    """Return whether a lower value of the metric is better."""
    return best.mode == "Min" if best.mode else best.metric in _LOWER_IS_BETTER


def _check_metric_name(evaluations: Sequence[EvaluationResult], metric: str) -> None:
    """Raise FineTuneError for a misspelt metric.

    Some metrics can be undefined for one model and defined for the next. Such a metric may be missing in a few evaluations.
    """
    known = dict.fromkeys(name for entry in evaluations for name in entry.metrics)
    if metric not in known and (metric not in _SOMETIMES_UNDEFINED or len(evaluations) > _MAX_EVALUATIONS_WITHOUT_METRIC):
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"spec.evaluation.best.metric: there is no metric {metric!r}; write one of: {', '.join(known)}",
        )
