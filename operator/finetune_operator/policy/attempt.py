"""Decides the next step of a job from the observed state and the status, never from an event.

status.attempt is the newest attempt whose children were all created. An attempt is over if its entry in status.attempts has a
completionTime.
"""

import datetime
from collections.abc import Sequence

from finetune_api import names
from finetune_api.durations import format_duration
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FINAL_PHASES, FineTuneJobStatus, Phase
from finetune_api.wire import Report
from finetune_operator.observed import ChildJob, JobRecord, Observation, PodState, read_time, write_time
from finetune_operator.policy.cleanup import clean_up_finished_job
from finetune_operator.policy.conditions import with_condition, without_conditions
from finetune_operator.policy.decision import Decision
from finetune_operator.policy.elastic import nodes_of_attempt, scaled_down
from finetune_operator.policy.failure import build_failure, final_report, find_cause
from finetune_operator.policy.leftovers import wait_for_leftovers
from finetune_operator.policy.queue import wait_for_admission, wait_in_queue
from finetune_operator.policy.report import apply_report
from finetune_operator.policy.restart import has_attempt_ended, start_next_attempt, stopping_message, with_final_reports
from finetune_operator.policy.restart_budget import attempt_failed, with_in_place_restarts
from finetune_operator.policy.status import (
    admitted,
    attempt_created,
    failed,
    in_phase,
    pluralize,
    progress_unknown,
    refused,
    running_seconds,
    succeeded,
    suspended,
    with_bookkeeping,
    withdrawn,
)
from finetune_operator.policy.waiting import (
    QUOTA_REASONS,
    REFUSAL_REASONS,
    SCHEDULING_GATED,
    START_FAILURE_REASONS,
    UNSCHEDULABLE,
    explain_waiting,
)

# Seconds until the next reconcile without an event. Events normally cause reconciles, and this corrects lost ones.
_CHECK_SECONDS = 20.0
_PENDING_SECONDS = 5.0
_SOON_SECONDS = 1.0
_PHASES_WITH_PODS: frozenset[Phase] = frozenset({"Initializing", "Running", "Publishing"})
# If a quota admits only some pods of an attempt, they may hold their nodes for this long.
PARTIAL_GANG_TIMEOUT = datetime.timedelta(seconds=30)
# The same if only some pods find a node. An autoscaler needs several minutes to add one.
HALF_PLACED_TIMEOUT = datetime.timedelta(minutes=10)


def pods_to_poll(observation: Observation) -> list[PodState]:
    """Return the pods that the operator asks for /progress, first the one with index 0; none unless that one runs."""
    attempt = current_attempt(observation)
    if attempt is None or observation.job.status.phase in FINAL_PHASES or has_attempt_ended(observation.job.status):
        return []
    pods = [pod for pod in observation.pods_of(attempt) if pod.can_answer]
    return pods if pods and pods[0].index == 0 else []


def current_attempt(observation: Observation) -> int | None:
    """Return the newest attempt that has a Job or is in the status. The Job is created before the status is written."""
    numbers = [child.attempt for child in observation.own_jobs()]
    if observation.job.status.attempt is not None:
        numbers.append(observation.job.status.attempt)
    return max(numbers, default=None)


def choose_image(spec: FineTuneJobSpec, status: FineTuneJobStatus, default: str) -> str:
    """Return the trainer image. Without one in the spec, later attempts use that of the last, even after an operator upgrade."""
    return spec.pod.image or (status.resolved.image if status.resolved else None) or default


def decide(observation: Observation, report: Report | None, now: datetime.datetime) -> Decision:
    """Return the next step. report: the last report from /progress of the pod with index 0."""
    job = observation.job
    status = job.status.model_copy(update={"observed_generation": job.generation})
    if job.status.phase in FINAL_PHASES:
        return clean_up_finished_job(observation, now)
    if isinstance(job.spec, FineTuneError):
        return _invalid_spec(job, status, job.spec, now)
    attempt = current_attempt(observation)
    if attempt is None:
        return _start_first_attempt(observation, job.spec, status, now)
    if attempt > (status.attempt or 0) and job.spec.suspend:
        return Decision(
            suspended(status, "stopping: the pods end", now),
            delete_child_job=observation.job_of(attempt),
            requeue_after_seconds=_SOON_SECONDS,
        )
    if attempt > (status.attempt or 0):
        # The status names an attempt only after all its children were created. Until then each reconcile tries to create them.
        # If the spec has changed meanwhile, they are replaced. It may change before the first attempt, and while suspended.
        created = observation.created_attempt
        if created is None or (created.attempt, created.generation) != (attempt, job.generation):
            return Decision(status, create_attempt=attempt)
        status = attempt_created(status, job.spec, created)
    nodes = nodes_of_attempt(job.spec, status)
    if status.phase == "Suspended" and _is_complete(observation.job_of(attempt), observation.pods_of(attempt), nodes):
        return Decision(
            succeeded(with_final_reports(observation, status, attempt, now), job.spec, job, now)
        )  # it completed before it was suspended
    if has_attempt_ended(status):
        return start_next_attempt(observation, job.spec, status, attempt, now)
    return _check_attempt(observation, job.spec, status, attempt, report, now)


