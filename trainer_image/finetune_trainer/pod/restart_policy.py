"""Whether processes that ended are started again, in the same pod: by cause, so many times, and not in a circle.

torchrun knows no causes. So whoever started the processes (torchrun's agent, or the launcher where there is one process) asks
here before it starts them anew.
"""

import dataclasses
import logging
import os
import pathlib
import signal
import time
from collections.abc import Mapping

from finetune_api import names
from finetune_api.reasons import VERDICTS, Reason
from finetune_api.status import Failure
from finetune_api.wire import RunConfig
from finetune_trainer.loops import skipped_batches as skipping
from finetune_trainer.runtime.state import Ledger, RunState

log = logging.getLogger("finetune_trainer.pod.restart_policy")

# So many restarts in a row without a further step are a crash loop.
_FUTILE_RESTARTS = 3
# The pod with the failure decides; the others see a symptom each time, and must not give up before it does.
_SYMPTOMATIC_RESTARTS = 2 * _FUTILE_RESTARTS
_LONGEST_DELAY_SECONDS = 30.0
_POLL_SECONDS = 0.05

# What the signals say that end a process without a word.
_SIGNALS = {
    signal.SIGKILL: "as it is when memory runs out or somebody kills it",
    signal.SIGSEGV: "which is a fault in native code",
    signal.SIGBUS: "as it is when /dev/shm is full, or a file that it reads was cut off",
    signal.SIGABRT: "as it is when native code gives up, NCCL for one when a collective takes too long",
    signal.SIGTERM: "which somebody sent it",
}


@dataclasses.dataclass(frozen=True)
class Cause:
    """Why a round of processes ended. symptom: because of a failure in another pod.

    healed: something was changed so that it does not come again; such a restart is not charged.
    """

    failure: Failure
    symptom: bool = False
    healed: bool = False


@dataclasses.dataclass(frozen=True)
class Decision:
    """What follows. delay_seconds: to wait before the restart. ledger.end: set where there is none."""

    ledger: Ledger
    delay_seconds: float = 0.0


def decide(ledger: Ledger, cause: Cause, step: int, charges: int) -> Decision:
    """Whether a restart in place is to follow. step: the last one that was done; charges: restarts that may be charged."""
    progress = step > ledger.furthest
    futile = 0 if progress else ledger.futile
    symptoms = 0 if progress else ledger.symptoms
    ledger = ledger.model_copy(update={"furthest": max(step, ledger.furthest), "futile": futile, "symptoms": symptoms})
    verdict = VERDICTS[Reason(cause.failure.reason)]
    if cause.healed:
        return Decision(ledger)
    if cause.symptom:
        if symptoms >= _SYMPTOMATIC_RESTARTS:
            return _end(ledger, cause.failure)
        return Decision(ledger.model_copy(update={"symptoms": symptoms + 1}))
    # What the world outside makes fail is tried again by the operator, which waits longer and keeps no machine for it.
    if not verdict.retry or verdict.disruption or verdict.external:
        return _end(ledger, cause.failure)
    if ledger.in_place >= charges:
        return _end(ledger, cause.failure)
    if futile >= _FUTILE_RESTARTS:
        said = f"{cause.failure.message} (the same step failed after each of {futile} restarts of the processes)"
        return _end(ledger, cause.failure.model_copy(update={"message": said}))
    delay = 0.0 if futile == 0 else min(2.0 ** (futile - 1), _LONGEST_DELAY_SECONDS)
    return Decision(ledger.model_copy(update={"in_place": ledger.in_place + 1, "futile": futile + 1}), delay)


def _end(ledger: Ledger, failure: Failure) -> Decision:
    return Decision(ledger.model_copy(update={"end": failure}))


def describe_death(rank: int, exit_code: int) -> Failure:
    """A worker that ended without a word: killed from outside, or by a fault in native code."""
    if exit_code < 0:
        number = signal.Signals(-exit_code)
        how = f"was ended by {number.name}" + (f", {_SIGNALS[number]}" if number in _SIGNALS else "")
    else:
        how = f"ended with exit code {exit_code} without a word"
    return Failure(
        reason=Reason.WORKER_DIED,
        message=f"the training process of rank {rank} {how}",
        hint=VERDICTS[Reason.WORKER_DIED].hint,
        rank=rank,
    )


class Judge:
    """Asked after each round of processes; keeps the ledger. Lives where the processes are started."""

    def __init__(self, config: RunConfig, state: RunState) -> None:
        self._config, self._state = config, state
        self._charges = int(os.environ.get(names.ENV_RESTARTS_LEFT, config.spec.recovery.max_restarts))

    def goes_on(self, deaths: Mapping[int, int]) -> bool:
        """Decide, write it down, and wait as long as is to be waited. deaths: exit code by rank, of those that failed."""
        ledger, report = self._state.read_ledger(), self._state.read_report()
        cause = self._cause(ledger, deaths)
        decision = decide(ledger, cause, report.step if report else 0, self._charges)
        if not self._state.may_restart():
            decision = _end(ledger, cause.failure)
        self._state.write_ledger(decision.ledger.model_copy(update={"decided": time.time()}))
        if decision.ledger.end is not None:
            return False
        log.warning(
            "%s: %s; going on in place from the last checkpoint (%d of %d restarts used)",
            cause.failure.reason, cause.failure.message, decision.ledger.in_place, self._charges,
        )  # fmt: skip
        return self._wait(decision.delay_seconds)

    def _wait(self, seconds: float) -> bool:
        """False where the end was asked for meanwhile."""
        until = time.monotonic() + seconds
        while self._state.may_restart() and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
        return self._state.may_restart()

    def _cause(self, ledger: Ledger, deaths: Mapping[int, int]) -> Cause:
        said = self._state.failures(since=ledger.decided)
        spoke = {entry.failure.rank for entry in said}
        # torchrun ends the others by SIGTERM: first those that it did not end.
        silent = sorted((code == -signal.SIGTERM, rank) for rank, code in deaths.items() if rank not in spoke)
        if said and not said[0].symptom:
            return self._healed(said[0].failure)
        if silent and not silent[0][0]:
            rank = silent[0][1]
            return Cause(describe_death(rank, deaths[rank]))
        if said:
            return Cause(said[0].failure, symptom=self._config.nodes > 1)
        rank = silent[0][1] if silent else 0
        return Cause(describe_death(rank, deaths.get(rank, 1)))

    def _healed(self, failure: Failure) -> Cause:
        """The cause, taken away where the job's recovery says how."""
        recovery = self._config.spec.recovery
        if failure.reason == Reason.NON_FINITE_LOSS and recovery.on_non_finite_loss == "SkipBatch":
            return Cause(failure, healed=skipping.may_skip(pathlib.Path(self._config.output)))
        if failure.reason == Reason.OUT_OF_GPU_MEMORY and recovery.on_out_of_memory == "ShrinkMicroBatch":
            report = self._state.read_report()
            rows = report.resolved.per_device_batch_size if report and report.resolved else None
            if rows is not None and rows > 1:
                self._state.limit_micro_batch((rows + 1) // 2)
                return Cause(failure, healed=True)
            if rows == 1:
                said = f"{failure.message} (with a single row per forward pass)"
                return Cause(failure.model_copy(update={"message": said}))
        return Cause(failure)
