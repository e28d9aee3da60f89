"""Explains why the pods of an attempt do not run yet: one of our reasons, and the message of the cluster."""

import datetime
from collections.abc import Sequence

from finetune_api.reasons import Reason
from finetune_operator.observed import Observation, PodState
from finetune_operator.refusals import rejected_by_quota, webhook_unavailable

_IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"})
# Reasons of a normal start. They pass by themselves, so any other reason is reported instead.
NORMAL_START_REASONS = frozenset({"ContainerCreating", "PodInitializing", "PodsPending"})
# A quota or a LimitRange may admit the pods later, when other pods have ended.
QUOTA_REASONS = frozenset({"QuotaExceeded"})
# The scheduler's reason if no node has room for a pod.
UNSCHEDULABLE = "Unschedulable"
# Its reason for a pod with a gate that another controller has not removed yet.
SCHEDULING_GATED = "SchedulingGated"
# Reasons for which an attempt is withdrawn if only some of its pods got a place.
WITHDRAWAL_REASONS = QUOTA_REASONS | {UNSCHEDULABLE}
# Reasons for which the API server refuses pods of the Job controller.
REFUSAL_REASONS = QUOTA_REASONS | {"WebhookFailed", Reason.POD_REJECTED}
# If the start timeout is over, these waiting reasons become the reason of the failure.
START_FAILURE_REASONS = frozenset(
    {Reason.IMAGE_PULL_FAILED, Reason.SECRET_NOT_FOUND, Reason.CLAIM_NOT_FOUND, Reason.POD_REJECTED}
)
# Problems of a younger pod are not shown: its claim may still be bound, or the same `kubectl apply` may create its Secret.
_MIN_POD_AGE = datetime.timedelta(seconds=5)


def explain_waiting(observation: Observation, pods: Sequence[PodState], nodes: int, now: datetime.datetime) -> tuple[str, str]:
    """Return reason and message for an attempt whose pods have not all started."""
    reasons = [_explain_pod(pod, now) for pod in pods if not pod.started]
    if len(pods) < nodes:
        if observation.refusal is not None:
            reasons.insert(0, (_refusal_reason(observation.refusal), observation.refusal))
        else:
            reasons.append(("PodsPending", f"{len(pods)} of {nodes} pods created"))
    reasons.sort(key=lambda item: item[0] in NORMAL_START_REASONS)
    reason, message = reasons[0]
    return reason, message[:1000]


def _refusal_reason(refusal: str) -> str:
    if rejected_by_quota(refusal):
        return "QuotaExceeded"
    return "WebhookFailed" if webhook_unavailable(refusal) else Reason.POD_REJECTED


def _explain_pod(pod: PodState, now: datetime.datetime) -> tuple[str, str]:
    reason, message = pod.waiting or ("PodsPending", "waits for a node")
    if reason not in NORMAL_START_REASONS and now - pod.created < _MIN_POD_AGE:
        reason, message = "PodsPending", "waiting to start"
    text = f"pod {pod.name}: {message or reason}"
    if reason == UNSCHEDULABLE and 'persistentvolumeclaim "' in message and "not found" in message:
        return Reason.CLAIM_NOT_FOUND, text
    if reason in _IMAGE_REASONS:
        return Reason.IMAGE_PULL_FAILED, text
    if reason == "CreateContainerConfigError" and "secret" in message.lower():
        return Reason.SECRET_NOT_FOUND, text
    if reason == "ContainerCreating":
        return reason, f"pod {pod.name} is being created on {pod.node}"
    return reason, text
