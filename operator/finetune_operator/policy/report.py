"""What a pod's word comes to in the status: its progress, its restarts, and what is wrong with it though it goes on."""

import datetime

from finetune_api.status import ConditionType, FineTuneJobStatus
from finetune_api.wire import Report
from finetune_operator.observed import JobRecord
from finetune_operator.policy.goodput import with_timing
from finetune_operator.policy.progress import merge_report
from finetune_operator.policy.restarts import with_in_place
from finetune_operator.policy.status import with_condition, without_conditions

_TEXT_LIMIT = 1000
_MOST_CHECKPOINTS, _NAME_LIMIT = 10, 63


def take_word(status: FineTuneJobStatus, job: JobRecord, report: Report, now: datetime.datetime) -> FineTuneJobStatus:
    """The status with all that a pod of the present attempt says of itself, while it runs or at its end."""
    status = with_in_place(merge_report(status, report, now), [report])
    if report.timing is not None and report.phase != "Initializing":  # until it has found its place it knows nothing of before
        status = with_timing(status, report.timing)
    problem, over = report.checkpoint_problem, not status.attempts or status.attempts[-1].completion_time is not None
    unsaved = (problem.reason[:_NAME_LIMIT] or "WriteFailed", problem.message) if problem is not None else None
    stalled = ("NoProgress", report.stalled) if report.stalled and not over else None
    status = _with_trouble(status, job, "CheckpointFailing", unsaved, now)
    status = _with_trouble(status, job, "TrainingStalled", stalled, now)
    return _with_skipped(status, report)


def _with_trouble(
    status: FineTuneJobStatus, job: JobRecord, kind: ConditionType, trouble: tuple[str, str] | None, now: datetime.datetime
) -> FineTuneJobStatus:
    """trouble: reason and message of the condition while it is true."""
    if trouble is None:
        return without_conditions(status, kind)
    reason, message = trouble
    return status.model_copy(update={"conditions": with_condition(status, job, now, kind, "True", reason, message[:_TEXT_LIMIT])})


def _with_skipped(status: FineTuneJobStatus, report: Report) -> FineTuneJobStatus:
    """Named once, by the attempt that found them."""
    if not report.skipped_checkpoints or not status.attempts:
        return status
    skipped = [name[:_NAME_LIMIT] for name in report.skipped_checkpoints[:_MOST_CHECKPOINTS]]
    last = status.attempts[-1].model_copy(update={"skipped_checkpoints": skipped})
    return status.model_copy(update={"attempts": [*status.attempts[:-1], last]})
