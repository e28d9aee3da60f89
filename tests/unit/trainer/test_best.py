"""When to evaluate, which evaluation is the best, and when it is time to stop: functions of what was measured so far."""

import pytest

from finetune_api.reasons import FineTuneError
from finetune_api.spec import Best, EarlyStopping, EvaluationPlan
from finetune_trainer.loops.best import Evaluated, is_due, standing, stops_early


def losses(*values: float) -> list[Evaluated]:
    """Evaluations after 0, 10, 20, … steps."""
    return [Evaluated(10 * index, {"loss": value, "accuracy": -value}) for index, value in enumerate(values)]


def plan(metric: str = "loss", patience: int | None = None, min_delta: float = 0.0) -> EvaluationPlan:
    stopping = None if patience is None else EarlyStopping(patience=patience, min_delta=min_delta)
    return EvaluationPlan(best=Best(metric=metric), early_stopping=stopping)


def due(spec: EvaluationPlan, total: int = 20, steps_per_epoch: int = 8) -> list[int]:
    return [step for step in range(total + 1) if is_due(spec, step, total, steps_per_epoch)]


def test_it_is_evaluated_before_the_first_step_after_each_epoch_and_after_the_last_step() -> None:
    assert due(EvaluationPlan()) == [0, 8, 16, 20]


def test_it_is_evaluated_as_often_as_the_spec_says() -> None:
    assert due(EvaluationPlan(every_steps=7)) == [0, 7, 14, 20]
    assert due(EvaluationPlan(every_epochs=0.5)) == [0, 4, 8, 12, 16, 20]
    assert due(EvaluationPlan(every_epochs=0.3)) == [0, 3, 5, 8, 10, 12, 15, 17, 20]
    assert due(EvaluationPlan(every_epochs=100.0)) == [0, 20]


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_less_loss_and_more_accuracy_are_better(metric: str) -> None:
    found = standing(losses(9, 3, 2, 4, 5), plan(metric))
    assert found is not None
    assert (found.step, found.since) == (20, 2)


def test_the_mode_can_be_given() -> None:
    found = standing(losses(9, 3, 2, 4), EvaluationPlan(best=Best(metric="loss", mode="Max")))
    assert found is not None
    assert found.step == 30


def test_the_model_as_it_came_is_never_the_best() -> None:
    assert standing(losses(0.1), plan()) is None
    found = standing(losses(0.1, 5, 4), plan())
    assert found is not None
    assert found.step == 20


def test_nobody_asked_for_the_best() -> None:
    assert standing(losses(1, 2), EvaluationPlan()) is None


def test_training_stops_when_patience_is_at_its_end_and_counts_no_small_gains() -> None:
    stops = plan(patience=2, min_delta=0.5)
    assert not stops_early(standing(losses(9, 5, 4.8), stops), stops)
    assert stops_early(standing(losses(9, 5, 4.8, 4.6), stops), stops)
    assert not stops_early(standing(losses(9, 5, 4.8, 4.4), stops), stops)
    assert not stops_early(standing(losses(9, 5, 6, 7, 8), plan()), plan())


def test_a_figure_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(FineTuneError, match=r"best.metric: there is no figure 'f2'; write one of: loss, accuracy"):
        standing(losses(1, 2), plan("f2"))
    assert standing(losses(1, 2), plan("f1")) is None, "perhaps it is not defined yet"
    with pytest.raises(FineTuneError, match="there is no figure 'f1'"):
        standing(losses(1, 2, 3, 4), plan("f1"))


def test_an_evaluation_without_the_figure_is_no_better_than_any() -> None:
    diverged = [*losses(9, 3), Evaluated(20, {"accuracy": 0.0}), *losses(0, 0, 0, 4)[3:]]
    found = standing(diverged, plan())
    assert found is not None
    assert (found.step, found.since) == (10, 2)
