"""What to do next about a job: every decision from what is observed now and the status, never from an event.

The attempt that status.attempt names was created; phase Restarting says that it failed, and is to be replaced.
"""

import dataclasses
import datetime
from collections.abc import Sequence

from finetune_api import names
from finetune_api.reasons import FineTuneError
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FINAL_PHASES, FineTuneJobStatus
from finetune_api.wire import Report
from finetune_operator.observed import ChildJob, Observation, PodState
from finetune_operator.policy.failure import find_cause, last_word
from finetune_operator.policy.progress import merge_report
from finetune_operator.policy.status import count, in_phase, lost, refused, started, succeeded
from finetune_operator.policy.waiting import explain_waiting

# Seconds until a job is looked at again without being asked: progress is pulled; the others heal what a watch lost.
POLL_SECONDS = 3.0
_CHECK_SECONDS = 5.0
_SOON_SECONDS = 1.0
# The Job controller itself stops a gang of which a pod failed. Where it can't (a pod that never ends, on a node that is
# gone), pods would go on holding GPUs: after this time the Job is deleted, and its logs with it.
STOP_AFTER = datetime.timedelta(seconds=60)
# From then on a restart that waits for old pods says so.
_LONG_WAIT = datetime.timedelta(seconds=30)


@dataclasses.dataclass(frozen=True)
class Decision:
    """status: as it is to be once the rest was done. create_attempt, delete: at most one of them. again_seconds: next look."""

    status: FineTuneJobStatus
    create_attempt: int | None = None
    delete: ChildJob | None = None
    again_seconds: float | None = None


def pod_to_ask(seen: Observation) -> PodState | None:
    """The pod whose /progress says how far the job is: the one with index 0, while it runs."""
    attempt = current_attempt(seen)
    if attempt is None or seen.job.status.phase in (*FINAL_PHASES, "Restarting"):
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


def decide(seen: Observation, report: Report | None, image: str, now: datetime.datetime) -> Decision:
    """The next thing to do. report: what /progress of the pod with index 0 said just now. image: the default one."""
    job = seen.job
    status = job.status.model_copy(update={"observed_generation": job.generation})
    if job.status.phase in FINAL_PHASES:
        return _after_the_end(seen, now)
    if isinstance(job.spec, FineTuneError):
        return Decision(refused(status, job.spec.reason, job.spec.message, job, now))
    attempt = current_attempt(seen)
    image = choose_image(job.spec, status, image)
    if attempt is None and (left := _of_an_earlier_job(seen)):
        message = f"waiting for {left} of an earlier {names.KIND} of this name to end"
        return Decision(in_phase(status, "Pending", "WaitingForDeletion", message), again_seconds=_CHECK_SECONDS)
    if attempt is None or attempt > (status.attempt or 0):
        # The status names an attempt once all its children are there: until then they are created, as often as it takes.
        attempt = attempt or 1
        return Decision(started(status, job.spec, attempt, image, now), create_attempt=attempt)
    if status.phase == "Restarting" and status.attempt == attempt:
        return _replace(seen, job.spec, status, attempt, image, now)
    return _follow(seen, job.spec, status, attempt, report, now)


def _after_the_end(seen: Observation, now: datetime.datetime) -> Decision:
    """Final phases are latched: nothing is created, the status stays. Only pods that should not run any more are stopped."""
    status = seen.job.status
    still_there = [child for child in seen.own_jobs() if not child.deleting]
    running = [pod for child in still_there for pod in seen.pods_of(child.attempt) if pod.finished is None]
    if not running:
        return Decision(status)
    since = seen.job.status_written_at
    if since is not None and now - since < STOP_AFTER:
        return Decision(status, again_seconds=(since + STOP_AFTER - now).total_seconds() + _SOON_SECONDS)
    return Decision(status, delete=still_there[0], again_seconds=_CHECK_SECONDS)


def _of_an_earlier_job(seen: Observation) -> str | None:
    """What is left of another FineTuneJob of the same name, for people."""
    uid = seen.job.uid
    jobs = [child for child in seen.jobs if child.owner and child.owner.kind == names.KIND and child.owner.uid != uid]
    pods = [pod for pod in seen.pods if pod.owner and pod.job_uid not in (None, uid)]
    if pods:
        return f"pod {pods[0].name}" if len(pods) == 1 else f"{len(pods)} pods"
    return f"Job {jobs[0].name}" if jobs else None


def _replace(
    seen: Observation, spec: FineTuneJobSpec, status: FineTuneJobStatus, attempt: int, image: str, now: datetime.datetime
) -> Decision:
    """Delete the failed attempt, wait until none of its pods is left, then create the next: attempts never overlap."""
    old = [child for child in seen.own_jobs() if child.attempt <= attempt and not child.deleting]
    if old:
        return Decision(status, delete=old[0], again_seconds=_SOON_SECONDS)
    left = [pod for pod in seen.pods if pod.job_uid == seen.job.uid]
    if left or seen.own_jobs():
        since = seen.job.status_written_at
        if left and since is not None and now - since > _LONG_WAIT:
            message = f"waiting for pod {left[0].name} on {left[0].node} of attempt {attempt} to end"
            status = status.model_copy(update={"message": message})
        return Decision(status, again_seconds=_CHECK_SECONDS)
    return Decision(started(status, spec, attempt + 1, image, now), create_attempt=attempt + 1)


def _follow(
    seen: Observation,
    spec: FineTuneJobSpec,
    status: FineTuneJobStatus,
    attempt: int,
    report: Report | None,
    now: datetime.datetime,
) -> Decision:
    """See how an attempt is going: ended, failed, or on its way."""
    child, pods, nodes = seen.job_of(attempt), seen.pods_of(attempt), spec.distributed.nodes
    final = next((last_word(pod) for pod in pods if pod.index == 0 and pod.finished is not None), None)
    word = final or report
    if word is not None and word.attempt != attempt:
        word = None
    if word is not None:
        status = merge_report(status, word, now)
    if _is_complete(child, pods, nodes):
        return Decision(succeeded(status, spec, seen.job, now))
    failure = find_cause(child, pods, nodes, now)
    if failure is not None:
        return Decision(lost(status, spec, failure, seen.job, now), again_seconds=_SOON_SECONDS)
    return Decision(_on_its_way(seen, status, pods, nodes, word, now), again_seconds=_pause(pods))


def _is_complete(child: ChildJob | None, pods: Sequence[PodState], nodes: int) -> bool:
    if child is not None and child.complete:
        return True
    ends = [pod.finished.exit_code for pod in pods if pod.finished is not None]
    return len(ends) == nodes and all(code == names.EXIT_SUCCEEDED for code in ends)


def _pause(pods: Sequence[PodState]) -> float:
    ended = any(pod.finished is not None for pod in pods)
    return _SOON_SECONDS if ended else POLL_SECONDS if any(pod.started for pod in pods) else _CHECK_SECONDS


def _on_its_way(
    seen: Observation,
    status: FineTuneJobStatus,
    pods: Sequence[PodState],
    nodes: int,
    word: Report | None,
    now: datetime.datetime,
) -> FineTuneJobStatus:
    running = sum(pod.started for pod in pods)
    if running < nodes:
        reason, message = explain_waiting(seen, pods, nodes, now)
        return in_phase(status, "Pending", reason, message)
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
