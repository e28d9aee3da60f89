"""Decides whether workers that ended are restarted in the same pod. It depends on the cause, the budget, and the progress.

torchrun does not know causes. So the agent (torchrun's, or the loop for a single process) asks the policy before each restart.
"""

import dataclasses
import logging
import os
import pathlib
import signal
import time
from collections.abc import Mapping

from finetune_api import names
from finetune_api.reasons import REASONS, FineTuneError, Reason
from finetune_api.status import Failure
from finetune_api.wire import RunConfig
from finetune_trainer.loops import skipped_batches
from finetune_trainer.pod.memory_kills import MemoryKills, memory_failure
from finetune_trainer.runtime import cgroup
from finetune_trainer.runtime.state import RestartHistory, RunState

log = logging.getLogger("finetune_trainer.pod.restart_policy")

# This many restarts in a row without a further step are a crash loop.
_MAX_RESTARTS_WITHOUT_PROGRESS = 3
# The pod with the failure decides. The other pods see only symptoms, and must not give up before it does.
_MAX_SECONDARY_RESTARTS = 2 * _MAX_RESTARTS_WITHOUT_PROGRESS
_MAX_DELAY_SECONDS = 30.0
_POLL_SECONDS = 0.05

# Parts of the message if a signal ended a process that reported no failure.
_SIGNALS = {
    signal.SIGKILL: "which usually means that memory ran out, or that another process killed it",
    signal.SIGSEGV: "which is a fault in native code",
    signal.SIGBUS: "which usually means that /dev/shm is full, or that a file was truncated while it was read",
    signal.SIGABRT: "which native code raises when it gives up, for example NCCL when a collective takes too long",
    signal.SIGTERM: "which another process sent",
}


@dataclasses.dataclass(frozen=True)
class FailureCause:
    """Why a generation of workers ended. secondary: a failure in another pod caused it.

    mitigated: the cause was removed, so it will not occur again. Such a restart is not charged.
    """

    failure: Failure
    secondary: bool = False
    mitigated: bool = False


@dataclasses.dataclass(frozen=True)
class Decision:
    """The new restart history; its final_failure is set if there is no restart. delay_seconds: wait before the restart."""

    history: RestartHistory
    delay_seconds: float = 0.0


def decide(history: RestartHistory, cause: FailureCause, step: int, max_restarts: int) -> Decision:
    """Decide whether to restart in place. step: the last step that was done. max_restarts: restarts that may be charged."""
    progress = step > history.highest_step
    restarts_without_progress = 0 if progress else history.restarts_without_progress
    secondary_restarts = 0 if progress else history.secondary_restarts
    history = history.model_copy(
        update={
            "highest_step": max(step, history.highest_step),
            "restarts_without_progress": restarts_without_progress,
            "secondary_restarts": secondary_restarts,
        }
    )
    reason = REASONS[Reason(cause.failure.reason)]
    if cause.mitigated:
        return Decision(history)
    if cause.secondary:
        if secondary_restarts >= _MAX_SECONDARY_RESTARTS:
            return _give_up(history, cause.failure)
        return Decision(history.model_copy(update={"secondary_restarts": secondary_restarts + 1}))
    # The operator retries disruptions and external failures, for which it waits longer and occupies no node meanwhile, and
    # failures that need another node.
    if not reason.retry or reason.disruption or reason.external or reason.other_node:
        return _give_up(history, cause.failure)
    if history.in_place >= max_restarts:
        return _give_up(history, cause.failure)
    if restarts_without_progress >= _MAX_RESTARTS_WITHOUT_PROGRESS:
        detail = f"the same step failed after each of {restarts_without_progress} restarts of the processes"
        message = f"{cause.failure.message} ({detail})"
        return _give_up(history, cause.failure.model_copy(update={"message": message}))
    delay = 0.0 if restarts_without_progress == 0 else min(2.0 ** (restarts_without_progress - 1), _MAX_DELAY_SECONDS)
    charged = {"in_place": history.in_place + 1, "restarts_without_progress": restarts_without_progress + 1}
    return Decision(history.model_copy(update=charged), delay)


def _give_up(history: RestartHistory, failure: Failure) -> Decision:
    return Decision(history.model_copy(update={"final_failure": failure}))