def _invalid_spec(job: JobRecord, status: FineTuneJobStatus, error: FineTuneError, now: datetime.datetime) -> Decision:
    """End a job that never started. A started job continues, because the operator version that could read its spec may return."""
    if status.attempt is None:
        return Decision(refused(status, error.reason, error.message, job, now))
    conditions = with_condition(
        status, job, now, "Blocked", "True", error.reason, f"this operator can't read the spec: {error.message}"
    )
    return Decision(status.model_copy(update={"conditions": conditions}))


def _start_first_attempt(
    observation: Observation, spec: FineTuneJobSpec, status: FineTuneJobStatus, now: datetime.datetime
) -> Decision:
    if spec.suspend:
        stopping = stopping_message(observation.own_pods())
        place = observation.queue_job()
        return Decision(
            suspended(status, stopping, now),
            delete_child_job=place if place is not None and not place.deleting else None,
            requeue_after_seconds=_SOON_SECONDS if stopping else None,
        )
    return (
        wait_for_leftovers(observation, status)
        or wait_for_admission(observation, spec, status, now)
        or Decision(status, create_attempt=1)
    )


def _check_attempt(
    observation: Observation,
    spec: FineTuneJobSpec,
    status: FineTuneJobStatus,
    attempt: int,
    report: Report | None,
    now: datetime.datetime,
) -> Decision:
    """Decide about the present attempt: it is complete, suspended, queued, failed, or in progress."""
    child, pods, nodes = observation.job_of(attempt), observation.pods_of(attempt), nodes_of_attempt(spec, status)
    final = next((final_report(pod) for pod in pods if pod.index == 0 and pod.terminated is not None), None)
    report = final or report
    if report is not None and report.attempt != attempt:
        report = None
    if report is not None:
        status = apply_report(status, observation.job, report, now)
    status = with_in_place_restarts(status, [report, *(final_report(pod) for pod in pods if pod.index != 0)])
    if _is_complete(child, pods, nodes):
        return Decision(
            succeeded(status, spec, observation.job, now),
            final_reports_missing=sum(pod.terminated is not None for pod in pods) < nodes,
        )
    if spec.suspend:
        message = "stopping: the pods save a checkpoint"
        return Decision(suspended(status, message, now), requeue_after_seconds=_SOON_SECONDS)
    if held_back := wait_in_queue(observation, child, status, now):
        return held_back
    status = admitted(status, observation.job, now)
    failure = find_cause(child, pods, nodes, now)
    ended = any(pod.terminated is not None for pod in pods)
    if failure is not None:
        return Decision(attempt_failed(status, spec, failure, observation.job, now), requeue_after_seconds=_SOON_SECONDS)
    status = without_conditions(_in_progress(observation, status, pods, nodes, report, now), "ProgressUnknown")
    if status.phase == "Running" and any(pod.terminated is not None and pod.terminated.exit_code for pod in pods):
        message = "a pod has failed: waiting for the reports of the other pods to find the cause"
        status = status.model_copy(update={"message": message})
    elif not ended and status.phase in _PHASES_WITH_PODS:
        silent = [pod for pod in pods if pod.name in observation.silent and pod.can_answer and not pod.node_unreachable]
        status = progress_unknown(status, observation.job, silent, nodes, now)
    return _enforce_limits(observation, spec, status, pods, now) or Decision(
        status,
        requeue_after_seconds=_SOON_SECONDS if ended else _seconds_to_deadline(spec, status, now),
        check_after_seconds=_PENDING_SECONDS if status.phase == "Pending" else _CHECK_SECONDS,
        pods_missing=status.phase in _PHASES_WITH_PODS and sum(pod.started for pod in pods) < nodes,
    )


def _is_complete(child: ChildJob | None, pods: Sequence[PodState], nodes: int) -> bool:
    if child is not None and child.complete:
        return True
    ends = [pod.terminated.exit_code for pod in pods if pod.terminated is not None]
    return len(ends) == nodes and all(code == names.EXIT_SUCCEEDED for code in ends)


def _in_progress(
    observation: Observation,
    status: FineTuneJobStatus,
    pods: Sequence[PodState],
    nodes: int,
    report: Report | None,
    now: datetime.datetime,
) -> FineTuneJobStatus:
    if (
        len(pods) < nodes
        and not (observation.live or observation.refusal_checked)
        and status.phase == "Pending"
        and status.reason in REFUSAL_REASONS
    ):
        return status  # keep the reason: it comes from events, which this reconcile has not read
    if sum(pod.started for pod in pods) < nodes:
        reason, message = explain_waiting(observation, pods, nodes, now)
        if status.phase in _PHASES_WITH_PODS:  # a phase never goes back within an attempt
            return status.model_copy(update={"message": message})
        return in_phase(status, "Pending", reason, message)
    if status.bookkeeping.running_since is None:
        since = max((pod.started_at or now for pod in pods), default=now)
        status = with_bookkeeping(status, running_since=write_time(since))
    if report is not None:
        return _as_reported(status, report, pods, nodes)
    if status.phase in _PHASES_WITH_PODS:
        return status  # the pod did not answer
    return in_phase(status, "Initializing", "Initializing", f"{pluralize(nodes, 'pod')} started")


