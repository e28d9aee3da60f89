"""What follows from an attempt that was lost: another one, when, and on whose account; or the end.

Everything is read from status.attempts, so that an operator which has just started comes to the same.
"""

import datetime
import itertools
from collections.abc import Iterable, Iterator, Sequence

from finetune_api.durations import format_duration
from finetune_api.reasons import VERDICTS, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Attempt, Failure, FineTuneJobStatus, Restarts
from finetune_api.wire import Report
from finetune_operator.observed import JobRecord
from finetune_operator.policy.failure import reason_of
from finetune_operator.policy.status import closed, count, failed, in_phase
from finetune_operator.policy.waiting import BY_QUOTA, UNSCHEDULABLE

# Between attempts that came to nothing; it doubles.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1, 300
# So many failures in a row without a step beyond the furthest so far are no bad luck any more.
CRASH_LOOP = 5
# No pod makes up more than that.
_MOST_IN_PLACE = 10**6
# Reasons of attempts that were given up and not lost.
_NO_LOSS = frozenset({"Completed", "Suspended", UNSCHEDULABLE}) | BY_QUOTA


def lost(
    status: FineTuneJobStatus, spec: FineTuneJobSpec, failure: Failure, job: JobRecord, now: datetime.datetime
) -> FineTuneJobStatus:
    """The status after an attempt failed: another attempt where that can help and is allowed, else the end."""
    verdict = VERDICTS[reason_of(failure)]
    if not verdict.retry:
        return failed(status, failure, failure.message, job, now)
    ended = closed(status, failure.reason, now)
    before = ended.restarts or Restarts()
    if verdict.disruption:
        used, most, what = before.preemptions + 1, spec.recovery.max_preemptions, "preemption"
        after = counted(before, preemptions=used)
    else:
        used = before.charged + 1
        most, what = spec.recovery.max_restarts, "restart"
        after = counted(before, failures=before.failures + 1, charged=used)
        in_vain = failures_in_vain(ended.attempts or ())
        if used <= most and in_vain >= CRASH_LOOP:
            message = f"{in_vain} failures in a row without a further step: {failure.message}"
            return failed(status, failure, message, job, now)
    if used > most:
        message = f"after {count(most, what)}: {failure.message}" if most else failure.message
        return failed(status, failure, message, job, now)
    pause = pause_before_next(ended).total_seconds()
    when = f", again in {format_duration(pause)}" if pause else ""
    ended = ended.model_copy(update={"failure": failure, "restarts": after})
    return in_phase(ended, "Restarting", failure.reason, f"{what} {used} of {most}{when}: {failure.message}")


def counted(restarts: Restarts, **changes: int) -> Restarts:
    """The counts with some of them changed, and the sum that follows."""
    after = restarts.model_copy(update=changes)
    return after.model_copy(update={"total": after.failures + after.in_place + after.preemptions})


def restarts_left(spec: FineTuneJobSpec, status: FineTuneJobStatus) -> int:
    """Failures that the next attempt may heal by restarts in place before they are too many."""
    return max(0, spec.recovery.max_restarts - (status.restarts or Restarts()).charged)


def with_in_place(status: FineTuneJobStatus, words: Iterable[Report | None]) -> FineTuneJobStatus:
    """The status with the restarts in place that pods of the present attempt tell of, each of them counted once.

    The pod with index 0 tells while it runs, of the others what it has heard; at its end each tells of its own processes.
    """
    if not status.attempts:
        return status
    last, restarts = status.attempts[-1], status.restarts or Restarts()
    valid = [word for word in words if word is not None and word.attempt == last.number]
    own = sum(min(word.in_place, _MOST_IN_PLACE) for word in valid)
    heard = max((min(word.in_place + word.in_place_elsewhere, _MOST_IN_PLACE) for word in valid), default=0)
    more = max(own, heard) - (last.in_place or 0)
    if more <= 0:
        return status
    # After the end of the attempt its failure has settled what is charged.
    charged = restarts.charged + (more if last.completion_time is None else 0)
    return status.model_copy(
        update={
            "restarts": counted(restarts, in_place=restarts.in_place + more, charged=charged),
            "attempts": [*status.attempts[:-1], last.model_copy(update={"in_place": (last.in_place or 0) + more})],
        }
    )


def pause_before_next(status: FineTuneJobStatus) -> datetime.timedelta:
    """How long after the end of the last attempt the next one may begin.

    Failures double it until an attempt gets beyond the checkpoint that it had started from; disruptions do so too, but the first
    of them, which is nobody's fault, costs nothing.
    """
    attempts = status.attempts or ()
    if not attempts or (kind := _kind(attempts[-1])) is None:
        return datetime.timedelta()
    progress = _made_progress(status)
    in_vain = 0
    for attempt, further in zip(reversed(attempts), reversed(progress), strict=True):
        if further:
            break
        in_vain += _kind(attempt) == kind
    if kind == "disruption":
        in_vain -= 1
        if in_vain < 1:
            return datetime.timedelta()
    doublings = max(0, in_vain - 1)  # there are ten attempts at most
    return datetime.timedelta(seconds=min(_FIRST_PAUSE_SECONDS * 2**doublings, _LONGEST_PAUSE_SECONDS))


def failures_in_vain(attempts: Sequence[Attempt]) -> int:
    """Failures at the end of the list, those in place among them, since the job last did a step beyond the furthest so far."""
    found = 0
    for attempt, furthest_before in reversed(list(_with_furthest_before(attempts))):
        if furthest_before is None or (attempt.step or 0) > furthest_before:
            break
        if _kind(attempt) == "failure" and not VERDICTS[_reason(attempt)].external:
            found += 1 + (attempt.in_place or 0)
    return found


def _with_furthest_before(attempts: Sequence[Attempt]) -> Iterator[tuple[Attempt, int | None]]:
    """Each attempt with the furthest step before it; None where that is not known any more."""
    furthest = 0 if attempts and attempts[0].number == 1 else None
    for attempt in attempts:
        yield attempt, furthest
        furthest = max(furthest or 0, attempt.step or 0)


def _made_progress(status: FineTuneJobStatus) -> list[bool]:
    """Of each attempt, whether it got a checkpoint beyond the one that it had started from."""
    attempts = status.attempts or ()
    newest = status.checkpoint.step if status.checkpoint is not None else 0
    starts = [attempt.from_step or 0 for attempt in attempts]
    return [after > before for before, after in itertools.pairwise([*starts, newest])]


def _kind(attempt: Attempt) -> str | None:
    """Whether it ended by a failure or a disruption; None if neither, as when it was suspended or withdrawn."""
    if attempt.completion_time is None or attempt.reason is None or attempt.reason in _NO_LOSS:
        return None
    return "disruption" if VERDICTS[_reason(attempt)].disruption else "failure"


def _reason(attempt: Attempt) -> Reason:
    try:
        return Reason(attempt.reason or "")
    except ValueError:  # of a later version, or of an image of the user's own
        return Reason.CODE_ERROR
