"""Finds the root cause of an attempt's failure. Most pods that ended are only victims of it."""

import dataclasses
import datetime
import re
from collections.abc import Sequence
from typing import Literal

from finetune_api import names
from finetune_api.reasons import NODE_MEMORY_HINT, REASONS, Reason
from finetune_api.status import Failure
from finetune_api.wire import Report
from finetune_operator.observed import ChildJob, PodState, Terminated
from finetune_operator.policy.force_delete import FORCE_DELETE_DELAY

# After a victim has ended, the operator waits this long for the cause. Pods end, and kubelets report it, at different times.
ROOT_CAUSE_GRACE = datetime.timedelta(seconds=5)
# Clocks of nodes and API server differ by about this much, and their times have whole seconds only.
CLOCK_SKEW = datetime.timedelta(seconds=1)
_ZERO = datetime.timedelta()
# The kubelet reports these reasons if it starts and no longer finds a container, because its node went down.
_NODE_RESTART_REASONS = frozenset({"Unknown", "ContainerStatusUnknown"})
# The kubelet's messages if a pod used more ephemeral storage than its own limit, and not because its node ran short of it.
_OWN_STORAGE_LIMIT = re.compile("exceeds the total limit of containers|exceeded its local ephemeral storage limit")
_OWN_STORAGE_HINT = (
    "Raise spec.pod.resources.limits.ephemeral-storage, or set spec.cache.claimName: without it, models and data of the Hub are "
    "downloaded to the pod's own storage."
)
# Texts of pods are truncated to this many characters, because people read them in the status.
_MESSAGE_LIMIT, _TRACEBACK_LIMIT = 1000, 3000
# Reasons of Kubernetes for removing a pod. A drain uses the Eviction API. The kubelet terminates pods when its node shuts down.
_DISRUPTIONS = {
    "DeletionByPodGC": Reason.NODE_LOST,
    "DeletionByTaintManager": Reason.NODE_LOST,
    "EvictionByEvictionAPI": Reason.NODE_LOST,
    "TerminationByKubelet": Reason.NODE_LOST,
    "PreemptionByScheduler": Reason.PREEMPTED,
    "PreemptionByKueueManager": Reason.PREEMPTED,
}


@dataclasses.dataclass(frozen=True)
class _Cause:
    """The end of one pod, as a candidate for the root cause.

    kind: what is known about the end:
    - reported: the pod, its kubelet or its exit code names an error.
    - disrupted: the pod was evicted or deleted.
    - node_down: its node went down at an unknown time. The kubelet finds that out when it starts again.
    - symptom: the pod reports an error that another failure causes.
    - unexplained: the pod may be a victim.
    """

    kind: Literal["reported", "disrupted", "node_down", "unexplained", "symptom"]
    at: datetime.datetime
    index: int
    failure: Failure


def final_report(pod: PodState) -> Report | None:
    """Return the report in a pod's termination message, or None if there is no valid one."""
    if pod.terminated is None or not pod.terminated.message:
        return None
    return Report.read(pod.terminated.message)


def known_reason(failure: Failure) -> Reason:
    """Return the reason that a pod gave, or CodeError if it is not one of ours."""
    try:
        return Reason(failure.reason)
    except ValueError:
        return Reason.CODE_ERROR


def build_failure(
    reason: Reason, message: str, pod: PodState | None = None, exit_code: int | None = None, hint: str | None = None
) -> Failure:
    """Return a failure. hint: None for that of its reason."""
    return Failure(
        reason=reason.value,
        message=message[:_MESSAGE_LIMIT],
        hint=hint or REASONS[reason].hint,
        node=pod.node if pod is not None else None,
        exit_code=exit_code,
    )


