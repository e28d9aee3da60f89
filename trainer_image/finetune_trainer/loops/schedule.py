"""The learning rate over the training: the schedules of transformers, for both loops."""

from collections.abc import Mapping
from typing import Any, cast

import torch
import transformers

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import SCHEDULERS_BY_METRIC, FineTuneJobSpec
from finetune_trainer.data.batches import warmup_steps
from finetune_trainer.loops.best import lower_is_better

_WITHOUT_OPTIONS = ("constant", "constant_with_warmup")  # transformers ignores options that these are given
_ANY_STEPS = 100  # of the schedule that only checks the options


class MetricSchedule:
    """A schedule that changes the learning rate after an evaluation, because a metric improves or does not improve any more.

    inner: the schedule of torch or transformers, whose step() takes the metric. It has no warm-up.
    """

    def __init__(self, inner: Any, metric: str) -> None:
        self._inner, self._metric = inner, metric

    def step(self) -> None:
        """Do nothing: optimizer steps do not change the learning rate."""

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Take the metrics of an evaluation. An evaluation in which the metric is undefined changes nothing."""
        if self._metric in metrics:
            self._inner.step(metrics[self._metric])

    def get_last_lr(self) -> list[float]:
        """Return the learning rate of each group of parameters."""
        return [group["lr"] for group in self._inner.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the state, for a checkpoint."""
        return cast(dict[str, Any], self._inner.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self._inner.load_state_dict(state)


def build_schedule(spec: FineTuneJobSpec, options: Any, optimizer: torch.optim.Optimizer, total_steps: int) -> Any:
    """Return the schedule that the spec names. options: lr_scheduler_kwargs of spec.training.arguments.

    Raises FineTuneError for options that the schedule does not take, or lacks.
    """
    training, best = spec.training, spec.evaluation.best
    by_metric = training.scheduler in SCHEDULERS_BY_METRIC
    follow = {"mode": "max" if best and not lower_is_better(best) else "min"} if by_metric else {}
    try:
        if options and training.scheduler in _WITHOUT_OPTIONS:
            raise ValueError("it has no options")
        schedule = transformers.get_scheduler(
            "constant_with_warmup" if training.scheduler == "constant" else training.scheduler,
            optimizer,
            warmup_steps(training, total_steps),
            total_steps,
            scheduler_specific_kwargs=follow | dict(options or {}),
        )
    except (ValueError, TypeError) as error:
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"spec.training.scheduler: {training.scheduler}: {error}; its options are in spec.training.arguments: "
            "{lr_scheduler_kwargs: {…}}",
        ) from None
    return MetricSchedule(schedule, best.metric if best else "loss") if by_metric else schedule


def observe(schedule: Any, metrics: Mapping[str, float]) -> None:
    """Tell the schedule the metrics of an evaluation, if it follows one."""
    if isinstance(schedule, MetricSchedule):
        schedule.observe(metrics)


def check_schedule(spec: FineTuneJobSpec, options: Any) -> None:
    """Raise FineTuneError for wrong options of the schedule, before a model is loaded."""
    build_schedule(spec, options, torch.optim.SGD([torch.zeros(1)], spec.training.learning_rate), _ANY_STEPS)
