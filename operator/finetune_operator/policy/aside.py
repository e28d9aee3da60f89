"""Attempts that are over while the job is not: the old gang goes, and the next one starts when it may."""

import datetime
import itertools

from finetune_api import names
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_operator.observed import Observation, PodState, read_time
from finetune_operator.policy.decision import Decision
from finetune_operator.policy.failure import last_word
from finetune_operator.policy.progress import merge_report
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
    """Delete the attempt that is over, wait until none of its pods is left, then create the next: attempts never overlap."""
    status = with_last_words(seen, status, attempt, now)
    old = [child for child in seen.own_jobs() if child.attempt <= attempt and not child.deleting]
    if old:
        return Decision(status, delete=old[0], again_seconds=_SOON_SECONDS)
    left = [pod for pod in seen.pods if pod.job_uid == seen.job.uid]
    if spec.suspend:
        return Decision(suspended(status, seen.job, _stopping(left), now), again_seconds=_CHECK_SECONDS if left else None)
    if left or seen.own_jobs():
        return Decision(_waiting(seen, status, left, attempt, now), again_seconds=_CHECK_SECONDS)
    ended = read_time(status.attempts[-1].completion_time) if status.attempts else None
    pause = (ended + _quota_pause(status) - now).total_seconds() if status.phase == "Queued" and ended is not None else 0
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
    for pod in seen.pods:
        word = last_word(pod) if pod.job_uid == seen.job.uid and pod.index == 0 else None
        if word is not None and word.attempt == attempt:
            return _with_last_step(merge_report(status, word, now))
    return status


def _with_last_step(status: FineTuneJobStatus) -> FineTuneJobStatus:
    """The attempt went on for some steps after it was given up."""
    if not status.attempts or status.progress is None:
        return status
    last = status.attempts[-1].model_copy(update={"step": status.progress.step})
    return status.model_copy(update={"attempts": [*status.attempts[:-1], last]})


def of_an_earlier_job(seen: Observation) -> str | None:
    """What is left of another FineTuneJob of the same name, for people."""
    uid = seen.job.uid
    jobs = [child for child in seen.jobs if child.owner and child.owner.kind == names.KIND and child.owner.uid != uid]
    pods = [pod for pod in seen.pods if pod.owner and pod.job_uid is not None]
    if pods:
        return f"pod {pods[0].name}" if len(pods) == 1 else f"{len(pods)} pods"
    return f"Job {jobs[0].name}" if jobs else None