def find_cause(child: ChildJob | None, pods: Sequence[PodState], nodes: int, now: datetime.datetime) -> Failure | None:
    """Return the root cause of an attempt's failure. Return None if nothing failed, or if it is too early to find the cause.

    The earliest pod that reported an error of its own is the cause. A pod that was evicted or deleted before that is the cause
    instead. A pod that was deleted later is a victim, because the Job deletes the other pods after one has failed. If all pods
    that ended are victims, the cause comes from the other pods: either they report it when they end, or the cluster finds that
    their node is unreachable. This costs no time, because the next attempt waits for those pods anyway.
    """
    causes = sorted(filter(None, map(_cause, pods)), key=lambda cause: (cause.at, cause.index))
    reported = next((cause for cause in causes if cause.kind == "reported"), None)
    disrupted = next((cause for cause in causes if cause.kind == "disrupted"), None)
    ended = [cause for cause in causes if cause.kind in ("unexplained", "symptom")]
    if reported is not None and (disrupted is None or reported.at <= disrupted.at + CLOCK_SKEW):
        return reported.failure
    if node_down := next((cause for cause in causes if cause.kind == "node_down"), None):
        return node_down.failure
    if disrupted is not None and all(
        disrupted.at + (CLOCK_SKEW if cause.kind == "unexplained" else _ZERO) < cause.at for cause in ended
    ):
        job_gone = child is None or child.deleting
        return _job_deleted() if job_gone else disrupted.failure
    if ended:
        if now - ended[0].at < ROOT_CAUSE_GRACE and not _all_terminated(child, pods, nodes):
            return None
        if all(cause.kind == "symptom" for cause in ended):
            unreachable_pod = next((pod for pod in pods if pod.node_unreachable and pod.terminated is None), None)
            if unreachable_pod is not None:
                message = f"node {unreachable_pod.node} of pod {unreachable_pod.name} does not answer"
                return build_failure(Reason.NODE_LOST, message, unreachable_pod)
            if any(_is_terminating(pod, now) for pod in pods):
                return None
        return next((cause for cause in ended if cause.kind == "unexplained"), ended[0]).failure
    return _job_failure(child, pods, nodes)


def _is_terminating(pod: PodState, now: datetime.datetime) -> bool:
    """Return whether the pod is still being deleted, so that the next attempt would wait for it too."""
    return (
        pod.terminated is None
        and pod.deletion_timestamp is not None
        and not pod.only_finalizers_left
        and now < pod.deletion_timestamp + FORCE_DELETE_DELAY
    )


def _all_terminated(child: ChildJob | None, pods: Sequence[PodState], nodes: int) -> bool:
    """Return whether every pod has ended. If the Job is failing, its controller may have deleted some of them already."""
    complete = len(pods) == nodes or (child is not None and child.failing)
    return complete and all(pod.terminated is not None for pod in pods)


def _job_deleted() -> Failure:
    return build_failure(Reason.POD_LOST, "the Job of this attempt was deleted, and its pods with it")


def _job_failure(child: ChildJob | None, pods: Sequence[PodState], nodes: int) -> Failure | None:
    """Return the failure of the Job, if it failed or is gone although no pod shows a failure."""
    if child is None or child.deleting:
        return _job_deleted()
    if child.failed is None:
        return None
    missing = sorted(set(range(nodes)) - {pod.index for pod in pods})
    which = ", ".join(names.pod_host_name(child.owner.name, child.attempt, index) for index in missing) if child.owner else ""
    message = f"pod {which} disappeared" if missing else f"the Job failed: {child.failed}"
    return build_failure(Reason.POD_LOST, message)


def _cause(pod: PodState) -> _Cause | None:
    end, report = pod.terminated, final_report(pod)
    if end is not None and end.exit_code == names.EXIT_SUCCEEDED:
        return None
    if end is not None and (reported_cause := _reported_cause(pod, end, report)) is not None:
        return reported_cause
    if (disruption_cause := _disruption_cause(pod)) is not None:
        return disruption_cause
    return _Cause("unexplained", end.at, pod.index, _unexplained_failure(pod, end, report)) if end is not None else None


