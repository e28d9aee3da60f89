"""What a gang that does not run yet waits for: in the words of the cluster, under a reason of ours."""

import datetime
from collections.abc import Sequence

from finetune_api.reasons import Reason
from finetune_operator.observed import Observation, PodState
from finetune_operator.refusals import is_by_quota, is_by_webhook

_IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"})
# What passes by itself in a normal start; everything else is worth a user's look and comes first.
ORDINARY = frozenset({"ContainerCreating", "PodInitializing", "PodsPending"})
# What a quota or a LimitRange refuses may be let in later, when others have gone.
BY_QUOTA = frozenset({"QuotaExceeded"})
# The scheduler's word where no machine has room for a pod.
UNSCHEDULABLE = "Unschedulable"
# What the Job controller was told when it created pods.
REFUSALS = BY_QUOTA | {"WebhookFailed", Reason.POD_REJECTED}
# Waiting reasons that are a reason of the failure too, once the time to start is over.
REASONS_TO_FAIL = frozenset({Reason.IMAGE_PULL_FAILED, Reason.SECRET_NOT_FOUND, Reason.CLAIM_NOT_FOUND, Reason.POD_REJECTED})
# A younger pod is not worth a word: its claim is still being bound, its Secret being created by the same `kubectl apply`.
_SETTLED_AFTER = datetime.timedelta(seconds=5)


def explain_waiting(seen: Observation, pods: Sequence[PodState], nodes: int, now: datetime.datetime) -> tuple[str, str]:
    """Reason and message of a gang of which not every pod has started."""
    reasons = [_explain(pod, now) for pod in pods if not pod.started]
    if len(pods) < nodes:
        if seen.refusal is not None:
            reasons.insert(0, (_by_whom(seen.refusal), seen.refusal))
        else:
            reasons.append(("PodsPending", f"{len(pods)} of {nodes} pods created"))
    reasons.sort(key=lambda item: item[0] in ORDINARY)
    reason, message = reasons[0]
    return reason, message[:1000]


def _by_whom(refusal: str) -> str:
    if is_by_quota(refusal):
        return "QuotaExceeded"
    return "WebhookFailed" if is_by_webhook(refusal) else Reason.POD_REJECTED


def _explain(pod: PodState, now: datetime.datetime) -> tuple[str, str]:
    reason, message = pod.waiting or ("PodsPending", "waits for a node")
    if reason not in ORDINARY and now - pod.created < _SETTLED_AFTER:
        reason, message = "PodsPending", "waits to be started"
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
