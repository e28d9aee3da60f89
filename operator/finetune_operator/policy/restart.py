"""Replaces an attempt that is over: delete its Job, wait for its pods to end and for the pause, create the next attempt."""

import datetime
import itertools
import zlib
from collections.abc import Sequence

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_operator.observed import Observation, PodState, read_time
from finetune_operator.policy.decision import Decision
from finetune_operator.policy.failure import final_report
from finetune_operator.policy.force_delete import pods_to_force_delete, seconds_to_next_force_delete
from finetune_operator.policy.progress import furthest_step
from finetune_operator.policy.queue import EVICTED_BY_QUEUE, wait_for_admission
from finetune_operator.policy.report import apply_report
from finetune_operator.policy.restart_budget import backoff_before_next_attempt, with_in_place_restarts
from finetune_operator.policy.status import in_phase, suspended
from finetune_operator.policy.waiting import WITHDRAWAL_REASONS

_CHECK_SECONDS = 5.0
_SOON_SECONDS = 1.0
# A job that waits longer than this for old pods says so in its message.
_LONG_WAIT = datetime.timedelta(seconds=30)
# Pause after there was room for some pods only. It doubles, because each try occupies that room for a while.
WITHDRAWAL_DELAY, MAX_WITHDRAWAL_DELAY = datetime.timedelta(seconds=60), datetime.timedelta(minutes=15)


def has_attempt_ended(status: FineTuneJobStatus) -> bool:
    """Return whether the attempt that the status names is over."""
    if status.phase in ("Restarting", "Suspended"):
        return True
    return status.attempts is not None and len(status.attempts) > 0 and status.attempts[-1].completion_time is not None


def start_next_attempt(
    observation: Observation, spec: FineTuneJobSpec, status: FineTuneJobStatus, attempt: int, now: datetime.datetime
) -> Decision:
    """Delete the attempt that is over, wait until none of its pods is left, then create the next one. Attempts never overlap.

    After the deletion of the Job, the operator deletes pods by force if no kubelet ends them. It does not wait for pods that
    exist only because of their finalizers.
    """
    status = with_final_reports(observation, status, attempt, now)
    old = [child for child in observation.own_jobs() if child.attempt <= attempt and not child.deleting]
    if old:
        return Decision(status, delete_child_job=old[0], requeue_after_seconds=_SOON_SECONDS)
    remaining = [pod for pod in observation.own_pods() if not pod.only_finalizers_left]
    ended_at = read_time(status.attempts[-1].completion_time) if status.attempts else None
    requeue_after = seconds_to_next_force_delete(remaining, ended_at, now, at_most=_CHECK_SECONDS)
    force_delete = pods_to_force_delete(remaining, ended_at, now)
    if spec.suspend:
        status, place = suspended(status, stopping_message(remaining), now), observation.queue_job()
        unused = place if place is not None and not place.deleting and not remaining else None
        return Decision(
            status, delete_child_job=unused, force_delete=force_delete, requeue_after_seconds=requeue_after if remaining else None
        )
    if remaining or observation.own_jobs():
        return Decision(
            _waiting_for_pods(observation, status, remaining, attempt, now),
            force_delete=force_delete,
            requeue_after_seconds=requeue_after,
        )
    if waiting := wait_for_admission(observation, spec, status, now):
        return waiting
    delay = (
        _delay_after_withdrawal(status, observation.job.uid) if status.phase == "Queued" else backoff_before_next_attempt(status)
    )
    seconds = (ended_at + delay - now).total_seconds() if ended_at is not None else 0
    if seconds > 0:
        return Decision(status, requeue_after_seconds=seconds)
    return Decision(status, create_attempt=attempt + 1)


def _delay_after_withdrawal(status: FineTuneJobStatus, uid: str) -> datetime.timedelta:
    """Return the pause. It differs by up to a half between jobs, so that two that took each other's nodes do not meet again.

    There is none after an eviction or a suspension: the queue has admitted the job again.
    """
    if status.attempts and status.attempts[-1].reason in (EVICTED_BY_QUEUE, "Suspended"):
        return datetime.timedelta(0)
    count = len(list(itertools.takewhile(lambda item: item.reason in WITHDRAWAL_REASONS, reversed(status.attempts or ()))))
    delay: datetime.timedelta = WITHDRAWAL_DELAY * 2 ** min(max(0, count - 1), 10)
    return min(delay, MAX_WITHDRAWAL_DELAY) * (1 + zlib.crc32(f"{uid}-{count}".encode()) % 1000 / 2000)


def stopping_message(pods: Sequence[PodState]) -> str | None:
    """Return what a suspended job waits for, or None if no pod is left."""
    remaining = [pod for pod in pods if not pod.only_finalizers_left]
    return f"stopping: waiting for pod {remaining[0].name} to save a checkpoint and end" if remaining else None


def _waiting_for_pods(
    observation: Observation, status: FineTuneJobStatus, remaining: list[PodState], attempt: int, now: datetime.datetime
) -> FineTuneJobStatus:
    if status.phase == "Suspended":
        return in_phase(status, "Pending", "WaitingForDeletion", "waiting for the pods of the suspended attempt to end")
    since = observation.job.status_written_at
    if remaining and since is not None and now - since > _LONG_WAIT:
        message = f"waiting for pod {remaining[0].name} on {remaining[0].node} of attempt {attempt} to end"
        return status.model_copy(update={"message": message})
    return status


def with_final_reports(
    observation: Observation, status: FineTuneJobStatus, attempt: int, now: datetime.datetime
) -> FineTuneJobStatus:
    """Return the status with the final reports of the attempt's pods, which contain the checkpoint that they saved."""
    ended = [*observation.own_pods(), *(pod for pod in observation.terminated_pods if pod.job_uid == observation.job.uid)]
    reports = [(pod.index, report) for pod in ended if (report := final_report(pod)) is not None and report.attempt == attempt]
    first_report = next((report for index, report in reports if index == 0), None)
    if first_report is not None:
        status = _with_last_step(apply_report(status, observation.job, first_report, now))
    return with_in_place_restarts(status, [report for _, report in reports])


def _with_last_step(status: FineTuneJobStatus) -> FineTuneJobStatus:
    """Update the last step of the attempt: its pods made some more steps before they ended."""
    if not status.attempts or status.progress is None:
        return status
    last = status.attempts[-1].model_copy(update={"step": furthest_step(status.progress)})
    return status.model_copy(update={"attempts": [*status.attempts[:-1], last]})
