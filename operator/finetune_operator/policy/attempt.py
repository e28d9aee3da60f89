"""What to do next about a job: every decision from what is observed now and the status, never from an event.

The attempt that status.attempt names was created; its completionTime in status.attempts says that it is over.
"""

import datetime
from collections.abc import Sequence

from finetune_api import names
from finetune_api.durations import format_duration
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FINAL_PHASES, FineTuneJobStatus
from finetune_api.wire import Report
from finetune_operator.observed import ChildJob, JobRecord, Observation, PodState, read_time, write_time
from finetune_operator.policy.aside import is_over, next_attempt, of_an_earlier_job, with_last_words
from finetune_operator.policy.decision import Decision
from finetune_operator.policy.elastic import nodes_of_attempt, shrunk
from finetune_operator.policy.ending import after_the_end
from finetune_operator.policy.failure import build_failure, find_cause, last_word
from finetune_operator.policy.report import take_word
from finetune_operator.policy.restarts import lost, with_in_place
from finetune_operator.policy.stall import find_silence
from finetune_operator.policy.status import (
    count,
    failed,
    in_phase,
    queued,
    refused,
    running_seconds,
    started,
    succeeded,
    suspended,
    with_condition,
    withdrawn,
    without_conditions,
)
from finetune_operator.policy.waiting import BY_QUOTA, REASONS_TO_FAIL, REFUSALS, explain_waiting

# Seconds until a job is looked at again without being asked: events tell of all that happens, this heals what they lost.
_CHECK_SECONDS = 20.0
_PENDING_SECONDS = 5.0
_SOON_SECONDS = 1.0
# So long a part of a gang may hold machines while a quota keeps the rest away.
PARTIAL_GANG = datetime.timedelta(seconds=30)


def pod_to_ask(seen: Observation) -> PodState | None:
    """The pod whose /progress says how far the job is: the one with index 0, while it runs."""
    attempt = current_attempt(seen)
    if attempt is None or seen.job.status.phase in FINAL_PHASES or is_over(seen.job.status):
        return None
    for pod in seen.pods_of(attempt):
        if pod.index == 0 and pod.started and pod.finished is None and pod.deleted_at is None and pod.address:
            return pod
    return None


def current_attempt(seen: Observation) -> int | None:
    """The newest attempt that was created: its Job may be ahead of the status, which is written after it."""
    numbers = [child.attempt for child in seen.own_jobs()]
    if seen.job.status.attempt is not None:
        numbers.append(seen.job.status.attempt)
    return max(numbers, default=None)


def choose_image(spec: FineTuneJobSpec, status: FineTuneJobStatus, default: str) -> str:
    """The trainer image: later attempts take that of the first, also after an upgrade of the operator."""
    return (status.resolved.image if status.resolved else None) or spec.pod.image or default


def decide(seen: Observation, report: Report | None, now: datetime.datetime) -> Decision:
    """The next thing to do. report: what /progress of the pod with index 0 said last."""
    job = seen.job
    status = job.status.model_copy(update={"observed_generation": job.generation})
    if job.status.phase in FINAL_PHASES:
        return after_the_end(seen, now)
    if isinstance(job.spec, FineTuneError):
        return _not_understood(job, status, job.spec, now)
    attempt = current_attempt(seen)
    if attempt is None:
        return _first_attempt(seen, job.spec, status, now)
    if attempt > (status.attempt or 0) and job.spec.suspend:
        return Decision(suspended(status, job, None, now), delete=seen.job_of(attempt), again_seconds=_SOON_SECONDS)
    if attempt > (status.attempt or 0):
        # The status names an attempt once all its children are there: until then they are created, as often as it takes.
        if seen.whole is None or seen.whole.attempt != attempt:
            return Decision(status, create_attempt=attempt)
        status = started(status, job.spec, seen.whole)
    nodes = nodes_of_attempt(job.spec, status)
    if status.phase == "Suspended" and _is_complete(seen.job_of(attempt), seen.pods_of(attempt), nodes):
        return Decision(succeeded(with_last_words(seen, status, attempt, now), job.spec, job, now))  # it was quicker
    if is_over(status):
        return next_attempt(seen, job.spec, status, attempt, now)
    return _follow(seen, job.spec, status, attempt, report, now)


