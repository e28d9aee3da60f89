"""Signs of life of a training process: whoever gives none for too long is taken for stalled (stall.py)."""

import contextlib
import os
import pathlib
import time
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

from finetune_trainer.runtime.state import BEAT, ENV_STATE_DIR, write_atomically

T = TypeVar("T")

# Stages that are judged in a way of their own: of a model that is written little is heard, who waits for another rank is not to
# blame.
SAVING: Final = "saving"
WRITING: Final = "writing the model"
WAITING: Final = "waiting for rank 0"
_EVERY_SECONDS = 0.5


class _Last:
    """The newest beat of this process, so that not every one costs a system call."""

    stage: str | None = None
    time = 0.0


def beat(stage: str) -> None:
    """Say that a unit of work is done: a step, a batch of an evaluation, a file. stage: what the process is at.

    Cheap enough for each of them: it touches a file twice a second. Does nothing in a process that no launcher watches.
    """
    now = time.monotonic()
    if ENV_STATE_DIR not in os.environ or (stage == _Last.stage and now - _Last.time < _EVERY_SECONDS):
        return
    path = pathlib.Path(os.environ[ENV_STATE_DIR]) / f"{BEAT}{os.environ.get('RANK', '0')}"
    with contextlib.suppress(OSError):  # a full disk must not end the training for this
        if stage == _Last.stage:
            os.utime(path)
        else:
            write_atomically(path, stage)
    _Last.stage, _Last.time = stage, now


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Meanwhile this process waits for rank 0; afterwards it is at what it was at before."""
    before = _Last.stage or "starting"
    beat(WAITING)
    yield
    beat(before)


def each(units: Iterable[T], stage: str) -> Iterator[T]:
    """The same units of work, with a beat for each."""
    for unit in units:
        beat(stage)
        yield unit
