"""How a FineTuneJob's status changes: one function per turn of its life. Pure: now is given."""

import datetime
from collections.abc import Sequence
from typing import Literal

from finetune_api.durations import format_duration
from finetune_api.reasons import VERDICTS, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import (
    FINAL_PHASES,
    Attempt,
    Condition,
    ConditionType,
    Failure,
    FineTuneJobStatus,
    Phase,
    Resolved,
    Restarts,
)
from finetune_operator.observed import JobRecord, Whole, read_time, write_time
from finetune_operator.policy.progress import furthest_step, without_estimate
from finetune_operator.policy.waiting import ORDINARY

# Progress is written at most so often: with a thousand jobs each write more is a hundred per second.
PROGRESS_INTERVAL = datetime.timedelta(seconds=10)
START_INTERVAL = datetime.timedelta(seconds=30)
_PROGRESS_FIELDS = frozenset({"progress", "evaluation", "best", "checkpoint", "message", "samples"})
# The steps of an ordinary start follow each other within a second or two, or wait for a cluster that has much to do.
_START_FIELDS = _PROGRESS_FIELDS | {"reason"}


# In the other phases there is no next time: the pods that told it are about to go.
_WITH_PATIENCE = frozenset({"Queued", "Pending", "Initializing", "Running", "Publishing"})
_KEPT_ATTEMPTS = 10


def is_due(
    job: JobRecord, status: FineTuneJobStatus, now: datetime.datetime, interval: datetime.timedelta = PROGRESS_INTERVAL
) -> bool:
    """Whether the new status is to be written now: changes of progress alone, and of an ordinary start, wait for the interval.

    What became of the time is told with whatever else is written.
    """
    before, after = job.status.to_wire(), status.to_wire()
    changed = {name for name in (before.keys() | after.keys()) - {"goodput"} if before.get(name) != after.get(name)}
    if _kinds(job.status) == _kinds(status):  # at most their messages differ, which may tell of passing seconds
        changed = {"message" if name == "conditions" else name for name in changed}
    if not changed:
        return False
    if status.phase not in _WITH_PATIENCE or (status.attempts and status.attempts[-1].completion_time):
        return True
    ordinary = status.reason in ORDINARY and status.phase == "Pending"
    patient, interval = (_START_FIELDS, max(interval, START_INTERVAL)) if ordinary else (_PROGRESS_FIELDS, interval)
    since = job.status_written_at
    return not changed <= patient or since is None or now - since >= interval


def _kinds(status: FineTuneJobStatus) -> list[tuple[str, ...]]:
    return [(item.type, item.status, item.reason, item.last_transition_time) for item in status.conditions or ()]


def in_phase(status: FineTuneJobStatus, phase: Phase, reason: str, message: str) -> FineTuneJobStatus:
    """The status in a phase that is not final."""
    assert phase not in FINAL_PHASES
    over: ConditionType = "TrainingStalled" if phase in ("Queued", "Pending", "Restarting") else "Blocked"
    status = without_conditions(status, over)
    progress = status.progress if phase == "Running" else without_estimate(status.progress)
    return status.model_copy(update={"phase": phase, "reason": reason, "message": message, "progress": progress})


def started(status: FineTuneJobStatus, spec: FineTuneJobSpec, whole: Whole) -> FineTuneJobStatus:
    """The status once all children of an attempt are there."""
    nodes, attempt = whole.nodes, whole.attempt
    resolved = (status.resolved or Resolved()).model_copy(
        update={"image": whole.image, "nodes": nodes, "processes": nodes * spec.processes_per_node}
    )
    status = without_conditions(status, "Suspended", "Blocked").model_copy(
        update={
            "attempt": attempt,
            "attempts": _with_attempt(status, whole),
            "restarts": status.restarts or Restarts(),
            "resolved": resolved,
            "start_time": status.start_time or write_time(whole.at),
        }
    )
    return in_phase(status, "Pending", "PodsPending", f"attempt {attempt}: waiting for {count(nodes, 'pod')} to start")


