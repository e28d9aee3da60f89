"""Chooses pods to delete by force. Their node is gone or frozen, so no kubelet ends them, and they would block the next attempt.

The API server keeps such a pod until its Job is deleted, so the operator deletes the Job first. If the pod runs again
later, it finds that the output belongs to a later attempt, and writes nothing.
"""

import datetime
from collections.abc import Sequence

from finetune_operator.observed import PodState

# If the kubelet is unreachable, the operator only waits this long for the cluster to process the deletion of the Job.
_UNREACHABLE_DELAY = datetime.timedelta(seconds=5)
# A live kubelet ends a pod when its grace period is over. After this additional time, the kubelet counts as dead.
FORCE_DELETE_DELAY = datetime.timedelta(seconds=30)


def pods_to_force_delete(pods: Sequence[PodState], since: datetime.datetime | None, now: datetime.datetime) -> list[PodState]:
    """Return the pods to delete by force now, after their Job. since: the end of the attempt, or None for a finished job."""
    return [pod for pod in pods if (due := _force_delete_at(pod, since)) is not None and due <= now]


def seconds_to_next_force_delete(
    pods: Sequence[PodState], since: datetime.datetime | None, now: datetime.datetime, at_most: float
) -> float:
    """Return the seconds until another pod must be deleted by force, limited to at_most."""
    due = [moment for pod in pods if (moment := _force_delete_at(pod, since)) is not None and moment > now]
    return min(at_most, max(1.0, (min(due) - now).total_seconds())) if due else at_most


def _force_delete_at(pod: PodState, since: datetime.datetime | None) -> datetime.datetime | None:
    if pod.deletion_requested_at is None or pod.deletion_timestamp is None:
        return None
    if pod.kubelet_unreachable:
        return max(pod.deletion_requested_at, since or pod.deletion_requested_at) + _UNREACHABLE_DELAY
    return pod.deletion_timestamp + FORCE_DELETE_DELAY
