"""Transitions of a FineTuneJob's status, one function each. now: the current time."""

import datetime
from collections.abc import Sequence
from typing import Literal

from finetune_api import names
from finetune_api.durations import format_duration
from finetune_api.reasons import REASONS, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import (
    FINAL_PHASES,
    Attempt,
    ConditionType,
    Failure,
    FineTuneJobStatus,
    Phase,
    Resolved,
    Restarts,
)
from finetune_operator.observed import CreatedAttempt, JobRecord, PodState, read_time, write_time
from finetune_operator.policy.conditions import with_condition, without_conditions
from finetune_operator.policy.progress import furthest_step, without_estimate
from finetune_operator.policy.waiting import NORMAL_START_REASONS

# The operator writes progress at most once per interval. With a thousand jobs that is a hundred writes per second.
PROGRESS_INTERVAL = datetime.timedelta(seconds=10)
START_INTERVAL = datetime.timedelta(seconds=30)
_PROGRESS_FIELDS = frozenset({"progress", "evaluation", "best", "checkpoint", "findings", "message", "samples"})
# In a normal start the reason changes every second or two, unless the cluster is busy. So a new reason can wait.
_START_FIELDS = _PROGRESS_FIELDS | {"reason"}
# In the other phases progress is written at once: there may be no further report, because the pods are about to end.
_THROTTLED_PHASES = frozenset({"Queued", "Pending", "Initializing", "Running", "Publishing"})
_MAX_ATTEMPTS = 10
# How many silent pods a message names.
_PODS_NAMED = 3
# status.failure and status.lastFailure have the whole message.
_ATTEMPT_MESSAGE_LIMIT = 300


def is_write_due(
    job: JobRecord, status: FineTuneJobStatus, now: datetime.datetime, interval: datetime.timedelta = PROGRESS_INTERVAL
) -> bool:
    """Return whether to write the new status now. Changes of progress alone, and steps of a normal start, wait for the interval.

    A change of goodput alone is no reason to write.
    """
    before, after = job.status.to_wire(), status.to_wire()
    changed = {name for name in (before.keys() | after.keys()) - {"goodput"} if before.get(name) != after.get(name)}
    if _condition_values(job.status) == _condition_values(status):
        # At most their messages differ, for example in a number of seconds.
        changed = {"message" if name == "conditions" else name for name in changed}
    if not changed:
        return False
    if status.phase not in _THROTTLED_PHASES or (status.attempts and status.attempts[-1].completion_time):
        return True
    normal_start = status.reason in NORMAL_START_REASONS and status.phase == "Pending"
    throttled_fields, interval = (_START_FIELDS, max(interval, START_INTERVAL)) if normal_start else (_PROGRESS_FIELDS, interval)
    since = job.status_written_at
    return not changed <= throttled_fields or since is None or now - since >= interval


def _condition_values(status: FineTuneJobStatus) -> list[tuple[str, ...]]:
    return [(item.type, item.status, item.reason, item.last_transition_time) for item in status.conditions or ()]


def in_phase(status: FineTuneJobStatus, phase: Phase, reason: str, message: str) -> FineTuneJobStatus:
    """Return the status in a phase that is not final."""
    assert phase not in FINAL_PHASES
    cleared: ConditionType = "TrainingStalled" if phase in ("Queued", "Pending", "Restarting") else "Blocked"
    status = without_conditions(status, cleared)
    progress = status.progress if phase == "Running" else without_estimate(status.progress)
    return status.model_copy(update={"phase": phase, "reason": reason, "message": message, "progress": progress})


def attempt_created(status: FineTuneJobStatus, spec: FineTuneJobSpec, created: CreatedAttempt) -> FineTuneJobStatus:
    """Return the status after all children of an attempt were created."""
    nodes, attempt = created.nodes, created.attempt
    resolved = (status.resolved or Resolved()).model_copy(
        update={"image": created.image, "nodes": nodes, "processes": nodes * spec.processes_per_node}
    )
    status = with_bookkeeping(without_conditions(status, "Blocked"), placed_pods=None).model_copy(
        update={
            "attempt": attempt,
            "attempts": _with_attempt(status, created),
            "restarts": status.restarts or Restarts(),
            "resolved": resolved,
            "start_time": status.start_time or write_time(created.created_at),
        }
    )
    return in_phase(status, "Pending", "PodsPending", f"attempt {attempt}: waiting for {pluralize(nodes, 'pod')} to start")


