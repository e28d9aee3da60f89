"""Decides what follows a failed attempt: whether another one is allowed, which limit it counts against, and how long to wait.

All input comes from the status, so an operator that has just started decides the same.
"""

import datetime
import itertools
from collections.abc import Iterable, Iterator, Sequence

from finetune_api.durations import format_duration
from finetune_api.reasons import REASONS, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import MAX_AVOIDED_NODES, Attempt, Failure, FineTuneJobStatus, Restarts
from finetune_api.wire import Report
from finetune_operator.observed import JobRecord
from finetune_operator.policy.failure import known_reason
from finetune_operator.policy.status import attempt_ended, failed, in_phase, pluralize, with_bookkeeping
from finetune_operator.policy.waiting import QUOTA_REASONS, UNSCHEDULABLE

# Pause between attempts without progress. It doubles.
_FIRST_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 1, 300
# After this many failures in a row without a step beyond the furthest so far, the job fails.
CRASH_LOOP = 5
# Limits the number of in-place restarts that a pod can report.
_MAX_IN_PLACE = 10**6
# Attempts that ended for these reasons count neither as failures nor as disruptions.
_REASONS_WITHOUT_LOSS = frozenset({"Completed", "Suspended", UNSCHEDULABLE}) | QUOTA_REASONS


def attempt_failed(
    status: FineTuneJobStatus, spec: FineTuneJobSpec, failure: Failure, job: JobRecord, now: datetime.datetime
) -> FineTuneJobStatus:
    """Return the status after an attempt failed: Restarting if a retry can help and is allowed, else Failed."""
    info = REASONS[known_reason(failure)]
    if not info.retry and not (info.retry_after_checkpoint and _saved_checkpoint(status)):
        return failed(status, failure, failure.message, job, now)
    ended = attempt_ended(status, failure.reason, now, failure.message)
    before, counted = ended.restarts or Restarts(), ended.bookkeeping.restarts_count_towards_max
    if info.disruption:
        used, limit, noun = before.preemptions + 1, spec.recovery.max_preemptions, "preemption"
        after = with_restart_counts(before, preemptions=used)
    else:
        used = counted = counted + 1
        limit, noun = spec.recovery.max_restarts, "restart"
        after = with_restart_counts(before, failures=before.failures + 1)
        without_progress = failures_without_progress(ended.attempts or ())
        if used <= limit and without_progress >= CRASH_LOOP:
            message = f"{without_progress} failures in a row without a further step: {failure.message}"
            return failed(status, failure, message, job, now)
    if used > limit:
        message = f"failed after {pluralize(limit, noun)}: {failure.message}" if limit else failure.message
        return failed(status, failure, message, job, now)
    backoff = backoff_before_next_attempt(ended).total_seconds()
    when = f", next attempt in {format_duration(backoff)}" if backoff else ""
    ended = with_bookkeeping(ended, restarts_count_towards_max=counted)
    avoided = _with_node(status.avoided_nodes, failure.node) if info.other_node else status.avoided_nodes
    ended = ended.model_copy(update={"last_failure": failure, "restarts": after, "avoided_nodes": avoided})
    return in_phase(ended, "Restarting", failure.reason, f"{noun} {used} of {limit}{when}: {failure.message}")


def _with_node(avoided: Sequence[str] | None, node: str | None) -> Sequence[str] | None:
    """Return the nodes to avoid, and this one, which is the newest."""
    if node is None:
        return avoided
    return [*(name for name in avoided or () if name != node), node][-MAX_AVOIDED_NODES:]


def with_restart_counts(restarts: Restarts, **changes: int) -> Restarts:
    """Return the counts with these changes and the new total."""
    after = restarts.model_copy(update=changes)
    return after.model_copy(update={"total": after.failures + after.in_place + after.preemptions})


def restarts_left(spec: FineTuneJobSpec, status: FineTuneJobStatus) -> int:
    """Return how many failures the next attempt may recover from by restarts in place."""
    return max(0, spec.recovery.max_restarts - status.bookkeeping.restarts_count_towards_max)