def _as_reported(status: FineTuneJobStatus, report: Report, pods: Sequence[PodState], nodes: int) -> FineTuneJobStatus:
    message = (report.message or "")[:500]
    if report.phase == "Initializing":
        return in_phase(status, "Initializing", "Initializing", message or "getting ready")
    if report.phase == "Running":
        return in_phase(status, "Running", "Training", message or f"training on {pluralize(nodes, 'node')}")
    if report.phase == "Publishing":
        return in_phase(status, "Publishing", "Publishing", message or "pushing the model to the Hub")
    if status.phase not in _PHASES_WITH_PODS:  # it was so quick that the operator saw only its end
        status = in_phase(status, "Running", "Training", f"trained on {pluralize(nodes, 'node')}")
    if nodes > 1 and any(pod.terminated is None for pod in pods):
        status = status.model_copy(update={"message": "waiting for the other pods to end"})
    return status


def _enforce_limits(
    observation: Observation, spec: FineTuneJobSpec, status: FineTuneJobStatus, pods: Sequence[PodState], now: datetime.datetime
) -> Decision | None:
    """End a job that ran too long or never started. Withdraw an attempt that can't get all its pods. Else return None."""
    deadline, ran = spec.active_deadline_seconds, running_seconds(status, now)
    if deadline is not None and ran >= deadline:
        message = f"the job ran for {format_duration(ran)}, activeDeadlineSeconds allows {format_duration(deadline)}"
        failure = build_failure(Reason.DEADLINE_EXCEEDED, message)
        return Decision(failed(status, failure, message, observation.job, now), requeue_after_seconds=_SOON_SECONDS)
    if status.phase != "Pending" or not status.attempts or status.bookkeeping.running_since is not None:
        return None
    waited = now - _attempt_began_at(observation, status)
    if status.reason in QUOTA_REASONS:
        partial = 0 < len(pods) < nodes_of_attempt(spec, status)
        return (
            Decision(withdrawn(status, now), requeue_after_seconds=_SOON_SECONDS)
            if partial and waited > PARTIAL_GANG_TIMEOUT
            else None
        )
    if (scaled_down_status := scaled_down(spec, status, pods, waited, now)) is not None:
        return Decision(scaled_down_status, requeue_after_seconds=_SOON_SECONDS)
    unschedulable = status.reason == UNSCHEDULABLE
    if unschedulable and _is_half_placed(pods, nodes_of_attempt(spec, status), now):
        return Decision(withdrawn(status, now), requeue_after_seconds=_SOON_SECONDS)
    waits_for_node = unschedulable or status.reason == SCHEDULING_GATED
    field = "scheduleTimeoutSeconds" if waits_for_node else "startTimeoutSeconds"
    allowed = spec.recovery.schedule_timeout_seconds if waits_for_node else spec.recovery.start_timeout_seconds
    if not allowed or waited.total_seconds() < allowed:
        return None
    reason = Reason(status.reason) if status.reason in START_FAILURE_REASONS else Reason.START_TIMEOUT
    failure = build_failure(reason, f"not started within {format_duration(allowed)} (recovery.{field}): {status.message}")
    return Decision(failed(status, failure, failure.message, observation.job, now), requeue_after_seconds=_SOON_SECONDS)


def _is_half_placed(pods: Sequence[PodState], nodes: int, now: datetime.datetime) -> bool:
    """Return whether only some pods have had a node for long. They hold GPUs that another job could use."""
    placed_at = [pod.started_at or pod.created for pod in pods if pod.node is not None]
    return 0 < len(placed_at) < nodes and now - max(placed_at) > HALF_PLACED_TIMEOUT


def _attempt_began_at(observation: Observation, status: FineTuneJobStatus) -> datetime.datetime:
    """Return when the present attempt was created or its Job was resumed by a queue, whichever is later."""
    assert status.attempts
    assert status.attempt
    child, created = observation.job_of(status.attempt), read_time(status.attempts[-1].start_time)
    moments = [moment for moment in (created, child.started_at if child else None) if moment is not None]
    return max(moments, default=observation.job.created)


def _seconds_to_deadline(spec: FineTuneJobSpec, status: FineTuneJobStatus, now: datetime.datetime) -> float | None:
    if spec.active_deadline_seconds is None or status.bookkeeping.running_since is None:
        return None
    return max(_SOON_SECONDS, spec.active_deadline_seconds - running_seconds(status, now) + 0.5)
