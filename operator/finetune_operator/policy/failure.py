"""Why an attempt failed: the root cause among the ends of a gang's pods, most of which are only its victims."""

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Literal

import pydantic

from finetune_api import names
from finetune_api.reasons import VERDICTS, Reason
from finetune_api.status import Failure
from finetune_api.wire import Report
from finetune_operator.observed import ChildJob, Finished, PodState
from finetune_operator.policy.forcing import OVERDUE

# How long a victim's end waits for the culprit's: pods of a gang finish, and their kubelets tell of it, at different times.
GRACE = datetime.timedelta(seconds=5)
# Clocks of nodes and API server differ by about so much; their times have whole seconds only.
CLOCK_SKEW = datetime.timedelta(seconds=1)
_NOTHING = datetime.timedelta()
# What a kubelet says of a container that it does not find any more when it starts: its machine had gone down.
_WITH_ITS_MACHINE = frozenset({"Unknown", "ContainerStatusUnknown"})
# Texts of pods are kept to so many characters: they end in a status that people read.
_MESSAGE_LIMIT, _TRACEBACK_LIMIT = 1000, 3000
# Kubernetes' words for who took a pod away: a drain uses the Eviction API, the kubelet ends pods where its machine shuts down.
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
    """One pod's end as a candidate. kind: reported names its own error, lost was taken away, vague may be a victim.

    down: its machine went down, and nobody knows when: the kubelet finds out when it starts again.
    """

    kind: Literal["reported", "lost", "down", "vague", "symptom"]
    at: datetime.datetime
    index: int
    failure: Failure


def last_word(pod: PodState) -> Report | None:
    """The Report in a pod's termination message, if there is one that can be understood."""
    if pod.finished is None or not pod.finished.message:
        return None
    try:
        return Report.model_validate_json(pod.finished.message)
    except pydantic.ValidationError:
        return None


def reason_of(failure: Failure) -> Reason:
    """The reason that a pod gave, if it is one of ours."""
    try:
        return Reason(failure.reason)
    except ValueError:
        return Reason.CODE_ERROR


def build_failure(reason: Reason, message: str, pod: PodState | None = None, exit_code: int | None = None) -> Failure:
    """A failure with the hint that belongs to its reason."""
    return Failure(
        reason=reason.value,
        message=message[:_MESSAGE_LIMIT],
        hint=VERDICTS[reason].hint,
        node=pod.node if pod is not None else None,
        exit_code=exit_code,
    )


def find_cause(child: ChildJob | None, pods: Sequence[PodState], nodes: int, now: datetime.datetime) -> Failure | None:
    """The root cause of an attempt's failure; None if nothing failed, or if it is too early to tell a victim from the culprit.

    The first that reported an error of its own counts. A pod that was taken away before that is the cause itself; one taken
    away later was so because the Job ends a gang once one of its pods failed. Where all that ended are victims, the others tell
    at their end; or the cluster finds out that their machine is gone, which the victims felt long before. That costs no time:
    the next attempt waits for those pods anyway.
    """
    causes = sorted(filter(None, map(_cause, pods)), key=lambda cause: (cause.at, cause.index))
    reported = next((cause for cause in causes if cause.kind == "reported"), None)
    lost = next((cause for cause in causes if cause.kind == "lost"), None)
    ended = [cause for cause in causes if cause.kind in ("vague", "symptom")]
    if reported is not None and (lost is None or reported.at <= lost.at + CLOCK_SKEW):
        return reported.failure
    if down := next((cause for cause in causes if cause.kind == "down"), None):
        return down.failure
    if lost is not None and all(lost.at + (CLOCK_SKEW if cause.kind == "vague" else _NOTHING) < cause.at for cause in ended):
        gone = child is None or child.deleting
        return _job_deleted() if gone else lost.failure
    if ended:
        if now - ended[0].at < GRACE and not _nothing_to_come(child, pods, nodes):
            return None
        if all(cause.kind == "symptom" for cause in ended):
            if (silent := next((pod for pod in pods if pod.silent and pod.finished is None), None)) is not None:
                message = f"machine {silent.node} of pod {silent.name} does not answer"
                return build_failure(Reason.NODE_LOST, message, silent)
            if any(_is_ending(pod, now) for pod in pods):
                return None
        return next((cause for cause in ended if cause.kind == "vague"), ended[0]).failure
    return _missing(child, pods, nodes)


def _is_ending(pod: PodState, now: datetime.datetime) -> bool:
    """Whether it was asked to end, and the next attempt would wait for it, too."""
    return pod.finished is None and pod.due_at is not None and not pod.is_remnant and now < pod.due_at + OVERDUE


