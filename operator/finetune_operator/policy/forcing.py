"""Pods that nobody ends: their machine is gone or frozen, and they would hold up the next attempt for ever.

The API server keeps such a pod until its Job is deleted, so the Job comes first. Should the pod come back to life, it finds that
the output belongs to a later attempt by then, and writes nothing.
"""

import datetime
from collections.abc import Sequence

from finetune_operator.observed import PodState

# There is nobody to wait for; so long the cluster has to take note of the Job's deletion.
_UNREACHABLE = datetime.timedelta(seconds=5)
# A kubelet that lives ends a pod when its grace period is over; this much more, and it does not.
OVERDUE = datetime.timedelta(seconds=30)


def overdue(pods: Sequence[PodState], since: datetime.datetime | None, now: datetime.datetime) -> list[PodState]:
    """Those of the pods, whose Job is deleted, that are to be deleted without waiting. since: when the attempt was given up."""
    return [pod for pod in pods if (due := _due(pod, since)) is not None and due <= now]


def seconds_to_next(pods: Sequence[PodState], since: datetime.datetime | None, now: datetime.datetime, at_most: float) -> float:
    """When to look again for pods that are overdue by then."""
    due = [moment for pod in pods if (moment := _due(pod, since)) is not None and moment > now]
    return min(at_most, max(1.0, (min(due) - now).total_seconds())) if due else at_most


def _due(pod: PodState, since: datetime.datetime | None) -> datetime.datetime | None:
    if pod.deleted_at is None or pod.due_at is None:
        return None
    if pod.unreachable:
        return max(pod.deleted_at, since or pod.deleted_at) + _UNREACHABLE
    return pod.due_at + OVERDUE
