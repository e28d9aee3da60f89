"""What became of a job's time: each second belongs to a phase, and what the pods tell says how that of Running was used."""

import datetime

from finetune_api.status import FINAL_PHASES, FineTuneJobStatus, Goodput
from finetune_api.wire import Timing
from finetune_operator.observed import read_time, write_time

# Phase that is left → where its time goes; that of Running is shared out, that of Suspended left out.
_BUCKETS = {
    "Queued": "queued_seconds",
    "Pending": "starting_seconds",
    "Initializing": "starting_seconds",
    "Restarting": "starting_seconds",
    "Publishing": "publishing_seconds",
}
_RUNNING = ("productive_seconds", "evaluation_seconds", "checkpoint_seconds", "stalled_seconds", "redone_seconds")


def with_timing(status: FineTuneJobStatus, timing: Timing) -> FineTuneJobStatus:
    """The status with what a pod told of its time, to be brought into line with the clock by ``account``."""
    if status.goodput is None:
        return status
    told = {
        "productive_seconds": _whole(timing.steps),
        "evaluation_seconds": _whole(timing.evaluation),
        "checkpoint_seconds": _whole(timing.checkpoint),
    }
    return status.model_copy(update={"goodput": status.goodput.model_copy(update=told)})


def account(before: FineTuneJobStatus, after: FineTuneJobStatus, now: datetime.datetime) -> FineTuneJobStatus:
    """The status to be written, with the time since the one before added to where it went; final once the job has ended."""
    start = read_time(after.start_time)
    if start is None or before.phase in FINAL_PHASES:
        return after.model_copy(update={"goodput": before.goodput})
    moment = write_time(now)
    known = before.goodput or Goodput(ratio=0.0, since=write_time(start), until=write_time(start))
    passed = _seconds_between(known.until, moment)
    seconds = {name: getattr(known, name) for name in (*_BUCKETS.values(), *_RUNNING)}
    phase = before.phase or "Pending"  # the first status comes after the children
    if phase in _BUCKETS:
        seconds[_BUCKETS[phase]] += passed
    running = sum(seconds[name] for name in _RUNNING) + (passed if phase == "Running" else 0)
    stalled = known.stalled_seconds + _stalled(before, after, passed, now)
    seconds |= _share_out(running, seconds["starting_seconds"], after.goodput or known, stalled)
    total = sum(seconds.values())
    ratio = round(seconds["productive_seconds"] / total, 4) if total else 0.0
    since = moment if before.phase is not None and after.phase != before.phase else known.since
    goodput = Goodput(ratio=ratio, since=since, until=moment, **seconds)
    return after.model_copy(update={"goodput": goodput})


def _share_out(running: int, starting: int, told: Goodput, stalled: int) -> dict[str, int]:
    """The seconds of Running by their use, and those of starting, which gives some up: training begins before that is seen."""
    left, shares = running + starting, dict[str, int]()
    for name in ("productive_seconds", "evaluation_seconds", "checkpoint_seconds"):
        shares[name] = min(getattr(told, name), left)
        left -= shares[name]
    shares["starting_seconds"] = min(starting, left)
    left -= shares["starting_seconds"]
    shares["stalled_seconds"] = min(stalled, left)
    shares["redone_seconds"] = left - shares["stalled_seconds"]
    return shares


def _stalled(before: FineTuneJobStatus, after: FineTuneJobStatus, passed: int, now: datetime.datetime) -> int:
    """Seconds of the time that passed, or of the time before that nobody had noticed, in which the training stood still."""
    if before.phase != "Running":
        return 0
    if _is_stalled(before):
        return passed
    if not _is_stalled(after) and (after.phase == "Running" or after.reason != "Stalled"):
        return 0
    last = read_time(after.progress.last_step_time) if after.progress is not None else None
    return _whole((now - last).total_seconds()) if last is not None else passed


def _is_stalled(status: FineTuneJobStatus) -> bool:
    return any(item.type == "TrainingStalled" and item.status == "True" for item in status.conditions or ())


def _seconds_between(earlier: str | None, later: str) -> int:
    first, second = read_time(earlier), read_time(later)
    return _whole((second - first).total_seconds()) if first is not None and second is not None else 0


def _whole(seconds: float) -> int:
    """Whole seconds, of a figure that a pod may have made up."""
    return round(min(max(0.0, seconds), 1e9))
