"""Attempts that are over while the job is not: the old gang goes, and the next one starts when it may."""

import datetime
import itertools

from finetune_api import names
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_operator.observed import Observation, PodState, read_time
from finetune_operator.policy.decision import Decision
from finetune_operator.policy.failure import last_word
from finetune_operator.policy.forcing import overdue, seconds_to_next
from finetune_operator.policy.progress import furthest_step
from finetune_operator.policy.report import take_word
from finetune_operator.policy.restarts import pause_before_next, with_in_place
from finetune_operator.policy.status import in_phase, suspended, without_conditions
from finetune_operator.policy.waiting import BY_QUOTA

_CHECK_SECONDS = 5.0
_SOON_SECONDS = 1.0
# From then on a job that waits for old pods says so.
_LONG_WAIT = datetime.timedelta(seconds=30)
# Quota is asked again after that time, which doubles: each try holds what it gets for a while.
QUOTA_PAUSE, LONGEST_QUOTA_PAUSE = datetime.timedelta(seconds=60), datetime.timedelta(minutes=15)


def is_over(status: FineTuneJobStatus) -> bool:
    """Whether the attempt that the status names has been given up."""
    if status.phase in ("Restarting", "Suspended"):
        return True
    return status.attempts is not None and len(status.attempts) > 0 and status.attempts[-1].completion_time is not None


def next_attempt(
    seen: Observation, spec: FineTuneJobSpec, status: FineTuneJobStatus, attempt: int, now: datetime.datetime
) -> Decision:
    """Delete the attempt that is over, wait until none of its pods is left, then create the next: attempts never overlap.

    A pod that nobody ends is deleted without its machine's leave, once its Job is gone; one that only a finalizer holds is not
    waited for.
    """
    status = with_last_words(seen, status, attempt, now)
    old = [child for child in seen.own_jobs() if child.attempt <= attempt and not child.deleting]
    if old:
        return Decision(status, delete=old[0], again_seconds=_SOON_SECONDS)
    left = [pod for pod in seen.left_pods() if not pod.is_remnant]
    ended = read_time(status.attempts[-1].completion_time) if status.attempts else None
    again, stuck = seconds_to_next(left, ended, now, at_most=_CHECK_SECONDS), overdue(left, ended, now)
    if spec.suspend:
        status = suspended(status, seen.job, _stopping(left), now)
        return Decision(status, force_delete=stuck, again_seconds=again if left else None)
    if left or seen.own_jobs():
        return Decision(_waiting(seen, status, left, attempt, now), force_delete=stuck, again_seconds=again)
    wait = _quota_pause(status) if status.phase == "Queued" else pause_before_next(status)
    pause = (ended + wait - now).total_seconds() if ended is not None else 0
    if pause > 0:
        return Decision(status, again_seconds=pause)
    return Decision(status, create_attempt=attempt + 1)


def _quota_pause(status: FineTuneJobStatus) -> datetime.timedelta:
    in_vain = len(list(itertools.takewhile(lambda item: item.reason in BY_QUOTA, reversed(status.attempts or ()))))
    doubled: datetime.timedelta = QUOTA_PAUSE * 2 ** min(max(0, in_vain - 1), 10)
    return min(doubled, LONGEST_QUOTA_PAUSE)


def _stopping(left: list[PodState]) -> str | None:
    return f"stopping: waiting for pod {left[0].name} to save a checkpoint and end" if left else None


def _waiting(
    seen: Observation, status: FineTuneJobStatus, left: list[PodState], attempt: int, now: datetime.datetime
) -> FineTuneJobStatus:
    if status.phase == "Suspended":
        status = without_conditions(status, "Suspended")
        return in_phase(status, "Pending", "WaitingForDeletion", "waiting for the pods that were suspended to end")
    since = seen.job.status_written_at
    if left and since is not None and now - since > _LONG_WAIT:
        message = f"waiting for pod {left[0].name} on {left[0].node} of attempt {attempt} to end"
        return status.model_copy(update={"message": message})
    return status


def with_last_words(seen: Observation, status: FineTuneJobStatus, attempt: int, now: datetime.datetime) -> FineTuneJobStatus:
    """What pods that were asked to stop say at their end: above all the checkpoint that they saved."""
    ended = [*seen.left_pods(), *(pod for pod in seen.departed if pod.job_uid == seen.job.uid)]
    words = [(pod.index, word) for pod in ended if (word := last_word(pod)) is not None and word.attempt == attempt]
    first = next((word for index, word in words if index == 0), None)
    if first is not None:
        status = _with_last_step(take_word(status, seen.job, first, now))
    return with_in_place(status, [word for _, word in words])


def _with_last_step(status: FineTuneJobStatus) -> FineTuneJobStatus:
    """The attempt went on for some steps after it was given up."""
    if not status.attempts or status.progress is None:
        return status
    last = status.attempts[-1].model_copy(update={"step": furthest_step(status.progress)})
    return status.model_copy(update={"attempts": [*status.attempts[:-1], last]})


def of_an_earlier_job(seen: Observation) -> str | None:
    """What is left of another FineTuneJob of the same name, for people."""
    uid = seen.job.uid
    jobs = [child for child in seen.jobs if child.owner and child.owner.kind == names.KIND and child.owner.uid != uid]
    pods = [pod for pod in seen.pods if pod.owner and pod.job_uid is not None and not pod.is_remnant]
    if pods:
        return f"pod {pods[0].name}" if len(pods) == 1 else f"{len(pods)} pods"
    return f"Job {jobs[0].name}" if jobs else None
