"""Heartbeats of a training process. A process without a heartbeat for too long counts as stalled (pod/stall.py)."""

import contextlib
import os
import pathlib
import time
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

from finetune_trainer.runtime.state import ENV_STATE_DIR, HEARTBEAT_PREFIX, write_atomically

T = TypeVar("T")

# Stages that pod/ treats differently: writing a model gives few heartbeats, and a process that waits for a rank is not the cause.
SAVING: Final = "saving"
WRITING: Final = "writing the model"
WAITING: Final = "waiting for rank 0"
_MIN_INTERVAL_SECONDS = 0.5


class _LastBeat:
    """The newest heartbeat of this process. With it, most heartbeats need no system call."""

    stage: str | None = None
    time = 0.0


def beat(stage: str) -> None:
    """Record that a unit of work is done: a step, a batch of an evaluation, a file. stage: what the process is doing.

    Each unit can call it, because it touches a file at most twice a second. Does nothing in a process without a launcher.
    """
    now = time.monotonic()
    if ENV_STATE_DIR not in os.environ or (stage == _LastBeat.stage and now - _LastBeat.time < _MIN_INTERVAL_SECONDS):
        return
    path = pathlib.Path(os.environ[ENV_STATE_DIR]) / f"{HEARTBEAT_PREFIX}{os.environ.get('RANK', '0')}"
    with contextlib.suppress(OSError):  # a heartbeat that fails on a full disk must not end the training
        if stage == _LastBeat.stage:
            os.utime(path)
        else:
            write_atomically(path, stage)
    _LastBeat.stage, _LastBeat.time = stage, now


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Set the stage to waiting for rank 0 in this context, and restore the previous stage afterwards."""
    before = _LastBeat.stage or "starting"
    beat(WAITING)
    yield
    beat(before)


def each(units: Iterable[T], stage: str) -> Iterator[T]:
    """Yield the same units of work, with a heartbeat for each."""
    for unit in units:
        beat(stage)
        yield unit
