"""Applies a pod's report to the status: progress, restarts in place, and problems of a training that continues."""

import datetime

from finetune_api.status import ConditionType, FineTuneJobStatus
from finetune_api.wire import Report
from finetune_operator.observed import JobRecord
from finetune_operator.policy.conditions import with_condition, without_conditions
from finetune_operator.policy.goodput import with_timing
from finetune_operator.policy.progress import MAX_COUNT, merge_report
from finetune_operator.policy.restart_budget import with_in_place_restarts

_TEXT_LIMIT = 1000
_MAX_CHECKPOINTS, _NAME_LIMIT = 10, 63


def apply_report(status: FineTuneJobStatus, job: JobRecord, report: Report, now: datetime.datetime) -> FineTuneJobStatus:
    """Return the status with everything that a pod of the present attempt reported, while it runs or at its end."""
    status = with_in_place_restarts(merge_report(status, report, now), [report])
    # A pod does not know the times of earlier attempts until it has resumed.
    if report.timing is not None and report.phase != "Initializing":
        status = with_timing(status, report.timing)
    problem, attempt_ended = report.checkpoint_problem, not status.attempts or status.attempts[-1].completion_time is not None
    checkpoint_failing = (problem.reason[:_NAME_LIMIT] or "WriteFailed", problem.message) if problem is not None else None
    stalled = ("NoProgress", report.stalled) if report.stalled and not attempt_ended else None
    status = _set_or_clear_condition(status, job, "CheckpointFailing", checkpoint_failing, now)
    status = _set_or_clear_condition(status, job, "TrainingStalled", stalled, now)
    return _with_resume_point(status, report)


def _set_or_clear_condition(
    status: FineTuneJobStatus, job: JobRecord, kind: ConditionType, problem: tuple[str, str] | None, now: datetime.datetime
) -> FineTuneJobStatus:
    """Set the condition, or clear it if there is no problem. problem: reason and message of the condition."""
    if problem is None:
        return without_conditions(status, kind)
    reason, message = problem
    return status.model_copy(update={"conditions": with_condition(status, job, now, kind, "True", reason, message[:_TEXT_LIMIT])})


def _with_resume_point(status: FineTuneJobStatus, report: Report) -> FineTuneJobStatus:
    """Add to the attempt which checkpoint it started from, and the damaged ones that it skipped.

    The operator does not know the checkpoints of an earlier job in the same claim, nor which ones are damaged.
    """
    update: dict[str, object] = {}
    if report.from_step is not None and 0 <= report.from_step <= MAX_COUNT:
        update["from_step"] = report.from_step or None
    if report.skipped_checkpoints:
        update["skipped_checkpoints"] = [name[:_NAME_LIMIT] for name in report.skipped_checkpoints[:_MAX_CHECKPOINTS]]
    if not update or not status.attempts:
        return status
    return status.model_copy(update={"attempts": [*status.attempts[:-1], status.attempts[-1].model_copy(update=update)]})