def queued(
    status: FineTuneJobStatus, job: JobRecord, queueing: tuple[str, str] | None, now: datetime.datetime
) -> FineTuneJobStatus:
    """Return the status of a job whose Job is suspended by a queue. queueing: reason and message of Kueue, if it gave any."""
    ran = running_seconds(status, now)
    reason, message = queueing or ("WaitingForQueue", "the Job is suspended until its queue admits it")
    before = status.message or ""
    if status.bookkeeping.running_since is not None or (status.phase == "Queued" and before.startswith("evicted")):
        message = f"evicted after {format_duration(ran)} of running, will continue from its last checkpoint: {message}"
    status = with_bookkeeping(status.model_copy(update={"running_seconds": ran or None}), running_since=None)
    conditions = with_condition(status, job, now, "QuotaReserved", "False", reason, message[:1000])
    status = status.model_copy(update={"conditions": conditions})
    if reason == "Inadmissible":  # for example, the queue does not exist: waiting does not help
        return blocked(status, job, "Queued", reason, message, now)
    return in_phase(without_conditions(status, "Blocked"), "Queued", reason, message[:1000])


def admitted(status: FineTuneJobStatus, job: JobRecord, now: datetime.datetime) -> FineTuneJobStatus:
    """Return the status of a job whose Job is not suspended. If it has a queue, the queue has admitted it."""
    known = any(item.type == "QuotaReserved" for item in status.conditions or ())
    if not known and names.LABEL_KUEUE_QUEUE not in job.kueue_labels:
        return status
    conditions = with_condition(status, job, now, "QuotaReserved", "True", "Admitted", "the queue has admitted the job")
    return status.model_copy(update={"conditions": conditions})


def progress_unknown(
    status: FineTuneJobStatus, job: JobRecord, silent: Sequence[PodState], nodes: int, now: datetime.datetime
) -> FineTuneJobStatus:
    """Return the status of a job of which these pods run but do not answer the operator.

    Step and loss come from the first pod. If it is silent, only the kubelet can tell whether it works: its probe ends a pod that
    does not. So the phase is Running by its word.
    """
    if not silent:
        return status
    who = "the pod does" if nodes == 1 else f"{len(silent)} of {nodes} pods {'does' if len(silent) == 1 else 'do'}"
    addresses = [f"{pod.name} ({pod.address}:{names.PORT_TELEMETRY})" for pod in silent[:_PODS_NAMED]]
    more = f" and {len(silent) - _PODS_NAMED} more" if len(silent) > _PODS_NAMED else ""
    silence = f"{who} not answer the operator: {', '.join(addresses)}{more}"
    question = "does a NetworkPolicy or a service mesh keep the operator out?"
    if silent[0].index != 0:
        message = f"{silence}; step and loss are those of the first pod: {question}"
        conditions = with_condition(status, job, now, "ProgressUnknown", "True", "SomePodsSilent", message)
        return status.model_copy(update={"conditions": conditions})
    message = f"{silence}; step and loss are not known until the end: {question}"
    phase: Phase = "Publishing" if status.phase == "Publishing" else "Running"
    status = in_phase(status, phase, "ProgressUnknown", message)
    conditions = with_condition(status, job, now, "ProgressUnknown", "True", "NoReport", message)
    return status.model_copy(update={"conditions": conditions, "progress": without_estimate(status.progress)})


def withdrawn(status: FineTuneJobStatus, now: datetime.datetime) -> FineTuneJobStatus:
    """Return the status that withdraws an attempt because a quota, or the nodes, have room for some of its pods only."""
    message = f"withdrawn because there is room for some of the pods only (next try after a pause): {status.message}"
    reason = status.reason or "QuotaExceeded"
    return in_phase(attempt_ended(status, reason, now, status.message), "Queued", reason, message[:1000])


def suspended(status: FineTuneJobStatus, stopping: str | None, now: datetime.datetime) -> FineTuneJobStatus:
    """Return the status of a job that its user suspended. stopping: which pods the operator still waits for, or None."""
    if not (status.attempts and status.attempts[-1].completion_time):
        status = attempt_ended(status, "Suspended", now)
    # By the time the job resumes, there may be room for all pods again, and the number of nodes may have changed.
    status = with_bookkeeping(status, placed_pods=None)
    if stopping is not None:
        return in_phase(status, "Suspended", "Stopping", stopping)
    saved = f", the checkpoint of step {status.checkpoint.step} is kept" if status.checkpoint is not None else ""
    return in_phase(status, "Suspended", "Suspended", f"suspended{saved}: set spec.suspend to false to resume")


def blocked(
    status: FineTuneJobStatus, job: JobRecord, phase: Phase, reason: str, message: str, now: datetime.datetime
) -> FineTuneJobStatus:
    """Return the status of a job that can't continue until a person removes the cause."""
    status = in_phase(status, phase, reason, message[:1000])
    conditions = with_condition(status, job, now, "Blocked", "True", reason, message[:1000])
    return status.model_copy(update={"conditions": conditions})


def running_seconds(status: FineTuneJobStatus, now: datetime.datetime) -> int:
    """Return the seconds that the pods of all attempts have run so far."""
    since = read_time(status.bookkeeping.running_since)
    return (status.running_seconds or 0) + (max(0, round((now - since).total_seconds())) if since is not None else 0)


