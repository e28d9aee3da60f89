"""The learning rate: every schedule of transformers, also those that follow a metric, and wrong options."""

import json
import typing
from typing import Any

import pytest
import torch

from finetune_api.reasons import FineTuneError
from finetune_api.spec import SCHEDULERS_BY_METRIC
from finetune_api.spec.training import Scheduler
from finetune_trainer.checkpoints.tensors import flatten, restore
from finetune_trainer.loops.schedule import build_schedule, check_schedule, observe
from unit.trainer.tiny_models import build_spec

NEEDED = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 10},
}
HALVE = {"factor": 0.5, "patience": 0, "min_lr": 0.0}


def schedule(name: str, options: Any = None, evaluation: dict[str, Any] | None = None) -> Any:
    spec = build_spec("masked-lm", training={"scheduler": name, "learningRate": 0.1}, evaluation=evaluation or {})
    return build_schedule(spec, options, torch.optim.SGD([torch.zeros(1)], 0.1), 100)


@pytest.mark.parametrize("name", typing.get_args(Scheduler))
def test_every_schedule_of_transformers_trains_with_the_learning_rate(name: str) -> None:
    made, rates = schedule(name, NEEDED.get(name)), []
    for _ in range(100):
        made._inner.optimizer.step() if name in SCHEDULERS_BY_METRIC else made.optimizer.step()
        rates.append(made.get_last_lr()[0])
        made.step()
    assert max(rates) == pytest.approx(0.1)


@pytest.mark.parametrize("name", SCHEDULERS_BY_METRIC)
@pytest.mark.parametrize(("metric", "values"), [("loss", (1.0, 2.0, 3.0)), ("accuracy", (0.9, 0.8, 0.7))])
def test_a_schedule_that_follows_a_metric_reduces_the_rate_when_it_gets_worse(
    name: str, metric: str, values: tuple[float, ...]
) -> None:
    made, rates = schedule(name, HALVE, {"best": {"metric": metric}}), []
    for value in values:
        observe(made, {metric: value})
        made.step()
        rates.append(made.get_last_lr()[0])
    observe(made, {"other": 0.0})
    first = {"reduce_lr_on_plateau": 0.1, "greedy": 0.2}[name]  # greedy also raises it when the metric gets better
    assert rates == pytest.approx([first, first / 2, first / 4])
    assert made.get_last_lr() == [rates[-1]], "an evaluation without the metric changes nothing"


@pytest.mark.parametrize("name", SCHEDULERS_BY_METRIC)
def test_its_state_survives_a_checkpoint(name: str) -> None:
    made, again = schedule(name, {**HALVE, "patience": 1}), schedule(name, {**HALVE, "patience": 1})
    observe(made, {"loss": 1.0})
    observe(made, {"loss": 2.0})
    skeleton, tensors = flatten(made.state_dict(), "scheduler")
    again.load_state_dict(restore(json.loads(json.dumps(skeleton)), tensors))
    observe(again, {"loss": 3.0})
    assert again.get_last_lr() == pytest.approx([0.05])


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("cosine_with_min_lr", None, "One of min_lr or min_lr_rate should be set"),
        ("cosine", {"min_lr": 0.1}, "unexpected keyword argument 'min_lr'"),
        ("constant", {"num_cycles": 1}, "it has no options"),
    ],
)
def test_wrong_options_are_refused_with_the_field_of_the_options(name: str, options: Any, reason: str) -> None:
    spec = build_spec("masked-lm", training={"scheduler": name})
    with pytest.raises(FineTuneError) as refused:
        check_schedule(spec, options)
    assert refused.value.message.startswith(f"spec.training.scheduler: {name}: ")
    assert reason in refused.value.message
    assert refused.value.message.endswith("its options are in spec.training.arguments: {lr_scheduler_kwargs: {…}}")
