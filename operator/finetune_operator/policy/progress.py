"""Converts a pod's report into fields of the status: rounded, readable, and valid for the API server."""

import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_api.durations import format_duration
from finetune_api.findings import MAX_FINDINGS, FindingType
from finetune_api.status import (
    CheckpointStatus,
    Entity,
    Evaluation,
    Finding,
    FineTuneJobStatus,
    Guess,
    LabelScore,
    Progress,
    Published,
    Resolved,
    SampleAnswer,
)
from finetune_api.wire import Report
from finetune_operator.observed import read_time, write_time

_MAX_REMAINING_SECONDS = 10 * 365 * 86_400
MAX_COUNT = 2**53  # many readers of JSON do not keep larger integers exactly
_MAX_METRICS = 64
_TEXT_LIMIT, _ANSWER_LIMIT, _FINDING_LIMIT = 200, 400, 500
_MAX_ENTITIES, _MAX_GUESSES = 32, 5


def round_significant(value: float, digits: int) -> float:
    """Round a number to this many significant digits."""
    try:
        return 0.0 if value == 0 else round(value, digits - 1 - math.floor(math.log10(abs(value))))
    except OverflowError:  # the largest numbers can't be rounded up
        return value


def merge_report(status: FineTuneJobStatus, report: Report, now: datetime.datetime) -> FineTuneJobStatus:
    """Return the status with the values of a pod's report. Values that the report omits stay as they were."""
    update: dict[str, Any] = {}
    if progress := build_progress(status.progress, report, now):
        update["progress"] = progress
    if report.evaluation is not None and 0 <= report.evaluation.step <= MAX_COUNT:
        update["evaluation"] = _round_evaluation(report.evaluation)
    if report.best is not None and 0 <= report.best.step <= MAX_COUNT:
        update["best"] = _round_evaluation(report.best)
    if report.stopped_early is not None:
        update["stopped_early"] = report.stopped_early[:_ANSWER_LIMIT]
    if report.findings is not None:
        update["findings"] = _select_findings(report.findings) or None
    if report.samples is not None:
        update["samples"] = [_truncate_sample(sample) for sample in report.samples[:16]]
    if report.checkpoint is not None and (moment := read_time(report.checkpoint.time)):
        update["checkpoint"] = CheckpointStatus(step=report.checkpoint.step, time=write_time(moment))
    if report.published is not None:
        update["published"] = Published(url=report.published.url[:2048], commit=report.published.commit[:_TEXT_LIMIT])
    if report.resolved is not None:
        update["resolved"] = _merge_resolved(status.resolved or Resolved(), report.resolved)
    return status.model_copy(update=update)


def build_progress(previous: Progress | None, report: Report, now: datetime.datetime) -> Progress | None:
    """Return the progress for columns and dashboards. Keep the previous progress until the next attempt has resumed."""
    if not 0 <= report.step <= MAX_COUNT or (report.total_steps or 0) > MAX_COUNT:
        return previous
    if report.total_steps is None or (report.step == 0 and previous is not None and report.phase != "Running"):
        return previous
    percent = min(100, 100 * report.step // report.total_steps) if report.total_steps > 0 else 0
    running = report.phase == "Running" and report.remaining_seconds is not None
    seconds = min(max(0.0, report.remaining_seconds or 0.0), _MAX_REMAINING_SECONDS)
    last_step = read_time(report.last_step_time)
    rate, tokens = report.samples_per_second, report.tokens_per_second
    furthest = furthest_step(previous) or 0
    return Progress(
        step=report.step,
        total_steps=report.total_steps,
        percent=percent,
        display=f"{percent}%",
        epoch=round(report.epoch, 2) if report.epoch is not None else None,
        loss=round_significant(report.loss, 4) if report.loss is not None else None,
        learning_rate=round_significant(report.learning_rate, 4) if report.learning_rate is not None else None,
        samples_per_second=round_significant(rate, 3) if rate is not None else None,
        tokens_per_second=round_significant(tokens, 3) if tokens is not None else None,
        furthest_step=furthest if furthest > report.step else None,
        last_step_time=write_time(last_step) if last_step else None,
        remaining=format_duration(seconds) if running else None,
        estimated_completion_time=write_time(now + datetime.timedelta(seconds=seconds)) if running else None,
    )


def furthest_step(progress: Progress | None) -> int | None:
    """Return the furthest step of all attempts, or None if no step was reported."""
    if progress is None:
        return None
    return max(progress.step, progress.furthest_step or 0)


def without_estimate(progress: Progress | None) -> Progress | None:
    """Return the progress without the remaining time, which is unknown while the job does not train."""
    return progress.model_copy(update={"remaining": None, "estimated_completion_time": None}) if progress else None


def _merge_resolved(known: Resolved, reported: Resolved) -> Resolved:
    """Keep the commits of the first attempt, and update the batch sizes. Image, nodes and processes are set by the operator."""
    return known.model_copy(
        update={
            "model_revision": known.model_revision or reported.model_revision,
            "dataset_revisions": known.dataset_revisions or reported.dataset_revisions,
            "global_batch_size": reported.global_batch_size or known.global_batch_size,
            "per_device_batch_size": reported.per_device_batch_size or known.per_device_batch_size,
        }
    )


def _round_evaluation(evaluation: Evaluation) -> Evaluation:
    baseline = _round_metrics(evaluation.baseline or {}) or None
    return Evaluation(step=evaluation.step, metrics=_round_metrics(evaluation.metrics), baseline=baseline)


def _round_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name[:63]: round_significant(value, 4) for name, value in sorted(metrics.items())[:_MAX_METRICS]}


def _select_findings(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings of known types, one of each: they become events and labels of a metric."""
    by_type = {finding.type: finding for finding in findings if finding.type in set(FindingType)}
    return [Finding(type=kind, message=finding.message[:_FINDING_LIMIT]) for kind, finding in by_type.items()][:MAX_FINDINGS]


def _truncate_sample(sample: SampleAnswer) -> SampleAnswer:
    return SampleAnswer(
        text=sample.text[:_TEXT_LIMIT],
        label=None if sample.label is None else sample.label[:_TEXT_LIMIT],
        score=None if sample.score is None else round_significant(sample.score, 4),
        labels=None if sample.labels is None else [_truncate_label(label) for label in sample.labels[:_MAX_ENTITIES]],
        entities=None if sample.entities is None else [_truncate_entity(entity) for entity in sample.entities[:_MAX_ENTITIES]],
        guesses=_truncate_guesses(sample.guesses),
        guesses_before=_truncate_guesses(sample.guesses_before),
        answer=None if sample.answer is None else sample.answer[:_ANSWER_LIMIT],
    )


def _truncate_label(label: LabelScore) -> LabelScore:
    return LabelScore(label=label.label[:_TEXT_LIMIT], score=round_significant(label.score, 4))


def _truncate_entity(entity: Entity) -> Entity:
    return Entity(text=entity.text[:_TEXT_LIMIT], label=entity.label[:_TEXT_LIMIT])


def _truncate_guesses(guesses: Sequence[Guess] | None) -> list[Guess] | None:
    if guesses is None:
        return None
    return [Guess(token=guess.token[:_TEXT_LIMIT], score=round_significant(guess.score, 4)) for guess in guesses[:_MAX_GUESSES]]