def _not_understood(job: JobRecord, status: FineTuneJobStatus, error: FineTuneError, now: datetime.datetime) -> Decision:
    """The end of a job that never started; one that did was understood by another version, which will be back."""
    if status.attempt is None:
        return Decision(refused(status, error.reason, error.message, job, now))
    conditions = with_condition(
        status, job, now, "Blocked", "True", error.reason, f"this operator can't read it: {error.message}"
    )
    return Decision(status.model_copy(update={"conditions": conditions}))


def _first_attempt(seen: Observation, spec: FineTuneJobSpec, status: FineTuneJobStatus, now: datetime.datetime) -> Decision:
    if spec.suspend:
        return Decision(suspended(status, seen.job, None, now))
    if left := of_an_earlier_job(seen):
        message = f"waiting for {left} of an earlier {names.KIND} of this name to end"
        status = without_conditions(status, "Suspended")
        return Decision(in_phase(status, "Pending", "WaitingForDeletion", message), again_seconds=5.0)
    return Decision(status, create_attempt=1)


def _follow(
    seen: Observation,
    spec: FineTuneJobSpec,
    status: FineTuneJobStatus,
    attempt: int,
    report: Report | None,
    now: datetime.datetime,
) -> Decision:
    """See how an attempt is going: ended, failed, held back, or on its way."""
    child, pods, nodes = seen.job_of(attempt), seen.pods_of(attempt), nodes_of_attempt(spec, status)
    final = next((last_word(pod) for pod in pods if pod.index == 0 and pod.finished is not None), None)
    word = final or report
    if word is not None and word.attempt != attempt:
        word = None
    if word is not None:
        status = take_word(status, seen.job, word, now)
    status = with_in_place(status, [word, *(last_word(pod) for pod in pods if pod.index != 0)])
    if _is_complete(child, pods, nodes):
        return Decision(succeeded(status, spec, seen.job, now), unsure=sum(pod.finished is not None for pod in pods) < nodes)
    if spec.suspend:
        message = "stopping: the pods save a checkpoint"
        return Decision(suspended(status, seen.job, message, now), again_seconds=_SOON_SECONDS)
    if child is not None and child.suspended and child.failed is None and not child.deleting:
        again = _PENDING_SECONDS if seen.queueing is None else _CHECK_SECONDS
        return Decision(queued(status, seen.job, seen.queueing, now), again_seconds=again)
    failure = find_cause(child, pods, nodes, now)
    ended = any(pod.finished is not None for pod in pods)
    if failure is None and len(pods) == nodes and not ended:
        failure = find_silence(spec, status, pods[0], seen.silent_seconds)
    if failure is not None:
        return Decision(lost(status, spec, failure, seen.job, now), again_seconds=_SOON_SECONDS)
    status = _on_its_way(seen, status, pods, nodes, word, now)
    if status.phase == "Running" and any(pod.finished is not None and pod.finished.exit_code for pod in pods):
        status = status.model_copy(update={"message": "a pod has failed: waiting for the others, to know why"})
    return _within_limits(seen, spec, status, pods, now) or Decision(
        status, again_seconds=_SOON_SECONDS if ended else _next_look(spec, status, now)
    )


def _is_complete(child: ChildJob | None, pods: Sequence[PodState], nodes: int) -> bool:
    if child is not None and child.complete:
        return True
    ends = [pod.finished.exit_code for pod in pods if pod.finished is not None]
    return len(ends) == nodes and all(code == names.EXIT_SUCCEEDED for code in ends)


