"""Cleans up after a finished job. A job never leaves a final phase, and the operator creates nothing for it any more."""

import datetime
from typing import Any

from finetune_api.reasons import Reason
from finetune_api.spec import FineTuneJobSpec, Retention
from finetune_api.status import FineTuneJobStatus
from finetune_operator.observed import ChildJob, JobRecord, Observation, PodState, read_time
from finetune_operator.policy.conditions import with_condition, without_conditions
from finetune_operator.policy.decision import Decision
from finetune_operator.policy.force_delete import pods_to_force_delete, seconds_to_next_force_delete

# If a pod fails, the Job controller stops the other pods. It can't if a pod never ends, because its node is gone or a container
# that something injected still runs (the kubelet ends those of spec.pod.initContainers). Then the pods would keep their GPUs. So
# the operator deletes the Job after this time, with its pods and their logs.
STOP_AFTER = datetime.timedelta(seconds=60)
# For these reasons the operator ends the job while pods may run. It stops them at once: their logs are not worth waiting for.
_ENDED_BY_OPERATOR = frozenset(
    {
        Reason.DEADLINE_EXCEEDED,
        Reason.START_TIMEOUT,
        Reason.IMAGE_PULL_FAILED,
        Reason.SECRET_NOT_FOUND,
        Reason.CLAIM_NOT_FOUND,
        Reason.POD_REJECTED,
    }
)
_CHECK_SECONDS = 5.0
_SOON_SECONDS = 1.0
# Finished jobs are listed at this interval. A job that needs a reconcile before the next list is queued with a delay.
FINISHED_LIST_SECONDS = 300.0


def clean_up_finished_job(observation: Observation, now: datetime.datetime) -> Decision:
    """Return the next step: stop pods that still run, delete the volume, or delete the job when its TTL is over."""
    job = observation.job
    # After the end, the spec may still change, for example its TTL.
    status = without_conditions(job.status.model_copy(update={"observed_generation": job.generation}), "Blocked")
    stop, wait = _job_to_stop(observation, now)
    if stop is not None:
        return Decision(status, delete_child_job=stop, requeue_after_seconds=_CHECK_SECONDS)
    if wait is not None:
        return Decision(status, requeue_after_seconds=wait)
    if terminating := _terminating_pods(observation):
        force_delete = pods_to_force_delete(terminating, None, now)
        requeue_after = seconds_to_next_force_delete(terminating, None, now, at_most=_CHECK_SECONDS)
        return Decision(status, force_delete=force_delete, requeue_after_seconds=requeue_after)
    place = observation.queue_job()
    if place is not None and not place.deleting:  # gives the quota back
        return Decision(status, delete_child_job=place, requeue_after_seconds=_SOON_SECONDS)
    if not isinstance(job.spec, FineTuneJobSpec):
        return Decision(status)
    if observation.output_claim is not None and job.should_delete_output_claim():
        remaining_jobs = [child for child in observation.own_jobs() if not child.deleting]
        if remaining_jobs:  # the API server keeps a claim while a pod refers to it, even if the pod has ended
            return Decision(status, delete_child_job=remaining_jobs[0], requeue_after_seconds=_SOON_SECONDS)
        return Decision(status, delete_claim=observation.output_claim, requeue_after_seconds=_CHECK_SECONDS)
    return _apply_ttl(job, job.spec, status, now)


def _job_to_stop(observation: Observation, now: datetime.datetime) -> tuple[ChildJob | None, float | None]:
    """Return a Job to stop, or else the seconds until the next check."""
    remaining_jobs = [child for child in observation.own_jobs() if not child.deleting]
    pods = [pod for child in remaining_jobs for pod in observation.pods_of(child.attempt)]
    running = [pod for pod in pods if pod.terminated is None]
    active_jobs = [child for child in remaining_jobs if not (child.complete or child.failed is not None or child.failing)]
    ended_by_operator = observation.job.status.reason in _ENDED_BY_OPERATOR
    since = read_time(observation.job.status.completion_time)
    seconds_left = (since + STOP_AFTER - now).total_seconds() if since is not None else 0.0
    # If only sidecars still run, there is no further check, because they usually end some moments after the trainer. The list of
    # finished jobs finds those that do not end.
    timed_out = seconds_left <= 0 and (running or any(pod.sidecar_running for pod in pods))
    if timed_out or (ended_by_operator and (running or active_jobs)):
        return remaining_jobs[0], None
    return None, seconds_left + 1 if running else None


def _terminating_pods(observation: Observation) -> list[PodState]:
    """Return the pods that have not ended although their Job is deleted. The operator waits for all of them."""
    if any(not child.deleting for child in observation.own_jobs()):
        return []
    return [pod for pod in observation.own_pods() if pod.deletion_requested_at is not None and pod.terminated is None]


def _apply_ttl(job: JobRecord, spec: FineTuneJobSpec, status: FineTuneJobStatus, now: datetime.datetime) -> Decision:
    ended = read_time(status.completion_time)
    if spec.ttl_seconds_after_finished is None or ended is None:
        return Decision(status)
    seconds_left = (ended + datetime.timedelta(seconds=spec.ttl_seconds_after_finished) - now).total_seconds()
    if seconds_left > 0:
        # If the TTL ends after the next list of finished jobs, that list queues the job.
        return Decision(status, requeue_after_seconds=seconds_left if seconds_left < FINISHED_LIST_SECONDS else None)
    if _holds_only_copy(spec, status):
        message = (
            "ttlSecondsAfterFinished is over, but the volume that would be deleted with the job has the only copy of the model: "
            "copy or push the model, then delete the job yourself"
        )
        conditions = with_condition(status, job, now, "Blocked", "True", "OnlyCopy", message)
        return Decision(status.model_copy(update={"conditions": conditions}))
    return Decision(status, delete_job=True)


def _holds_only_copy(spec: FineTuneJobSpec, status: FineTuneJobStatus) -> bool:
    retention = spec.output.retention or Retention()
    deleted_with_job = spec.output.claim is None and retention.when_deleted == "Delete"
    progress = status.progress
    training_finished = progress is not None and progress.total_steps is not None and progress.step >= progress.total_steps
    trained = status.phase == "Succeeded" or status.reason == Reason.HUB_PUSH_FAILED or training_finished
    return deleted_with_job and trained and status.published is None


def seconds_to_next_reconcile(manifest: dict[str, Any], now: datetime.datetime) -> float | None:
    """Return the seconds until a finished job needs a reconcile, or None.

    The function does not parse the manifest, because there may be very many finished jobs.
    """
    spec, status = manifest.get("spec", {}), manifest.get("status", {})
    ended = read_time(status.get("completionTime"))
    if ended is None or "deletionTimestamp" in manifest["metadata"]:
        return None
    if now - ended < 2 * STOP_AFTER or status.get("observedGeneration") != manifest["metadata"].get("generation"):
        return 0.0
    ttl = spec.get("ttlSecondsAfterFinished")
    blocked = any(item.get("reason") == "OnlyCopy" for item in status.get("conditions", ()))
    if ttl is None or blocked:
        return None
    return (ended + datetime.timedelta(seconds=ttl) - now).total_seconds()