def _with_attempt(status: FineTuneJobStatus, created: CreatedAttempt) -> Sequence[Attempt]:
    before = [item for item in status.attempts or () if item.number != created.attempt]
    checkpoint = status.checkpoint.step if status.checkpoint is not None else None
    new = Attempt(number=created.attempt, start_time=write_time(created.created_at), nodes=created.nodes, from_step=checkpoint)
    return [*before, new][-_MAX_ATTEMPTS:]


def attempt_ended(
    status: FineTuneJobStatus, reason: str, now: datetime.datetime, message: str | None = None
) -> FineTuneJobStatus:
    """Return the status with its present attempt ended, and the running time of the attempt added.

    bookkeeping.restartsCountTowardsMax returns to 0 if the attempt got beyond the checkpoint that it started from.
    """
    status = status.model_copy(update={"running_seconds": running_seconds(status, now) or None})
    status = with_bookkeeping(status, running_since=None)
    if status.attempts and status.attempts[-1].completion_time is None:
        last = status.attempts[-1]
        end = {
            "completion_time": write_time(now),
            "reason": reason,
            "message": message[:_ATTEMPT_MESSAGE_LIMIT] if message else None,
            "step": furthest_step(status.progress),
        }
        status = status.model_copy(update={"attempts": [*status.attempts[:-1], last.model_copy(update=end)]})
        if status.checkpoint is not None and status.checkpoint.step > (last.from_step or 0):
            status = with_bookkeeping(status, restarts_count_towards_max=0)
    return without_conditions(status, "ProgressUnknown", "QuotaReserved", "TrainingStalled")


def with_bookkeeping(status: FineTuneJobStatus, **changes: object) -> FineTuneJobStatus:
    """Return the status with these notes of the operator."""
    return status.model_copy(update={"bookkeeping": status.bookkeeping.model_copy(update=changes)})


def failed(
    status: FineTuneJobStatus, failure: Failure, message: str, job: JobRecord, now: datetime.datetime
) -> FineTuneJobStatus:
    """Return the final status of a job that failed."""
    status = without_conditions(attempt_ended(status, failure.reason, now, failure.message), "Blocked")
    return status.model_copy(
        update={
            "phase": "Failed",
            "reason": failure.reason,
            "message": message,
            "failure": failure,
            "restarts": status.restarts or Restarts(),
            "progress": without_estimate(status.progress),
            "completion_time": write_time(now),
        }
    )


def refused(status: FineTuneJobStatus, reason: Reason, message: str, job: JobRecord, now: datetime.datetime) -> FineTuneJobStatus:
    """Return the final status of a job whose pods were never started, or can't be started again."""
    return failed(status, Failure(reason=reason.value, message=message, hint=REASONS[reason].hint), message, job, now)


def succeeded(status: FineTuneJobStatus, spec: FineTuneJobSpec, job: JobRecord, now: datetime.datetime) -> FineTuneJobStatus:
    """Return the final status of a job that succeeded."""
    progress = without_estimate(status.progress)
    if progress is not None:
        progress = progress.model_copy(update={"percent": 100, "display": "100%", "step": _last_step(status)})
        progress = progress.model_copy(update={"furthest_step": None})
    message = _summary(status)
    status = without_conditions(attempt_ended(status, "Completed", now), "Blocked", "CheckpointFailing")
    status = status.model_copy(
        update={
            "phase": "Succeeded",
            "reason": "Completed",
            "message": message,
            "restarts": status.restarts or Restarts(),
            "progress": progress,
            "completion_time": write_time(now),
        }
    )
    if spec.publish is None:
        return status
    if status.published is not None:
        published: tuple[Literal["True", "Unknown"], str, str] = ("True", "Published", f"pushed to {status.published.url}")
    else:
        published = ("Unknown", "NoReport", f"the pods did not report whether {spec.publish.repository} was pushed")
    return status.model_copy(update={"conditions": with_condition(status, job, now, "Published", *published)})


def pluralize(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless the number is 1."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _last_step(status: FineTuneJobStatus) -> int | None:
    """Return the step with which the training ended: its last one, unless it stopped early."""
    progress = status.progress
    if progress is None:
        return None
    return progress.step if status.stopped_early else progress.total_steps or progress.step


def _summary(status: FineTuneJobStatus) -> str:
    metrics = dict(status.evaluation.metrics) if status.evaluation is not None else {}
    shown = next((name for name in ("accuracy", "loss") if name in metrics), None)
    steps = f"trained {pluralize(_last_step(status) or 0, 'step')}" if status.progress else "trained"
    result = f"{steps}, {shown} {metrics[shown]:g} on the held-out data" if shown else steps
    return f"{result}; {status.stopped_early}" if status.stopped_early else result