def failure_from_exit_code(rank: int, exit_code: int) -> Failure:
    """Return the failure of a worker that ended without reporting one: killed from outside, or by a fault in native code."""
    if exit_code < 0:
        number = signal.Signals(-exit_code)
        how = f"was ended by {number.name}" + (f", {_SIGNALS[number]}" if number in _SIGNALS else "")
    else:
        how = f"ended with exit code {exit_code} and reported no failure"
    return Failure(
        reason=Reason.WORKER_DIED,
        message=f"the training process of rank {rank} {how}",
        hint=REASONS[Reason.WORKER_DIED].hint,
        rank=rank,
    )


def _with_memory(cause: FailureCause, memory: cgroup.Memory | None) -> FailureCause:
    """Explain a process that died, or that lost a child process, if the kernel killed one because memory ran out."""
    if memory is None or cause.failure.reason != Reason.WORKER_DIED:
        return cause
    rank = cause.failure.rank
    return FailureCause(memory_failure(f"the training process of rank {rank}, or one that works for it", memory, rank))


class RestartPolicy:
    """Decides after each generation of workers, and keeps the restart history. Runs in the agent."""

    def __init__(self, config: RunConfig, state: RunState, cgroup_root: pathlib.Path = cgroup.ROOT) -> None:
        self._config, self._state = config, state
        self._memory_kills = MemoryKills(cgroup_root)
        self._max_restarts = int(os.environ.get(names.ENV_RESTARTS_LEFT, config.spec.recovery.max_restarts))

    def should_restart(self, exit_codes: Mapping[int, int]) -> bool:
        """Decide, record the decision, and wait before a restart. exit_codes: exit codes of the failed workers, by rank."""
        history, report = self._state.read_restart_history(), self._state.read_report()
        cause = _with_memory(self._find_cause(history, exit_codes), self._memory_kills.poll())
        decision = decide(history, cause, report.step if report else 0, self._max_restarts)
        if not self._state.may_restart():
            decision = _give_up(history, cause.failure)
        self._state.write_restart_history(decision.history.model_copy(update={"handled_until": time.time()}))
        if decision.history.final_failure is not None:
            return False
        log.warning(
            "%s: %s; restarting in place from the last checkpoint (%d of %d restarts used)",
            cause.failure.reason, cause.failure.message, decision.history.in_place, self._max_restarts,
        )  # fmt: skip
        return self._wait(decision.delay_seconds)

    def give_up(self, error: FineTuneError) -> None:
        """Record a failure of the agent itself. It ends the attempt."""
        failure = Failure(reason=error.reason, message=error.message, hint=REASONS[error.reason].hint)
        self._state.write_restart_history(_give_up(self._state.read_restart_history(), failure).history)

    def _wait(self, seconds: float) -> bool:
        """Wait. Return False if a stop was requested meanwhile."""
        until = time.monotonic() + seconds
        while self._state.may_restart() and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
        return self._state.may_restart()

    def _find_cause(self, history: RestartHistory, exit_codes: Mapping[int, int]) -> FailureCause:
        reported = self._state.failures(since=history.handled_until)
        reported_ranks = {entry.failure.rank for entry in reported}
        # torchrun ends the other workers with SIGTERM, so a worker that ended in another way comes first.
        unreported = sorted((code == -signal.SIGTERM, rank) for rank, code in exit_codes.items() if rank not in reported_ranks)
        if reported and not reported[0].secondary:
            return self._mitigate(reported[0].failure)
        if unreported and not unreported[0][0]:
            rank = unreported[0][1]
            return FailureCause(failure_from_exit_code(rank, exit_codes[rank]))
        if reported:
            return FailureCause(reported[0].failure, secondary=self._config.nodes > 1)
        rank = unreported[0][1] if unreported else 0
        return FailureCause(failure_from_exit_code(rank, exit_codes.get(rank, 1)))

    def _mitigate(self, failure: Failure) -> FailureCause:
        """Return the cause, and remove it if spec.recovery says how."""
        recovery = self._config.spec.recovery
        if failure.reason == Reason.NON_FINITE_LOSS and recovery.on_non_finite_loss == "SkipBatch":
            return FailureCause(failure, mitigated=skipped_batches.may_skip(pathlib.Path(self._config.output)))
        if failure.reason == Reason.OUT_OF_GPU_MEMORY and recovery.on_out_of_memory == "ShrinkMicroBatch":
            report = self._state.read_report()
            rows = report.resolved.per_device_batch_size if report and report.resolved else None
            if rows is not None and rows > 1:
                self._state.limit_micro_batch((rows + 1) // 2)
                return FailureCause(failure, mitigated=True)
            if rows == 1:
                message = f"{failure.message} (with a single row per forward pass)"
                return FailureCause(failure.model_copy(update={"message": message}))
        return FailureCause(failure)
