"""When to evaluate, which evaluation is the best, and when to stop early: functions of the evaluations so far."""

import pytest

from finetune_api.reasons import FineTuneError
from finetune_api.spec import Best, EarlyStopping, EvaluationPlan
from finetune_trainer.loops.best import best_evaluation, describe_early_stop, should_stop_early
from finetune_trainer.monitoring.evaluation import EvaluationResult
from finetune_trainer.monitoring.schedule import is_due, useless_early_stopping


def losses(*values: float) -> list[EvaluationResult]:
    """Return evaluations after 0, 10, 20, … steps."""
    return [EvaluationResult(10 * index, {"loss": value, "accuracy": -value}) for index, value in enumerate(values)]


def plan(metric: str = "loss", patience: int | None = None, min_delta: float = 0.0) -> EvaluationPlan:
    stopping = None if patience is None else EarlyStopping(patience=patience, min_delta=min_delta)
    return EvaluationPlan(best=Best(metric=metric), early_stopping=stopping)


def due(spec: EvaluationPlan, total: int = 20, steps_per_epoch: int = 8) -> list[int]:
    return [step for step in range(total + 1) if is_due(spec, step, total, steps_per_epoch)]


def test_evaluations_are_due_before_the_first_step_after_each_epoch_and_after_the_last_step() -> None:
    assert due(EvaluationPlan()) == [0, 8, 16, 20]


def test_evaluations_are_due_as_often_as_the_spec_says() -> None:
    assert due(EvaluationPlan(every_steps=7)) == [0, 7, 14, 20]
    assert due(EvaluationPlan(every_epochs=0.5)) == [0, 4, 8, 12, 16, 20]
    assert due(EvaluationPlan(every_epochs=0.3)) == [0, 3, 5, 8, 10, 12, 15, 17, 20]
    assert due(EvaluationPlan(every_epochs=100.0)) == [0, 20]


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_a_lower_loss_and_a_higher_accuracy_are_better(metric: str) -> None:
    found = best_evaluation(losses(9, 3, 2, 4, 5), plan(metric))
    assert found is not None
    assert (found.step, found.evaluations_since) == (20, 2)


def test_the_mode_can_be_given() -> None:
    found = best_evaluation(losses(9, 3, 2, 4), EvaluationPlan(best=Best(metric="loss", mode="Max")))
    assert found is not None
    assert found.step == 30


def test_the_model_before_the_training_is_never_the_best() -> None:
    assert best_evaluation(losses(0.1), plan()) is None
    found = best_evaluation(losses(0.1, 5, 4), plan())
    assert found is not None
    assert found.step == 20


def test_without_best_in_the_spec_no_evaluation_is_the_best() -> None:
    assert best_evaluation(losses(1, 2), EvaluationPlan()) is None


def test_training_stops_when_patience_is_exhausted_and_gains_below_min_delta_do_not_count() -> None:
    stops = plan(patience=2, min_delta=0.5)
    assert not should_stop_early(best_evaluation(losses(9, 5, 4.8), stops), stops)
    assert should_stop_early(best_evaluation(losses(9, 5, 4.8, 4.6), stops), stops)
    assert not should_stop_early(best_evaluation(losses(9, 5, 4.8, 4.4), stops), stops)
    assert not should_stop_early(best_evaluation(losses(9, 5, 6, 7, 8), plan()), plan())


def test_an_unknown_metric_is_refused_with_the_names_of_the_known_metrics() -> None:
    with pytest.raises(FineTuneError, match=r"best.metric: there is no metric 'f2'; write one of: loss, accuracy"):
        best_evaluation(losses(1, 2), plan("f2"))
    assert best_evaluation(losses(1, 2), plan("f1")) is None, "the metric may not be defined yet"
    with pytest.raises(FineTuneError, match="there is no metric 'f1'"):
        best_evaluation(losses(1, 2, 3, 4), plan("f1"))


def test_an_evaluation_without_the_metric_is_never_the_best() -> None:
    diverged = [*losses(9, 3), EvaluationResult(20, {"accuracy": 0.0}), *losses(0, 0, 0, 4)[3:]]
    found = best_evaluation(diverged, plan())
    assert found is not None
    assert (found.step, found.evaluations_since) == (10, 2)


def test_early_stopping_that_cannot_take_effect_is_said() -> None:
    spec = plan(patience=2)
    message = useless_early_stopping(spec, total_steps=24, steps_per_epoch=8)
    assert message is not None
    assert "with patience 2 it needs at least 4 evaluations, and this training has 3" in message
    assert useless_early_stopping(spec, total_steps=32, steps_per_epoch=8) is None
    assert useless_early_stopping(plan(), total_steps=1, steps_per_epoch=8) is None


def test_an_early_stop_says_why_and_which_step_was_the_best() -> None:
    found = best_evaluation(losses(9, 3, 2, 4, 5), plan(patience=2))
    assert found is not None
    assert describe_early_stop(found, "loss", 40, 100) == (
        "stopped early after step 40 of 100: in 2 evaluation(s) loss was not better than 2 after step 20, whose model is the "
        "finished one"
    )