def queued(
    status: FineTuneJobStatus, job: JobRecord, verdict: tuple[str, str] | None, now: datetime.datetime
) -> FineTuneJobStatus:
    """The status of a job whose Job is held back by a queue. verdict: reason and message of Kueue, if it gave one."""
    ran = running_seconds(status, now)
    reason, message = verdict or ("WaitingForQueue", "the Job is suspended until its queue lets it go")
    before = status.message or ""
    if status.running_since is not None or (status.phase == "Queued" and before.startswith("evicted")):
        message = f"evicted after {format_duration(ran)} of running, goes on from its last checkpoint: {message}"
    status = status.model_copy(update={"running_seconds": ran or None, "running_since": None})
    if reason == "Inadmissible":  # as for a queue that does not exist: nothing will change by waiting
        return blocked(status, job, "Queued", reason, message, now)
    return in_phase(without_conditions(status, "Blocked"), "Queued", reason, message[:1000])


def withdrawn(status: FineTuneJobStatus, now: datetime.datetime) -> FineTuneJobStatus:
    """The status of an attempt that is taken back because a quota lets only a part of the gang in."""
    message = f"a part of the gang would hold machines for nothing, tried again in a minute: {status.message}"
    reason = status.reason or "QuotaExceeded"
    return in_phase(closed(status, reason, now), "Queued", reason, message[:1000])


def suspended(status: FineTuneJobStatus, job: JobRecord, message: str | None, now: datetime.datetime) -> FineTuneJobStatus:
    """The status of a job that its user stopped. message: what is still to be waited for."""
    saved = f", the checkpoint of step {status.checkpoint.step} is kept" if status.checkpoint is not None else ""
    message = message or f"suspended{saved}: set spec.suspend to false to go on"
    if not (status.attempts and status.attempts[-1].completion_time):
        status = closed(status, "Suspended", now)
    conditions = with_condition(status, job, now, "Suspended", "True", "Suspended", message)
    return in_phase(status.model_copy(update={"conditions": conditions}), "Suspended", "Suspended", message)


def blocked(
    status: FineTuneJobStatus, job: JobRecord, phase: Phase, reason: str, message: str, now: datetime.datetime
) -> FineTuneJobStatus:
    """The status of a job for which something can't be done that only people can mend."""
    status = in_phase(status, phase, reason, message[:1000])
    conditions = with_condition(status, job, now, "Blocked", "True", reason, message[:1000])
    return status.model_copy(update={"conditions": conditions})


def running_seconds(status: FineTuneJobStatus, now: datetime.datetime) -> int:
    """Seconds that the pods of all attempts have run so far."""
    since = read_time(status.running_since)
    return (status.running_seconds or 0) + (max(0, round((now - since).total_seconds())) if since is not None else 0)


def _with_attempt(status: FineTuneJobStatus, whole: Whole) -> Sequence[Attempt]:
    before = [item for item in status.attempts or () if item.number != whole.attempt]
    checkpoint = status.checkpoint.step if status.checkpoint is not None else None
    new = Attempt(number=whole.attempt, start_time=write_time(whole.at), nodes=whole.nodes, from_step=checkpoint)
    return [*before, new][-_KEPT_ATTEMPTS:]


def closed(status: FineTuneJobStatus, reason: str, now: datetime.datetime) -> FineTuneJobStatus:
    """The status with its present attempt ended, and the time that it ran added up.

    What was charged to recovery.maxRestarts is settled if the attempt got beyond the checkpoint that it had started from.
    """
    update: dict[str, object] = {"running_seconds": running_seconds(status, now) or None, "running_since": None}
    if status.attempts and status.attempts[-1].completion_time is None:
        last, restarts = status.attempts[-1], status.restarts or Restarts()
        end = {"completion_time": write_time(now), "reason": reason, "step": furthest_step(status.progress)}
        update["attempts"] = [*status.attempts[:-1], last.model_copy(update=end)]
        if restarts.charged and status.checkpoint is not None and status.checkpoint.step > (last.from_step or 0):
            update["restarts"] = restarts.model_copy(update={"charged": 0})
    return without_conditions(status, "TrainingStalled").model_copy(update=update)