def _reported_cause(pod: PodState, end: Terminated, report: Report | None) -> _Cause | None:
    """Return the cause that the pod, its kubelet or its exit code names."""
    if report is not None and report.failure is not None:
        reason = known_reason(report.failure)
        if reason is not Reason.INTERRUPTED:
            kind: Literal["symptom", "reported"] = "symptom" if REASONS[reason].symptom else "reported"
            return _Cause(kind, end.at, pod.index, _with_pod_details(report.failure, reason, pod, end))
    hint = None
    # The container runtime sets OOMKilled if any process of the container was killed, also long before a pod saved and stopped.
    if end.reason == "OOMKilled" and end.exit_code != names.EXIT_INTERRUPTED and end.init_container is None:
        reason, message, hint = _out_of_memory(pod)
    elif pod.evicted is not None:
        own = _OWN_STORAGE_LIMIT.search(pod.evicted) is not None
        reason, hint = (Reason.DISK_FULL, _OWN_STORAGE_HINT) if own else (Reason.EVICTED, None)
        message = f"pod {pod.name} was evicted by the kubelet of {pod.node}: {pod.evicted}"
    elif pod.probe_failure is not None:
        reason = Reason.POD_UNRESPONSIVE
        message = f"the kubelet of {pod.node} ended pod {pod.name}, which no longer answered: {pod.probe_failure}"
    elif end.exit_code == names.EXIT_REFUSED and end.init_container is None:
        reason = Reason.CONFIGURATION_ERROR
        message = f"pod {pod.name} refused its configuration but did not report why: read its log"
    else:
        return None
    return _Cause("reported", end.at, pod.index, build_failure(reason, message, pod, end.exit_code, hint))


def _out_of_memory(pod: PodState) -> tuple[Reason, str, str | None]:
    """Return reason, message and hint for a pod that the kernel killed. If it has no limit, the memory of its node ran out."""
    if pod.memory_limit is None:
        message = f"pod {pod.name} was killed because the memory of {pod.node} ran out: the pod has no memory limit"
        return Reason.WORKER_DIED, message, NODE_MEMORY_HINT
    return Reason.OUT_OF_MEMORY, f"pod {pod.name} was killed: it reached its memory limit of {pod.memory_limit}", None


def _disruption_cause(pod: PodState) -> _Cause | None:
    """Return the cause if the pod was evicted or deleted, or if its node went down."""
    at = pod.deletion_requested_at or (pod.terminated.at if pod.terminated is not None else None)
    if pod.disruption is not None and at is not None:
        reason = _DISRUPTIONS.get(pod.disruption_reason or "", Reason.POD_LOST)
        message = f"pod {pod.name} was removed from node {pod.node}: {pod.disruption}"
        return _Cause("disrupted", at, pod.index, build_failure(reason, message, pod))
    if pod.terminated is not None and pod.terminated.reason in _NODE_RESTART_REASONS:
        message = f"pod {pod.name} ended when node {pod.node} went down"
        failure = build_failure(Reason.NODE_LOST, message, pod, pod.terminated.exit_code)
        return _Cause("node_down", pod.terminated.at, pod.index, failure)
    if pod.deletion_requested_at is not None:
        return _Cause(
            "disrupted", pod.deletion_requested_at, pod.index, build_failure(Reason.POD_LOST, f"pod {pod.name} was deleted", pod)
        )
    return None


def _unexplained_failure(pod: PodState, end: Terminated, report: Report | None) -> Failure:
    if end.init_container is not None:
        container = f"container {end.init_container} of pod {pod.name}"
        message = f"{container} ended with exit code {end.exit_code} ({end.reason}), so the training did not start"
        return build_failure(Reason.INIT_CONTAINER_FAILED, message, pod, end.exit_code)
    if end.exit_code == names.EXIT_INTERRUPTED or (report is not None and report.phase == "Interrupted"):
        return build_failure(Reason.INTERRUPTED, f"pod {pod.name} was asked to stop", pod, end.exit_code)
    if end.exit_code is None:
        message = f"pod {pod.name} failed on {pod.node}: {end.reason}: {end.message}"
        return build_failure(Reason.POD_LOST, message, pod)
    return build_failure(
        Reason.WORKER_DIED, f"pod {pod.name} ended with exit code {end.exit_code} and no report", pod, end.exit_code
    )


def _with_pod_details(failure: Failure, reason: Reason, pod: PodState, end: Terminated) -> Failure:
    """Return the failure that the pod reported, completed with node, exit code and hint."""
    return failure.model_copy(
        update={
            "message": failure.message[:_MESSAGE_LIMIT],
            "hint": failure.hint[:_MESSAGE_LIMIT] if failure.hint else REASONS[reason].hint,
            "node": pod.node or (failure.node or "")[:253] or None,
            "exit_code": end.exit_code,
            "traceback": failure.traceback[-_TRACEBACK_LIMIT:] if failure.traceback else None,
        }
    )
