"""Accounts for a job's time. Each second belongs to a phase. The pods report how the time in Running was used."""

import datetime

from finetune_api.status import FINAL_PHASES, FineTuneJobStatus, Goodput
from finetune_api.wire import Timing
from finetune_operator.observed import read_time, write_time
from finetune_operator.policy.conditions import is_true

# Phase → the field that counts its time. The time in Running is distributed by use. The time in Suspended is not counted.
_BUCKETS = {
    "Queued": "queued_seconds",
    "Pending": "starting_seconds",
    "Initializing": "starting_seconds",
    "Restarting": "starting_seconds",
    "Publishing": "publishing_seconds",
}
_REPORTED_BUCKETS = ("productive_seconds", "evaluation_seconds", "checkpoint_seconds")
_RUNNING_BUCKETS = (*_REPORTED_BUCKETS, "stalled_seconds", "redone_seconds", "other_seconds")


def with_timing(status: FineTuneJobStatus, timing: Timing) -> FineTuneJobStatus:
    """Return the status with the times that a pod reported. ``update_goodput`` later limits them to the time that has passed."""
    if status.goodput is None:
        return status
    reported = {
        "productive_seconds": _whole_seconds(timing.steps),
        "evaluation_seconds": _whole_seconds(timing.evaluation),
        "checkpoint_seconds": _whole_seconds(timing.checkpoint),
    }
    return status.model_copy(update={"goodput": status.goodput.model_copy(update=reported)})


def update_goodput(before: FineTuneJobStatus, after: FineTuneJobStatus, now: datetime.datetime) -> FineTuneJobStatus:
    """Return the status with the time since the last write added to its phase.

    After the end of the job, goodput does not change.
    """
    start = read_time(after.start_time)
    if start is None or before.phase in FINAL_PHASES:
        return after.model_copy(update={"goodput": before.goodput})
    moment = write_time(now)
    known = before.goodput or Goodput(ratio=0.0, since=write_time(start), until=write_time(start))
    passed = _seconds_between(known.until, moment)
    seconds = {name: getattr(known, name) for name in (*_BUCKETS.values(), *_RUNNING_BUCKETS)}
    phase = before.phase or "Pending"  # the operator creates the children before it writes the first status
    if phase in _BUCKETS:
        seconds[_BUCKETS[phase]] += passed
    running = sum(seconds[name] for name in _RUNNING_BUCKETS) + (passed if phase == "Running" else 0)
    stalled = known.stalled_seconds + _stalled_seconds(before, after, passed, now)
    reported = after.goodput or known
    seconds |= _distribute_running_time(running, seconds["starting_seconds"], reported, stalled, _redone_seconds(known, reported))
    total = sum(seconds.values())
    ratio = round(seconds["productive_seconds"] / total, 4) if total else 0.0
    since = moment if before.phase is not None and after.phase != before.phase else known.since
    goodput = Goodput(ratio=ratio, since=since, until=moment, **seconds)
    return after.model_copy(update={"goodput": goodput})


def _redone_seconds(known: Goodput, reported: Goodput) -> int:
    """Return the seconds of lost work so far. Pods count only work that is kept, so their numbers fall when they lose some."""
    lost: list[int] = [max(0, getattr(known, name) - getattr(reported, name)) for name in _REPORTED_BUCKETS]
    return known.redone_seconds + sum(lost)


def _distribute_running_time(running: int, starting: int, reported: Goodput, stalled: int, redone: int) -> dict[str, int]:
    """Distribute the seconds of Running by use.

    Pods may report more seconds than that, because the training begins before the operator observes it. The difference is
    subtracted from the seconds of starting.
    """
    remaining, shares = running + starting, dict[str, int]()
    for name in _REPORTED_BUCKETS:
        shares[name] = min(getattr(reported, name), remaining)
        remaining -= shares[name]
    shares["starting_seconds"] = min(starting, remaining)
    remaining -= shares["starting_seconds"]
    shares["stalled_seconds"] = min(stalled, remaining)
    remaining -= shares["stalled_seconds"]
    shares["redone_seconds"] = min(redone, remaining)
    shares["other_seconds"] = remaining - shares["redone_seconds"]
    return shares


def _stalled_seconds(before: FineTuneJobStatus, after: FineTuneJobStatus, passed: int, now: datetime.datetime) -> int:
    """Return the seconds since the last write in which the training stalled. A new stall counts from the last step."""
    if before.phase != "Running":
        return 0
    if is_true(before, "TrainingStalled"):
        return passed
    if not is_true(after, "TrainingStalled") and (after.phase == "Running" or after.reason != "Stalled"):
        return 0
    last = read_time(after.progress.last_step_time) if after.progress is not None else None
    return _whole_seconds((now - last).total_seconds()) if last is not None else passed


def _seconds_between(earlier: str | None, later: str) -> int:
    first, second = read_time(earlier), read_time(later)
    return _whole_seconds((second - first).total_seconds()) if first is not None and second is not None else 0


def _whole_seconds(seconds: float) -> int:
    """Round to whole seconds, and limit the value, because it comes from a pod and may be arbitrary."""
    return round(min(max(0.0, seconds), 1e9))
