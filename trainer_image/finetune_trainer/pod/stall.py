"""Detects workers without progress. The launcher collects the stacks of their threads for a diagnosis, and then ends them."""

import contextlib
import logging
import os
import pathlib
import re
import signal
import time
from collections.abc import Callable, Mapping
from typing import IO

import psutil

from finetune_api.reasons import REASONS, Reason
from finetune_api.status import Failure
from finetune_api.wire import Report
from finetune_trainer.runtime.heartbeat import WAITING, WRITING
from finetune_trainer.runtime.state import RunState

log = logging.getLogger("finetune_trainer.pod.stall")

# Downloads, compilation in the first step, and writing a model to a slow volume give no heartbeat for longer than a step takes.
_MIN_SLOW_STAGE_SECONDS = 1800.0
_TIMEOUT_STEPS = 10.0
# A poll that comes late (the machine was asleep, the pod was frozen) must not count as time without a heartbeat.
_MAX_POLL_SECONDS = 1.0
_STACKS_TIMEOUT_SECONDS = 2.0
# Within this time the agent notices that its processes ended, and ends too or restarts them.
_EXITED_SECONDS = 2.0
# If all processes answer, they wait for another pod. The delay lets that pod report first.
_OTHER_POD_DELAY_SECONDS = 6.0
_FRAMES = 3
_FRAME = re.compile(r'File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<function>.+)')


def mean_step_seconds(report: Report) -> float:
    """Return the usual duration of a step, computed from the remaining time in the report; 0 if it is unknown."""
    left = (report.total_steps or 0) - report.step
    return report.remaining_seconds / left if report.remaining_seconds and left > 0 else 0.0