def without_conditions(status: FineTuneJobStatus, *kinds: ConditionType) -> FineTuneJobStatus:
    """The status without the conditions that are not true any more."""
    left = [condition for condition in status.conditions or () if condition.type not in kinds]
    return status.model_copy(update={"conditions": left or None})


def failed(
    status: FineTuneJobStatus, failure: Failure, message: str, job: JobRecord, now: datetime.datetime
) -> FineTuneJobStatus:
    """The final status of a job that failed."""
    status = without_conditions(closed(status, failure.reason, now), "Blocked", "Suspended")
    conditions = with_condition(status, job, now, "Failed", "True", failure.reason, message)
    return status.model_copy(
        update={
            "phase": "Failed",
            "reason": failure.reason,
            "message": message,
            "failure": failure,
            "restarts": status.restarts or Restarts(),
            "progress": without_estimate(status.progress),
            "conditions": conditions,
            "completion_time": write_time(now),
        }
    )


def refused(status: FineTuneJobStatus, reason: Reason, message: str, job: JobRecord, now: datetime.datetime) -> FineTuneJobStatus:
    """The final status of a job of which no pod was ever started, or none can be again."""
    return failed(status, Failure(reason=reason.value, message=message, hint=VERDICTS[reason].hint), message, job, now)


def succeeded(status: FineTuneJobStatus, spec: FineTuneJobSpec, job: JobRecord, now: datetime.datetime) -> FineTuneJobStatus:
    """The final status of a job that reached its goal; an earlier attempt's failure is history by then."""
    progress = without_estimate(status.progress)
    if progress is not None:
        progress = progress.model_copy(update={"percent": 100, "display": "100%", "step": progress.total_steps or progress.step})
        progress = progress.model_copy(update={"furthest_step": None})
    message = _summary(status)
    status = without_conditions(closed(status, "Completed", now), "Blocked", "CheckpointFailing", "Suspended")
    status = status.model_copy(
        update={
            "phase": "Succeeded",
            "reason": "Completed",
            "message": message,
            "failure": None,
            "restarts": status.restarts or Restarts(),
            "progress": progress,
            "conditions": with_condition(status, job, now, "Complete", "True", "Completed", message),
            "completion_time": write_time(now),
        }
    )
    if spec.publish is None:
        return status
    if status.published is not None:
        verdict: tuple[Literal["True", "Unknown"], str, str] = ("True", "Published", f"pushed to {status.published.url}")
    else:
        verdict = ("Unknown", "NoReport", f"the pods did not say whether {spec.publish.repository} was pushed")
    return status.model_copy(update={"conditions": with_condition(status, job, now, "Published", *verdict)})


def with_condition(
    status: FineTuneJobStatus,
    job: JobRecord,
    now: datetime.datetime,
    kind: ConditionType,
    value: Literal["True", "False", "Unknown"],
    reason: str,
    message: str,
) -> Sequence[Condition]:
    """The conditions with one of them set; its time is kept while its value does not change."""
    before = {condition.type: condition for condition in status.conditions or ()}
    known = before.get(kind)
    since = known.last_transition_time if known is not None and known.status == value else write_time(now)
    before[kind] = Condition(
        type=kind, status=value, reason=reason, message=message, last_transition_time=since, observed_generation=job.generation
    )
    return [before[name] for name in sorted(before)]


def count(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _summary(status: FineTuneJobStatus) -> str:
    metrics = dict(status.evaluation.metrics) if status.evaluation is not None else {}
    shown = next((name for name in ("accuracy", "loss") if name in metrics), None)
    steps = f"trained {count(status.progress.total_steps or status.progress.step, 'step')}" if status.progress else "trained"
    return f"{steps}, {shown} {metrics[shown]:g} on the held-out data" if shown else steps
