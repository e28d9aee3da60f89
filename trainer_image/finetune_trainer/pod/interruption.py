"""Handles a stop request: limits the time to save a checkpoint, and completes the report if the time was too short."""

import time
from collections.abc import Callable

from finetune_api.wire import Problem, Report
from finetune_trainer.pod.stall import Watchdog, mean_step_seconds
from finetune_trainer.runtime.heartbeat import SAVING, WAITING, WRITING

# Part of the grace period that is reserved for killing the workers and writing the final report. Never more than half of it.
_MARGIN_SHARE, _MARGIN_SECONDS = 0.1, 5.0
# The all-reduce of the stop request never completes if a rank is gone. The launcher gives up after this time without a heartbeat,
# or after this many usual steps if they take longer.
_IDLE_SECONDS = 10.0
_IDLE_STEPS = 5.0


def usable_seconds(grace_seconds: float) -> float:
    """Return how much of a pod's grace period the training may use."""
    return grace_seconds - min(max(_MARGIN_SECONDS, _MARGIN_SHARE * grace_seconds), grace_seconds / 2)


class Interruption:
    """A request to stop. grace_seconds: time after which the pod is killed from outside; None if it is not killed."""

    def __init__(self, grace_seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._grace, self._clock = grace_seconds, clock
        self._requested_at: float | None = None
        self._immediate = False
        self._grace_exceeded = False

    def request(self) -> None:
        """Request an orderly stop. A second call requests an immediate stop."""
        self._immediate = self._requested_at is not None
        self._requested_at = self._requested_at if self._requested_at is not None else self._clock()

    @property
    def requested(self) -> bool:
        """Whether a stop was requested."""
        return self._requested_at is not None

    def deadline_passed(self) -> bool:
        """Return whether the time is over: the usable part of the grace period has passed, or the stop must be immediate."""
        if self._requested_at is None:
            return False
        if self._grace is not None and self._clock() - self._requested_at >= usable_seconds(self._grace):
            self._grace_exceeded = True
        return self._immediate or self._grace_exceeded

    def cannot_save(self, report: Report, watchdog: Watchdog) -> bool:
        """Return whether no checkpoint will be saved: nothing to save, all workers ended, or the ranks wait for a lost rank."""
        if self._requested_at is None:
            return False
        if report.phase == "Initializing" or watchdog.all_exited():
            return True
        limit = max(_IDLE_SECONDS, _IDLE_STEPS * mean_step_seconds(report))
        silent = min(watchdog.idle_seconds, self._clock() - self._requested_at) >= limit
        return silent and (watchdog.stage not in (SAVING, WRITING, WAITING) or report.phase == "Interrupted")

    def final_report(self, report: Report) -> Report:
        """Return the final report of an interrupted attempt. It says which checkpoint the next attempt resumes from."""
        if report.phase == "Interrupted":
            return report
        problem = None
        latest = (
            f"the last checkpoint is that of step {report.checkpoint.step}" if report.checkpoint else "there is no checkpoint yet"
        )
        if report.phase == "Initializing":
            message = "stopped on request before the first step"
        elif report.phase == "Publishing":
            message = "stopped on request before the model was pushed; the model is kept, and the next attempt only pushes it"
        else:
            message = f"stopped on request during step {report.step + 1}, without a new checkpoint"
            if self._grace_exceeded:
                message += f", because {self._grace:.0f} seconds were too short: {latest}"
                problem = Problem(
                    reason="GracePeriodTooShort",
                    message=f"the pod had {self._grace:.0f} seconds to end, which was too short for a checkpoint: {latest}; "
                    "raise spec.pod.terminationGracePeriodSeconds",
                )
        changes = {"phase": "Interrupted", "message": message, "checkpoint_problem": problem or report.checkpoint_problem}
        return report.model_copy(update=changes)
