"""An end that was asked for: how long the training may take for its checkpoint, and what is said where that was too short."""

import time
from collections.abc import Callable

from finetune_api.wire import Problem, Report
from finetune_trainer.pod.stall import Watchdog, usual_step_seconds
from finetune_trainer.runtime.heartbeat import SAVING, WAITING, WRITING

# Of the grace period, for the workers to be ended and the last word to be said; never more than half of it.
_MARGIN_SHARE, _MARGIN_SECONDS = 0.1, 5.0
# The agreement of all ranks never comes when one of them is gone.
_SILENCE_SECONDS = 10.0
_USUAL_STEPS = 5.0


def usable_seconds(grace_seconds: float) -> float:
    """What of a pod's grace period the training may use."""
    return grace_seconds - min(max(_MARGIN_SECONDS, _MARGIN_SHARE * grace_seconds), grace_seconds / 2)


class Interruption:
    """A request to end, once there is one. grace_seconds: after which the pod is killed from outside; None where it is not."""

    def __init__(self, grace_seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._grace, self._clock = grace_seconds, clock
        self._asked_at: float | None = None
        self._at_once = False
        self._too_short = False

    def ask(self) -> None:
        """Ask for an orderly end; called again, for one at once."""
        self._at_once = self._asked_at is not None
        self._asked_at = self._asked_at if self._asked_at is not None else self._clock()

    @property
    def asked(self) -> bool:
        """Whether somebody has."""
        return self._asked_at is not None

    def time_is_over(self) -> bool:
        """Whether nothing may be waited for any longer."""
        if self._asked_at is None:
            return False
        if self._grace is not None and self._clock() - self._asked_at >= usable_seconds(self._grace):
            self._too_short = True
        return self._at_once or self._too_short

    def is_hopeless(self, report: Report, watchdog: Watchdog) -> bool:
        """Whether there is nothing to save, nobody to save it, or the ranks wait for one that is gone."""
        if self._asked_at is None:
            return False
        if report.phase == "Initializing" or watchdog.nobody_lives():
            return True
        patience = max(_SILENCE_SECONDS, _USUAL_STEPS * usual_step_seconds(report))
        silent = min(watchdog.idle_seconds, self._clock() - self._asked_at) >= patience
        return silent and (watchdog.stage not in (SAVING, WRITING, WAITING) or report.phase == "Interrupted")

    def last_word(self, report: Report) -> Report:
        """The report of an attempt that was interrupted: what counts from here on."""
        if report.phase == "Interrupted":
            return report
        problem = None
        counts = f"the checkpoint of step {report.checkpoint.step} counts" if report.checkpoint else "there is no checkpoint yet"
        if report.phase == "Initializing":
            message = "stopped on request before the first step"
        elif report.phase == "Publishing":
            message = "stopped on request before the model was pushed; it is kept, and the next attempt only pushes it"
        else:
            message = f"stopped on request during step {report.step + 1}, without another checkpoint"
            if self._too_short:
                message += f", as {self._grace:.0f} seconds were too short: {counts}"
                problem = Problem(
                    reason="GracePeriodTooShort",
                    message=f"the pod was given {self._grace:.0f} seconds to end, not enough for a checkpoint: {counts}; "
                    "raise spec.pod.terminationGracePeriodSeconds",
                )
        changes = {"phase": "Interrupted", "message": message, "checkpoint_problem": problem or report.checkpoint_problem}
        return report.model_copy(update=changes)
