"""What is left to do for a job that has ended. Final phases are latched: nothing is created, the status stays what it is."""

import datetime
from typing import Any

from finetune_api.reasons import Reason
from finetune_api.spec import FineTuneJobSpec, Retention
from finetune_api.status import FineTuneJobStatus
from finetune_operator.observed import ChildJob, JobRecord, Observation, PodState, read_time
from finetune_operator.policy.decision import Decision
from finetune_operator.policy.forcing import overdue, seconds_to_next
from finetune_operator.policy.status import with_condition

# The Job controller itself stops a gang of which a pod failed. Where it can't (a pod that never ends, as its node is gone or as
# it has a sidecar that goes on), pods would go on holding GPUs: after this time the Job is deleted, and its logs with it.
STOP_AFTER = datetime.timedelta(seconds=60)
# The operator ended these itself, so nobody else stops their pods; there is nothing in their logs that is worth waiting for.
_ENDED_BY_US = frozenset(
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
# Finished jobs are listed that often, and one whose time is near gets a turn then.
FINISHED_LIST_SECONDS = 300.0


def after_the_end(seen: Observation, now: datetime.datetime) -> Decision:
    """What to do next: stop pods that should run no more, give the volume back, delete the job when its time has come."""
    job, status = seen.job, seen.job.status
    stop, wait = _left_running(seen, now)
    if stop is not None:
        return Decision(status, delete=stop, again_seconds=_CHECK_SECONDS)
    if wait is not None:
        return Decision(status, again_seconds=wait)
    if left := _left_behind(seen):
        stuck, again = overdue(left, None, now), seconds_to_next(left, None, now, at_most=_CHECK_SECONDS)
        return Decision(status, force_delete=stuck, again_seconds=again)
    if not isinstance(job.spec, FineTuneJobSpec):
        return Decision(status)
    if seen.output_claim is not None and job.gives_volume_back():
        holding = [child for child in seen.own_jobs() if not child.deleting]
        if holding:  # a claim stays as long as there is a pod that names it, though it has ended
            return Decision(status, delete=holding[0], again_seconds=_SOON_SECONDS)
        return Decision(status, delete_claim=seen.output_claim, again_seconds=_CHECK_SECONDS)
    return _time_to_live(job, job.spec, now)


def _left_running(seen: Observation, now: datetime.datetime) -> tuple[ChildJob | None, float | None]:
    """A Job that is to be stopped, or in how many seconds to look again."""
    still_there = [child for child in seen.own_jobs() if not child.deleting]
    pods = [pod for child in still_there for pod in seen.pods_of(child.attempt)]
    running = [pod for pod in pods if pod.finished is None]
    short = [child for child in still_there if not (child.complete or child.failed is not None or child.ending)]
    ours = seen.job.status.reason in _ENDED_BY_US
    since = read_time(seen.job.status.completion_time)
    left = (since + STOP_AFTER - now).total_seconds() if since is not None else 0.0
    # What only lingers is no reason to wait: each pod does for a moment, and the full list finds those that go on doing so.
    too_long = left <= 0 and (running or any(pod.lingers for pod in pods))
    if too_long or (ours and (running or short)):
        return still_there[0], None
    return None, left + 1 if running else None


def _left_behind(seen: Observation) -> list[PodState]:
    """Pods that go on though their Job is deleted: they are waited for, as long as it takes."""
    if any(not child.deleting for child in seen.own_jobs()):
        return []
    return [pod for pod in seen.left_pods() if pod.deleted_at is not None and pod.finished is None]


def _time_to_live(job: JobRecord, spec: FineTuneJobSpec, now: datetime.datetime) -> Decision:
    ended = read_time(job.status.completion_time)
    if spec.ttl_seconds_after_finished is None or ended is None:
        return Decision(job.status)
    left = (ended + datetime.timedelta(seconds=spec.ttl_seconds_after_finished) - now).total_seconds()
    if left > 0:
        return Decision(job.status, again_seconds=left if left < FINISHED_LIST_SECONDS else None)  # the list comes before
    if _holds_the_only_copy(spec, job.status):
        message = (
            "ttlSecondsAfterFinished is over, but the volume that would go with the job holds the only copy of the model: copy "
            "it or push it, then delete the job yourself"
        )
        conditions = with_condition(job.status, job, now, "Blocked", "True", "OnlyCopy", message)
        return Decision(job.status.model_copy(update={"conditions": conditions}))
    return Decision(job.status, delete_job=True)


def _holds_the_only_copy(spec: FineTuneJobSpec, status: FineTuneJobStatus) -> bool:
    retention = spec.output.retention or Retention()
    goes = spec.output.claim is None and retention.when_deleted == "Delete"
    progress = status.progress
    through = progress is not None and progress.total_steps is not None and progress.step >= progress.total_steps
    trained = status.phase == "Succeeded" or status.reason == Reason.HUB_PUSH_FAILED or through
    return goes and trained and status.published is None


def seconds_to_next_look(manifest: dict[str, Any], now: datetime.datetime) -> float | None:
    """When a finished FineTuneJob wants a turn; None if never. From the object as it is, as there may be very many of them."""
    spec, status = manifest.get("spec", {}), manifest.get("status", {})
    ended = read_time(status.get("completionTime"))
    if ended is None:
        return None
    if now - ended < 2 * STOP_AFTER:
        return 0.0
    ttl = spec.get("ttlSecondsAfterFinished")
    kept = any(item.get("reason") == "OnlyCopy" for item in status.get("conditions", ()))
    if ttl is None or kept:
        return None
    return (ended + datetime.timedelta(seconds=ttl) - now).total_seconds()
