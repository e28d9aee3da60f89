"""The conditions of a job.

Transitions of the status set what is true, and remove what no longer is. Before each write, ``complete_conditions`` adds what is
False, so that `kubectl wait` can wait for either value, and what follows from the phase.
"""

import datetime
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from finetune_api import names
from finetune_api.reasons import FineTuneError
from finetune_api.status import FINAL_PHASES, Condition, ConditionType, FineTuneJobStatus
from finetune_operator.observed import JobRecord, write_time

_Value = Literal["True", "False", "Unknown"]
# Type, value, reason and message of a condition.
_Row = tuple[ConditionType, _Value, str, str]
_Conditions = Mapping[ConditionType, Condition]

# Reason and message of a condition that no transition has set, or that one has removed.
_FALSE: dict[ConditionType, tuple[str, str]] = {
    "Blocked": ("NotBlocked", "nothing waits for a person"),
    "CheckpointFailing": ("CheckpointsSaved", "no save failed since the newest checkpoint"),
    "ProgressUnknown": ("ReportsReceived", "the pods report their progress, or there are none"),
    "Published": ("NotPublished", "the model is not pushed yet"),
    "QuotaReserved": ("NotReserved", "the job holds no quota of its queue"),
    "TrainingStalled": ("NotStalled", "the training makes progress, or no pod trains"),
}
_MESSAGE_LIMIT = 1000


def with_condition(
    status: FineTuneJobStatus,
    job: JobRecord,
    now: datetime.datetime,
    kind: ConditionType,
    value: _Value,
    reason: str,
    message: str,
) -> Sequence[Condition]:
    """Return the conditions with one of them set. Its transition time stays the same while its value does not change."""
    conditions = _by_type(status)
    conditions[kind] = _condition(conditions, job, now, (kind, value, reason, message))
    return [conditions[name] for name in sorted(conditions)]


def without_conditions(status: FineTuneJobStatus, *kinds: ConditionType) -> FineTuneJobStatus:
    """Return the status without these conditions. ``complete_conditions`` turns those that the job had before to False."""
    left = [condition for condition in status.conditions or () if condition.type not in kinds]
    return status.model_copy(update={"conditions": left or None})


def is_true(status: FineTuneJobStatus, kind: ConditionType) -> bool:
    """Return whether the status has this condition with the value True."""
    return any(item.type == kind and item.status == "True" for item in status.conditions or ())


def complete_conditions(job: JobRecord, status: FineTuneJobStatus, now: datetime.datetime) -> FineTuneJobStatus:
    """Return the status with all its conditions, those that are False too.

    A job always has the conditions that follow from its phase, and Blocked; with a queue, QuotaReserved; with spec.publish,
    Published. It has the other ones from the first time that they are True.
    """
    if status.phase is None:
        return status
    before, found = _by_type(job.status), _by_type(status)
    expected: list[ConditionType] = ["Blocked", *before]
    if names.LABEL_KUEUE_QUEUE in job.kueue_labels:
        expected.append("QuotaReserved")
    if not isinstance(job.spec, FineTuneError) and job.spec.publish is not None:
        expected.append("Published")
    rows: list[_Row] = [(kind, "False", *_FALSE[kind]) for kind in expected if kind in _FALSE and kind not in found]
    rows += [(item.type, item.status, item.reason, item.message) for item in found.values()]
    rows += [*_outcome_rows(status, before.get("Suspended")), *_summary_rows(status, found.get("Blocked"))]
    conditions = {row[0]: _condition(before, job, now, row) for row in rows}
    return status.model_copy(update={"conditions": [conditions[name] for name in sorted(conditions)]})


def _by_type(status: FineTuneJobStatus) -> dict[ConditionType, Condition]:
    return {condition.type: condition for condition in status.conditions or ()}


def _condition(known: _Conditions, job: JobRecord, now: datetime.datetime, row: _Row) -> Condition:
    kind, value, reason, message = row
    before = known.get(kind)
    since = before.last_transition_time if before is not None and before.status == value else write_time(now)
    return Condition(
        type=kind,
        status=value,
        reason=reason,
        message=message[:_MESSAGE_LIMIT],
        last_transition_time=since,
        observed_generation=job.generation,
    )


def _outcome_rows(status: FineTuneJobStatus, suspended_before: Condition | None) -> Iterator[_Row]:
    """Yield Complete, Failed, Running and Suspended."""
    assert status.phase is not None
    phase, reason, message = status.phase, status.reason or "", status.message or ""
    end = (reason, message) if phase in FINAL_PHASES else ("NotFinished", "the job has not ended")
    yield "Complete", _value(phase == "Succeeded"), *end
    yield "Failed", _value(phase == "Failed"), *end
    yield "Running", _value(phase == "Running"), phase, f"the phase is {phase}"
    if phase == "Suspended":
        yield "Suspended", _value(reason == "Suspended"), reason, message
    elif suspended_before is not None and (suspended_before.status == "True" or suspended_before.reason == "Resumed"):
        yield "Suspended", "False", "Resumed", "the job was suspended before"
    else:
        yield "Suspended", "False", "NotSuspended", "the job was never suspended"


def _summary_rows(status: FineTuneJobStatus, blocked: Condition | None) -> Iterator[_Row]:
    """Yield Ready, Reconciling and Stalled: exactly one of them is True. They follow kstatus' rules for a Job.

    A job that trains is Ready, so that a tool that waits for its objects does not wait for the end of a training.
    """
    assert status.phase is not None
    phase, message = status.phase, status.message or ""
    reason: str = phase
    true: ConditionType = "Reconciling"
    if phase == "Failed":
        true, reason = "Stalled", status.reason or phase
    elif phase == "Succeeded":
        true = "Ready"
    elif blocked is not None and blocked.status == "True":
        true, reason, message = "Stalled", blocked.reason, blocked.message
    elif phase in ("Running", "Publishing") or status.reason == "Suspended":
        true = "Ready"
    yield "Ready", _value(true == "Ready"), reason, message
    yield "Reconciling", _value(true == "Reconciling"), reason, message if true == "Reconciling" else ""
    yield "Stalled", _value(true == "Stalled"), reason, message if true == "Stalled" else ""


def _value(value: bool) -> _Value:
    return "True" if value else "False"
