"""Findings about the evaluations: what the model has learned."""

import math
from collections.abc import Iterator, Mapping

from finetune_api.findings import (
    CHOSEN_LOGPS_FACTOR,
    HELD_OUT_RISE,
    LOSS_TOLERANCE,
    MARGIN_KEPT,
    MIN_HELD_OUT_ROWS,
    MIN_SHARE_OF_STEPS,
    OTHER_CLASSES_FACTOR,
    OVERFIT_RISE,
    OVERFIT_SHARE,
    STANDARD_ERRORS,
    FindingType,
)
from finetune_trainer.findings.record import Found, Record

# The metric that decides beside the loss: the first that the task has.
_DECISIVE = ("f1", "microF1", "accuracy")
_HIGHER_IS_BETTER = (*_DECISIVE, "macroF1", "exactMatch", "tokenAccuracy", "rewardAccuracy", "r2")
_LINES_COMPARED = 10


def _is_evidence(record: Record) -> bool:
    """Return whether there are enough held-out rows, and enough steps, for a verdict."""
    return record.data.evaluation_rows >= MIN_HELD_OUT_ROWS and record.share_of_steps >= MIN_SHARE_OF_STEPS


def constant_answer(record: Record) -> Iterator[Found]:
    """Compare with the best constant answer. A loss that is missing is NaN or infinite."""
    last, baseline = record.last, record.baseline
    if last is None or "loss" not in baseline or not _is_evidence(record):
        return
    if last.metrics.get("loss", math.inf) < (1 - LOSS_TOLERANCE) * baseline["loss"]:
        return
    decisive = next((name for name in _DECISIVE if name in baseline and name in last.metrics), None)
    if decisive is not None:
        chance = baseline[decisive]
        error = math.sqrt(max(chance * (1 - chance), 0.0) / record.data.evaluation_rows)
        if last.metrics[decisive] > chance + STANDARD_ERRORS * error:
            return
    names = [name for name in (decisive, "loss") if name is not None]
    figures = ", ".join(f"{name} {last.metrics.get(name, math.nan):.4g} against {baseline[name]:.4g}" for name in names)
    yield FindingType.NO_BETTER_THAN_CONSTANT, f"the model is no better than a constant answer: {figures}"


def one_class(record: Record) -> Iterator[Found]:
    """Find a model that predicts one class for nearly everything."""
    most: Mapping[str, float] | None = record.details.get("mostPredicted")
    if most is None or record.last is None or not _is_evidence(record):
        return
    others, others_predicted = most["all"] - most["actual"], most["all"] - most["predicted"]
    if others >= MIN_HELD_OUT_ROWS and others_predicted < OTHER_CLASSES_FACTOR * others:
        share, actual = most["predicted"] / most["all"], most["actual"] / most["all"]
        text = f"{most['class']} is predicted for {share:.1%} of the held-out data, and true for {actual:.1%}"
        yield FindingType.ONE_CLASS_PREDICTED, text


def held_out_loss(record: Record) -> Iterator[Found]:
    """Compare the held-out loss with that before the training, and with its lowest value."""
    last, before = record.last, record.before
    if last is None or not _is_evidence(record):
        return
    loss = last.metrics.get("loss", math.inf)
    if before is not None and "loss" in before.metrics and loss > (1 + HELD_OUT_RISE) * before.metrics["loss"]:
        text = f"the held-out loss is {loss:.4g}, and it was {before.metrics['loss']:.4g} before the training"
        yield FindingType.HELD_OUT_LOSS_ROSE, text
        return  # the lowest value adds nothing
    if not record.keeps_best:
        yield from _overfitting(record, loss)


def _overfitting(record: Record, loss: float) -> Iterator[Found]:
    last, trained = record.last, [entry for entry in record.evaluations if entry.step > 0 and "loss" in entry.metrics]
    if last is None or not trained:
        return
    lowest = min(trained, key=lambda entry: entry.metrics["loss"])
    losses = [(entry["step"], entry["loss"]) for entry in record.steps]
    then = [value for step, value in losses if step <= lowest.step][-_LINES_COMPARED:]
    now = [value for step, value in losses if step > lowest.step][-_LINES_COMPARED:]
    best = lowest.metrics["loss"]
    before = record.before.metrics.get("loss", 0.0) if record.before is not None else 0.0
    scale = record.baseline.get("loss", before)
    if loss - best <= max(OVERFIT_RISE * best, OVERFIT_SHARE * scale) or not then or not now:
        return
    training_then, training_now = sum(then) / len(then), sum(now) / len(now)
    better = any(last.metrics.get(name, -math.inf) > lowest.metrics.get(name, math.inf) for name in _HIGHER_IS_BETTER)
    if training_now < training_then and not better:
        yield (
            FindingType.OVERFITTING,
            (
                f"since step {lowest.step:,} the held-out loss rose from {best:.4g} to {loss:.4g}, while the "
                f"training loss fell from {training_then:.4g} to {training_now:.4g}"
            ),
        )


def preferences(record: Record) -> Iterator[Found]:
    """Find a reward margin that falls, and chosen answers that become unlikely."""
    last, before = record.last, record.before
    if last is None or "rewardMargin" not in last.metrics or not _is_evidence(record):
        return
    margin, chosen = last.metrics["rewardMargin"], last.metrics.get("chosenLogps")
    highest = max((entry.metrics.get("rewardMargin", -math.inf), entry.step) for entry in record.evaluations)
    if margin < 0:
        yield FindingType.REWARD_MARGIN_FELL, f"the reward margin is {margin:.4g}: the rejected answers are preferred"
    elif margin < MARGIN_KEPT * highest[0]:
        text = f"the reward margin fell from {highest[0]:.4g} at step {highest[1]:,} to {margin:.4g}"
        yield FindingType.REWARD_MARGIN_FELL, text
    earlier = before.metrics.get("chosenLogps") if before is not None else None
    if chosen is not None and earlier is not None and chosen < CHOSEN_LOGPS_FACTOR * earlier:
        text = f"the log-probability of the chosen answers fell from {earlier:.4g} to {chosen:.4g}"
        yield FindingType.CHOSEN_ANSWERS_LESS_LIKELY, text


CHECKS = (constant_answer, one_class, held_out_loss, preferences)
