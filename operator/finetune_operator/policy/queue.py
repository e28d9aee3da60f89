"""Decides about the place of a job in Kueue's queue. One Job without pods holds it, and the quota, for all attempts."""

import datetime

from finetune_api import names
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_operator.observed import ChildJob, Observation
from finetune_operator.policy.decision import Decision
from finetune_operator.policy.status import attempt_ended, queued
from finetune_operator.requirements import requirements_digest

# Why an attempt ended whose quota went to another job.
EVICTED_BY_QUEUE = "EvictedByQueue"
_CHECK_SECONDS, _PENDING_SECONDS, _SOON_SECONDS = 20.0, 5.0, 1.0


def wait_for_admission(
    observation: Observation, spec: FineTuneJobSpec, status: FineTuneJobStatus, now: datetime.datetime
) -> Decision | None:
    """Return what to do before the next attempt may be created, when no pod is left. Return None if it may be created."""
    job, place = observation.job, observation.queue_job()
    names_queue = names.LABEL_KUEUE_QUEUE in job.kueue_labels
    if place is None:
        return Decision(status, create_queue_job=True) if names_queue else None
    outdated = place.requirements != requirements_digest(spec, job.kueue_labels, job.kueue_annotations)
    if outdated and not names_queue:  # without a label, only the same job has a place, in the default queue
        return Decision(status, delete_child_job=place, requeue_after_seconds=_SOON_SECONDS)
    if not place.deleting and not place.suspended:
        return None
    waiting = _wait(observation, status, now)
    if place.deleting:
        return Decision(waiting.status, requeue_after_seconds=_SOON_SECONDS)
    if outdated:
        return Decision(waiting.status, delete_child_job=place, requeue_after_seconds=_SOON_SECONDS)
    if place.active:
        return Decision(waiting.status, release_quota=place, requeue_after_seconds=_SOON_SECONDS)
    return waiting


def wait_in_queue(
    observation: Observation, child: ChildJob | None, status: FineTuneJobStatus, now: datetime.datetime
) -> Decision | None:
    """Return how an attempt waits that Kueue holds back. Return None if it may run.

    An attempt whose quota went to another job is over: its pods save a checkpoint. If Kueue suspends a Job that no queue has
    taken, the attempt waits until somebody gives the Job a queue.
    """
    if child is None or child.deleting or child.failed is not None:
        return None
    place = observation.queue_job()
    if child.queue_job is not None and (child.suspended or place is None or place.suspended):
        evicted = queued(status, observation.job, observation.queueing, now)
        return Decision(attempt_ended(evicted, EVICTED_BY_QUEUE, now, evicted.message), requeue_after_seconds=_SOON_SECONDS)
    return _wait(observation, status, now) if child.suspended else None


def _wait(observation: Observation, status: FineTuneJobStatus, now: datetime.datetime) -> Decision:
    if status.phase == "Queued" and observation.queueing is None:
        return Decision(status, check_after_seconds=_CHECK_SECONDS)  # what Kueue said last is better than nothing
    check_after = _PENDING_SECONDS if observation.queueing is None else _CHECK_SECONDS
    return Decision(queued(status, observation.job, observation.queueing, now), check_after_seconds=check_after)
