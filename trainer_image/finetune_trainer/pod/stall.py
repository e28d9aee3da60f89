"""Is the training still alive? Who stays silent for too long is asked what it does, and ended."""

import contextlib
import logging
import os
import pathlib
import re
import signal
import time
from collections.abc import Callable, Mapping
from typing import IO

from finetune_api.reasons import VERDICTS, Reason
from finetune_api.status import Failure
from finetune_api.wire import Report
from finetune_trainer.runtime.heartbeat import WAITING, WRITING
from finetune_trainer.runtime.state import RunState

log = logging.getLogger("finetune_trainer.pod.stall")

# Downloads, the first step with its compilations, and a model on its way to a slow volume say nothing for longer than a step.
_QUIET_SECONDS = 1800.0
_USUAL_STEPS = 10.0
# A look that comes late (the machine was asleep, the pod was frozen) must not count as silence of the workers.
_LONGEST_LOOK_SECONDS = 1.0
_ANSWER_SECONDS = 2.0
# Whoever started processes that ended finds that out within this time, and ends, or starts them again.
_DEAD_SECONDS = 2.0
# Where all processes answer they wait for another pod: the one with the culprit is to speak first.
_COURTESY_SECONDS = 6.0
_FRAMES = 3
_FRAME = re.compile(r'File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<function>.+)')


def usual_step_seconds(report: Report) -> float:
    """How long a step usually takes, from the rate that the report's remaining time is made of; 0 where it is not known."""
    left = (report.total_steps or 0) - report.step
    return report.remaining_seconds / left if report.remaining_seconds and left > 0 else 0.0


class Watchdog:
    """Measures how long this pod's processes have been silent. timeout_seconds: of the spec; 0 waits without end."""

    def __init__(self, state: RunState, timeout_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._state, self._timeout, self._clock = state, timeout_seconds, clock
        self._beat: tuple[int, str] | None = None
        self._looked_at = clock()
        self.idle_seconds = 0.0
        self._dead_seconds = 0.0

    @property
    def stage(self) -> str:
        """What the processes were at when they were last heard of."""
        return self._beat[1] if self._beat else "starting"

    def look(self) -> None:
        """Look for signs of life; called a few times a second."""
        now, beat = self._clock(), self._state.last_beat()
        passed, self._looked_at = now - self._looked_at, now
        # Before there are processes nobody can stall: torchrun waits for the other pods, and gives up by itself.
        silent = beat == self._beat and bool(self._state.pids())
        self.idle_seconds = self.idle_seconds + min(passed, _LONGEST_LOOK_SECONDS) if silent else 0.0
        dead = bool(self._state.pids()) and not self._state.alive()
        self._dead_seconds = self._dead_seconds + min(passed, _LONGEST_LOOK_SECONDS) if dead else 0.0
        self._beat = beat

    def nobody_lives(self) -> bool:
        """Whether the processes have ended: those that are to follow wait for the other pods, and have nothing to lose."""
        return self._dead_seconds >= _DEAD_SECONDS

    def limit_seconds(self, report: Report) -> float | None:
        """For so long they may be silent; None for ever."""
        if not self._timeout or self.stage == WAITING:  # the pod of rank 0 watches over what they wait for
            return None
        floor = _QUIET_SECONDS if report.phase == "Initializing" or self.stage == WRITING else 0.0
        return max(self._timeout, floor, _USUAL_STEPS * usual_step_seconds(report))

    def is_stalled(self, report: Report) -> bool:
        """Whether they have been silent for too long."""
        limit = self.limit_seconds(report)
        return limit is not None and self.idle_seconds >= limit

    def warning(self, report: Report) -> str | None:
        """A sentence as soon as half of that time is over."""
        limit = self.limit_seconds(report)
        if limit is None or self.idle_seconds < limit / 2:
            return None
        what = f"no sign of progress for {limit / 2:.0f} s ({self.stage})"
        return f"{what}; after {limit:.0f} s the job goes back to its last checkpoint"


def autopsy(state: RunState, silent_seconds: float, stage: str, pods: int, output: IO[bytes] | None) -> Failure:
    """Ask each process for the stacks of its threads, write them to the log, and say in short where they are.

    pods: of the gang. output: where the workers' output goes, standard error if None.
    """
    pids = state.pids()
    before = {rank: _size(state.stacks(rank)) for rank in pids}
    for pid in pids.values():
        with contextlib.suppress(ProcessLookupError):
            # Before the first line of train.main() the signal would end the process; it is about to be ended anyway.
            os.kill(pid, signal.SIGUSR1)
    _wait_for_answers(state, before)
    said, silent = [], []
    for rank in sorted(pids):
        stacks = _text(state.stacks(rank), before[rank])
        if not stacks:
            silent.append(rank)
            said.append(f"rank {rank} does not answer (stopped?)")
            continue
        _print(f"stacks of rank {rank}, which is silent since {silent_seconds:.0f} s:\n{stacks}\n", output)
        said.append(f"rank {rank}: {summarise(stacks)}")
    if not silent and pods > 1:
        time.sleep(_COURTESY_SECONDS)
        said.append("all processes of this pod answer, so they may wait for another pod")
    # Who does not answer comes first: the message may be cut.
    said.sort(key=lambda sentence: "does not answer" not in sentence)
    return Failure(
        reason=Reason.STALLED,
        message=f"no step ended for {silent_seconds:.0f} s ({stage}): {'; '.join(said)}"[:1000],
        hint=VERDICTS[Reason.STALLED].hint,
        rank=silent[0] if silent else None,
    )


def summarise(stacks: str) -> str:
    """The innermost frames of the main thread, which faulthandler prints last: ``function (file:line) < caller … < …``."""
    frames = [_FRAME.search(line) for line in stacks.rpartition("most recent call first")[2].splitlines()]
    inner = [found for found in frames if found][:_FRAMES]
    return (
        " < ".join(f"{found['function']} ({pathlib.Path(found['file']).name}:{found['line']})" for found in inner) or "no frames"
    )


def _wait_for_answers(state: RunState, before: Mapping[int, int]) -> None:
    """Until every process has answered and nothing more comes, but not for long."""
    until = time.monotonic() + _ANSWER_SECONDS
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


def _print(text: str, output: IO[bytes] | None) -> None:
    if output is None:
        log.error("%s", text)
        return
    output.write(text.encode())
    output.flush()