def _on_its_way(
    seen: Observation,
    status: FineTuneJobStatus,
    pods: Sequence[PodState],
    nodes: int,
    word: Report | None,
    now: datetime.datetime,
) -> FineTuneJobStatus:
    if len(pods) < nodes and not (seen.live or seen.asked_why) and status.phase == "Pending" and status.reason in REFUSALS:
        return status  # why, is told by events, which are read now and then only
    if sum(pod.started for pod in pods) < nodes:
        reason, message = explain_waiting(seen, pods, nodes, now)
        return in_phase(status, "Pending", reason, message)
    if status.running_since is None:
        since = max((pod.started_at or now for pod in pods), default=now)
        status = status.model_copy(update={"running_since": write_time(since)})
    if word is None:
        if status.phase in ("Initializing", "Running", "Publishing"):
            return status  # it did not answer this time
        return in_phase(status, "Initializing", "Initializing", f"{count(nodes, 'pod')} started")
    said = (word.message or "")[:500]
    if word.phase == "Initializing":
        return in_phase(status, "Initializing", "Initializing", said or "getting ready")
    if word.phase == "Running":
        return in_phase(status, "Running", "Training", said or f"training on {count(nodes, 'node')}")
    if word.phase == "Publishing":
        return in_phase(status, "Publishing", "Publishing", said or "pushing the model to the Hub")
    if any(pod.finished is None for pod in pods):
        return status.model_copy(update={"message": "waiting for the other pods to end"}) if nodes > 1 else status
    return status


def _within_limits(
    seen: Observation, spec: FineTuneJobSpec, status: FineTuneJobStatus, pods: Sequence[PodState], now: datetime.datetime
) -> Decision | None:
    """The end of a job that ran too long or never started, the retreat of a gang that can't become whole; None if all is well."""
    deadline, ran = spec.active_deadline_seconds, running_seconds(status, now)
    if deadline is not None and ran >= deadline:
        message = f"the job ran for {format_duration(ran)}, activeDeadlineSeconds allows {format_duration(deadline)}"
        failure = build_failure(Reason.DEADLINE_EXCEEDED, message)
        return Decision(failed(status, failure, message, seen.job, now), again_seconds=_SOON_SECONDS)
    if status.phase != "Pending" or not status.attempts or status.running_since is not None:
        return None
    waited = now - _began(seen, status)
    if status.reason in BY_QUOTA:
        partial = 0 < len(pods) < nodes_of_attempt(spec, status)
        return Decision(withdrawn(status, now), again_seconds=_SOON_SECONDS) if partial and waited > PARTIAL_GANG else None
    if (smaller := shrunk(spec, status, pods, waited, now)) is not None:
        return Decision(smaller, again_seconds=_SOON_SECONDS)
    allowed = spec.recovery.start_timeout_seconds
    if not allowed or waited.total_seconds() < allowed:
        return None
    reason = Reason(status.reason) if status.reason in REASONS_TO_FAIL else Reason.START_TIMEOUT
    failure = build_failure(reason, f"not started within {format_duration(allowed)}: {status.message}")
    return Decision(failed(status, failure, failure.message, seen.job, now), again_seconds=_SOON_SECONDS)


def _began(seen: Observation, status: FineTuneJobStatus) -> datetime.datetime:
    """When the present attempt was created, or let go by a queue, whichever was later."""
    assert status.attempts
    assert status.attempt
    child, created = seen.job_of(status.attempt), read_time(status.attempts[-1].start_time)
    moments = [moment for moment in (created, child.started_at if child else None) if moment is not None]
    return max(moments, default=seen.job.created)


def _next_look(spec: FineTuneJobSpec, status: FineTuneJobStatus, now: datetime.datetime) -> float:
    """In time for the deadline, and for what pods that do not start come to."""
    pause = _CHECK_SECONDS if status.phase != "Pending" else _PENDING_SECONDS
    if spec.active_deadline_seconds is not None and status.running_since is not None:
        pause = min(pause, spec.active_deadline_seconds - running_seconds(status, now) + 0.5)
    return max(_SOON_SECONDS, pause)