class Watchdog:
    """Measures the time since the last heartbeat of this pod's processes. timeout_seconds: from the spec; 0 means no timeout."""

    def __init__(self, state: RunState, timeout_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._state, self._timeout, self._clock = state, timeout_seconds, clock
        self._beat: tuple[int, str] | None = None
        self._polled_at = clock()
        self.idle_seconds = 0.0
        self._exited_seconds = 0.0
        self._stopped_seconds = 0.0

    @property
    def stage(self) -> str:
        """The stage of the last heartbeat: what the processes were doing."""
        return self._beat[1] if self._beat else "starting"

    def poll(self) -> None:
        """Read the heartbeats. Called a few times a second."""
        now, beat = self._clock(), self._state.last_heartbeat()
        passed, self._polled_at = now - self._polled_at, now
        # Without processes there is no stall: torchrun waits for the other pods, and gives up by itself.
        silent = beat == self._beat and bool(self._state.pids())
        self.idle_seconds = self.idle_seconds + min(passed, _MAX_POLL_SECONDS) if silent else 0.0
        exited = bool(self._state.pids()) and not self._state.live_pids()
        self._exited_seconds = self._exited_seconds + min(passed, _MAX_POLL_SECONDS) if exited else 0.0
        self._beat = beat
        stopped = self.stage == WAITING and bool(stopped_ranks(self._state))
        self._stopped_seconds = self._stopped_seconds + min(passed, _MAX_POLL_SECONDS) if stopped else 0.0

    def all_exited(self) -> bool:
        """Return whether the processes have ended. The next ones wait for the other pods, and have nothing to save."""
        return self._exited_seconds >= _EXITED_SECONDS

    def stall_timeout(self, report: Report) -> float | None:
        """Return how many seconds the processes may be without a heartbeat; None without a limit."""
        if not self._timeout:
            return None
        floor = _MIN_SLOW_STAGE_SECONDS if report.phase == "Initializing" or self.stage == WRITING else 0.0
        return max(self._timeout, floor, _TIMEOUT_STEPS * mean_step_seconds(report))

    def is_stalled(self, report: Report) -> bool:
        """Return whether the processes have been without a heartbeat for too long."""
        limit = self.stall_timeout(report)
        return limit is not None and self._stalled_seconds >= limit

    @property
    def _stalled_seconds(self) -> float:
        """The time without a heartbeat that counts. The pod of rank 0 detects a stall of rank 0, for which others wait.

        But a stopped process never goes on, and the pod of rank 0 can't see which one it is.
        """
        return self._stopped_seconds if self.stage == WAITING else self.idle_seconds

    def warning(self, report: Report) -> str | None:
        """Return a warning if half of the limit is over, else None."""
        limit = self.stall_timeout(report)
        if limit is None or self._stalled_seconds < limit / 2:
            return None
        what = f"no sign of progress for {limit / 2:.0f} s ({self.stage})"
        return f"{what}; after {limit:.0f} s the job goes back to its last checkpoint"


def stopped_ranks(state: RunState) -> set[int]:
    """Return the ranks of this pod whose processes are stopped (SIGSTOP)."""
    found = set()
    for rank, pid in state.pids().items():
        with contextlib.suppress(psutil.Error):
            if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
                found.add(rank)
    return found


def diagnose_stall(state: RunState, idle_seconds: float, stage: str, pods: int, output: IO[bytes] | None) -> Failure:
    """Ask each process for the stacks of its threads, write them to the log, and return a failure that summarises them.

    pods: number of pods of the attempt. output: where the workers' output goes; None: standard error.
    """
    pids = state.pids()
    before = {rank: _size(state.stacks(rank)) for rank in pids}
    for pid in pids.values():
        with contextlib.suppress(ProcessLookupError):
            # Before train.main() has set its handler, the signal ends the process. It is about to be ended anyway.
            os.kill(pid, signal.SIGUSR1)
    _wait_for_stacks(state, before)
    stopped = stopped_ranks(state)
    findings, silent = [], []
    for rank in sorted(pids):
        stacks = _text(state.stacks(rank), before[rank])
        if not stacks:
            silent.append(rank)
            findings.append(f"rank {rank} does not answer" + (", because a signal stopped it" if rank in stopped else ""))
            continue
        _write_stacks(f"stacks of rank {rank}, which has made no progress for {idle_seconds:.0f} s:\n{stacks}\n", output)
        findings.append(f"rank {rank}: {summarise_stacks(stacks)}")
    if not silent and pods > 1:
        time.sleep(_OTHER_POD_DELAY_SECONDS)
        findings.append("all processes of this pod answer, so they may be waiting for another pod")
    # Processes that do not answer come first, because the message may be cut.
    findings.sort(key=lambda sentence: "does not answer" not in sentence)
    return Failure(
        reason=Reason.STALLED,
        message=f"no step ended for {idle_seconds:.0f} s ({stage}): {'; '.join(findings)}"[:1000],
        hint=REASONS[Reason.STALLED].hint,
        rank=silent[0] if silent else None,
    )


def summarise_stacks(stacks: str) -> str:
    """Return the innermost frames of the main thread: ``function (file:line) < caller … < …``. faulthandler prints it last."""
    frames = [_FRAME.search(line) for line in stacks.rpartition("most recent call first")[2].splitlines()]
    inner = [found for found in frames if found][:_FRAMES]
    return (
        " < ".join(f"{found['function']} ({pathlib.Path(found['file']).name}:{found['line']})" for found in inner) or "no frames"
    )


def _wait_for_stacks(state: RunState, before: Mapping[int, int]) -> None:
    """Wait until every process has answered and no more output comes, or until the timeout."""
    until = time.monotonic() + _STACKS_TIMEOUT_SECONDS
    sizes = dict(before)
    while time.monotonic() < until:
        time.sleep(0.2)
        now = {rank: _size(state.stacks(rank)) for rank in before}
        if now == sizes and all(now[rank] > before[rank] for rank in before):
            return
        sizes = now


def _size(path: pathlib.Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _text(path: pathlib.Path, start: int) -> str:
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()[start:].decode(errors="replace").strip()
    return ""


def _write_stacks(text: str, output: IO[bytes] | None) -> None:
    if output is None:
        log.error("%s", text)
        return
    output.write(text.encode())
    output.flush()
