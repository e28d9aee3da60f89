"""What an earlier FineTuneJob of the same name left: its children are being deleted, or were kept on purpose."""

from finetune_api import names
from finetune_api.status import FineTuneJobStatus
from finetune_operator.observed import Observation
from finetune_operator.policy.decision import Decision
from finetune_operator.policy.status import in_phase

_CHECK_SECONDS = 5.0
_SOON_SECONDS = 1.0


def wait_for_leftovers(observation: Observation, status: FineTuneJobStatus) -> Decision | None:
    """Return how to wait for the Jobs and pods of an earlier FineTuneJob, or None if nothing is left.

    `kubectl delete --cascade=orphan` keeps them. Pods that still train end first, because both jobs may use the same volume. A
    Job that has ended is deleted, because a Job of this FineTuneJob needs its name.
    """
    uid = observation.job.uid
    kept = [child for child in observation.jobs if child.owner is None and child.job_uid not in (None, uid)]
    ended = next((child for child in kept if not child.deleting and (child.complete or child.failed is not None)), None)
    if ended is not None:
        waiting = _waiting(status, f"deleting Job {ended.name}, which an earlier {names.KIND} of this name left")
        return Decision(waiting, delete_child_job=ended, requeue_after_seconds=_SOON_SECONDS)
    jobs = [child for child in observation.jobs if child.owner and child.owner.kind == names.KIND and child.owner.uid != uid]
    pods = [pod for pod in observation.pods if pod.owner and pod.job_uid is not None and not pod.only_finalizers_left]
    if pods:
        what = f"pod {pods[0].name}" if len(pods) == 1 else f"{len(pods)} pods"
    elif jobs or kept:
        what = f"Job {[*jobs, *kept][0].name}"
    else:
        return None
    message = f"waiting for {what} of an earlier {names.KIND} of this name to end"
    if kept and not kept[0].deleting:
        message += f": it was deleted with --cascade=orphan; to stop it, delete Job {kept[0].name}"
    return Decision(_waiting(status, message), check_after_seconds=_CHECK_SECONDS)


def _waiting(status: FineTuneJobStatus, message: str) -> FineTuneJobStatus:
    return in_phase(status, "Pending", "WaitingForDeletion", message)