def _nothing_to_come(child: ChildJob | None, pods: Sequence[PodState], nodes: int) -> bool:
    """Whether every pod that is left has ended, and those that are not have been stopped by the Job."""
    complete = len(pods) == nodes or (child is not None and child.ending)
    return complete and all(pod.finished is not None for pod in pods)


def _job_deleted() -> Failure:
    return build_failure(Reason.POD_LOST, "the Job of this attempt was deleted, and its pods with it")


def _missing(child: ChildJob | None, pods: Sequence[PodState], nodes: int) -> Failure | None:
    """No pod tells of a failure, but the Job does, or is gone itself."""
    if child is None or child.deleting:
        return _job_deleted()
    if child.failed is None:
        return None
    gone = sorted(set(range(nodes)) - {pod.index for pod in pods})
    which = ", ".join(names.pod_host_name(child.owner.name, child.attempt, index) for index in gone) if child.owner else ""
    message = f"pod {which} disappeared" if gone else f"the Job failed: {child.failed}"
    return build_failure(Reason.POD_LOST, message)


def _cause(pod: PodState) -> _Cause | None:
    end, report = pod.finished, last_word(pod)
    if end is not None and end.exit_code == names.EXIT_SUCCEEDED:
        return None
    if end is not None and (named := _named(pod, end, report)) is not None:
        return named
    if (taken := _taken_away(pod)) is not None:
        return taken
    return _Cause("vague", end.at, pod.index, _unexplained(pod, end, report)) if end is not None else None


def _named(pod: PodState, end: Finished, report: Report | None) -> _Cause | None:
    """The cause that the pod, its kubelet or its exit code names."""
    if report is not None and report.failure is not None:
        reason = reason_of(report.failure)
        if reason is not Reason.INTERRUPTED:
            kind: Literal["symptom", "reported"] = "symptom" if VERDICTS[reason].symptom else "reported"
            return _Cause(kind, end.at, pod.index, _complete(report.failure, reason, pod, end))
    if end.reason == "OOMKilled":
        reason, message = Reason.OUT_OF_MEMORY, f"pod {pod.name} was killed: it used more memory than its limit"
    elif pod.evicted is not None:
        reason, message = Reason.EVICTED, f"pod {pod.name} was evicted by the kubelet of {pod.node}: {pod.evicted}"
    elif end.exit_code == names.EXIT_REFUSED:
        reason = Reason.CONFIGURATION_ERROR
        message = f"pod {pod.name} refused its configuration and did not say why; its log does"
    else:
        return None
    return _Cause("reported", end.at, pod.index, build_failure(reason, message, pod, end.exit_code))


def _taken_away(pod: PodState) -> _Cause | None:
    """By whom the pod was evicted or deleted."""
    at = pod.deleted_at or (pod.finished.at if pod.finished is not None else None)
    if pod.disruption is not None and at is not None:
        reason = _DISRUPTIONS.get(pod.disruption_reason or "", Reason.POD_LOST)
        message = f"pod {pod.name} was taken from {pod.node}: {pod.disruption}"
        return _Cause("lost", at, pod.index, build_failure(reason, message, pod))
    if pod.finished is not None and pod.finished.reason in _WITH_ITS_MACHINE:
        message = f"pod {pod.name} ended when its machine {pod.node} went down"
        failure = build_failure(Reason.NODE_LOST, message, pod, pod.finished.exit_code)
        return _Cause("down", pod.finished.at, pod.index, failure)
    if pod.deleted_at is not None:
        return _Cause("lost", pod.deleted_at, pod.index, build_failure(Reason.POD_LOST, f"pod {pod.name} was deleted", pod))
    return None


def _unexplained(pod: PodState, end: Finished, report: Report | None) -> Failure:
    if end.exit_code == names.EXIT_INTERRUPTED or (report is not None and report.phase == "Interrupted"):
        return build_failure(Reason.INTERRUPTED, f"pod {pod.name} was asked to stop", pod, end.exit_code)
    if end.exit_code is None:
        message = f"pod {pod.name} failed on {pod.node}: {end.reason}: {end.message}"
        return build_failure(Reason.POD_LOST, message, pod)
    return build_failure(
        Reason.WORKER_DIED, f"pod {pod.name} ended with exit code {end.exit_code}, without a word", pod, end.exit_code
    )


def _complete(failure: Failure, reason: Reason, pod: PodState, end: Finished) -> Failure:
    """What the pod said, with what it need not know: node, exit code and hint."""
    return failure.model_copy(
        update={
            "message": failure.message[:_MESSAGE_LIMIT],
            "hint": failure.hint[:_MESSAGE_LIMIT] if failure.hint else VERDICTS[reason].hint,
            "node": (failure.node or pod.node or "")[:253] or None,
            "exit_code": end.exit_code,
            "traceback": failure.traceback[-_TRACEBACK_LIMIT:] if failure.traceback else None,
        }
    )