def with_in_place_restarts(status: FineTuneJobStatus, reports: Iterable[Report | None]) -> FineTuneJobStatus:
    """Return the status with the in-place restarts that pods of the present attempt reported. Each one is counted once.

    While it runs, the pod with index 0 reports its own restarts and those of the other pods that it knows of. At its end, each
    pod reports the restarts of its own processes.
    """
    if not status.attempts:
        return status
    last, restarts = status.attempts[-1], status.restarts or Restarts()
    valid = [report for report in reports if report is not None and report.attempt == last.number]
    own = sum(min(report.in_place, _MAX_IN_PLACE) for report in valid)
    reported = max((min(report.in_place + report.in_place_elsewhere, _MAX_IN_PLACE) for report in valid), default=0)
    additional = max(own, reported) - (last.in_place or 0)
    if additional <= 0:
        return status
    after = status.model_copy(
        update={
            "restarts": with_restart_counts(restarts, in_place=restarts.in_place + additional),
            "attempts": [*status.attempts[:-1], last.model_copy(update={"in_place": (last.in_place or 0) + additional})],
        }
    )
    if last.completion_time is not None:  # the failure that ended the attempt counts already
        return after
    return with_bookkeeping(after, restarts_count_towards_max=status.bookkeeping.restarts_count_towards_max + additional)


def backoff_before_next_attempt(status: FineTuneJobStatus) -> datetime.timedelta:
    """Return the pause between the end of the last attempt and the start of the next one.

    Each failure doubles the pause, until an attempt gets beyond the checkpoint that it started from. Disruptions double it too,
    but there is no pause after the first one, because it is not the fault of the job.
    """
    attempts = status.attempts or ()
    if not attempts or (kind := _end_kind(attempts[-1])) is None:
        return datetime.timedelta()
    progress = _made_progress(status)
    without_progress = 0
    for attempt, further in zip(reversed(attempts), reversed(progress), strict=True):
        if further:
            break
        without_progress += _end_kind(attempt) == kind
    if kind == "disruption":
        without_progress -= 1
        if without_progress < 1:
            return datetime.timedelta()
    doublings = max(0, without_progress - 1)  # the status keeps at most ten attempts
    return datetime.timedelta(seconds=min(_FIRST_BACKOFF_SECONDS * 2**doublings, _MAX_BACKOFF_SECONDS))


def failures_without_progress(attempts: Sequence[Attempt]) -> int:
    """Count the failures, including those in place, since the job last made a step beyond the furthest so far."""
    failures = 0
    for attempt, furthest_before in reversed(list(_with_furthest_before(attempts))):
        if furthest_before is None or (attempt.step or 0) > furthest_before:
            break
        if _end_kind(attempt) == "failure" and not REASONS[_reason(attempt)].external:
            failures += 1 + (attempt.in_place or 0)
    return failures


def _with_furthest_before(attempts: Sequence[Attempt]) -> Iterator[tuple[Attempt, int | None]]:
    """Yield each attempt with the furthest step before it, or with None if that is no longer known."""
    furthest = 0 if attempts and attempts[0].number == 1 else None
    for attempt in attempts:
        yield attempt, furthest
        furthest = max(furthest or 0, attempt.step or 0)


def _made_progress(status: FineTuneJobStatus) -> list[bool]:
    """Return for each attempt whether it saved a checkpoint beyond the one that it started from."""
    attempts = status.attempts or ()
    newest = status.checkpoint.step if status.checkpoint is not None else 0
    starts = [attempt.from_step or 0 for attempt in attempts]
    return [after > before for before, after in itertools.pairwise([*starts, newest])]


def _saved_checkpoint(status: FineTuneJobStatus) -> bool:
    """Return whether the last attempt saved a checkpoint beyond the one that it started from."""
    return bool(status.attempts) and _made_progress(status)[-1]


def _end_kind(attempt: Attempt) -> str | None:
    """Return whether it ended by a failure or a disruption. Return None for other ends, such as a suspension."""
    if attempt.completion_time is None or attempt.reason is None or attempt.reason in _REASONS_WITHOUT_LOSS:
        return None
    return "disruption" if REASONS[_reason(attempt)].disruption else "failure"


def _reason(attempt: Attempt) -> Reason:
    try:
        return Reason(attempt.reason or "")
    except ValueError:  # from a later version, or from the user's own image
        return Reason.CODE_ERROR
