"""Checkpoints of the Trainer: complete or not there.

The Trainer writes file by file, so it writes into a staging folder; when every rank is through, the folder is synced to disk
and renamed. Whatever has the final name can be resumed from.
"""

import os
import pathlib
import shutil

STAGING = ".staging"
_PREFIX = "step-"


def staging_dir(checkpoints: pathlib.Path) -> pathlib.Path:
    """Where the Trainer writes; whatever lies there at a start is a save that was cut off."""
    return checkpoints / STAGING


def latest(checkpoints: pathlib.Path) -> pathlib.Path | None:
    """The newest complete checkpoint."""
    complete = complete_checkpoints(checkpoints)
    return complete[-1] if complete else None


def complete_checkpoints(checkpoints: pathlib.Path) -> list[pathlib.Path]:
    """All complete checkpoints, oldest first."""
    return sorted(checkpoints.glob(f"{_PREFIX}*"), key=step_of)


def step_of(checkpoint: pathlib.Path) -> int:
    """Optimizer step that a checkpoint holds."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def discard_staging(checkpoints: pathlib.Path) -> None:
    """Remove a save that was cut off."""
    shutil.rmtree(staging_dir(checkpoints), ignore_errors=True)


def commit(written: pathlib.Path, checkpoints: pathlib.Path, step: int, keep: int) -> pathlib.Path:
    """Make a written folder the complete checkpoint of ``step``; then, and only then, drop all but the newest ``keep``."""
    for path in written.rglob("*"):
        if path.is_file():
            sync(path)
    target = checkpoints / f"{_PREFIX}{step}"
    if target.exists():  # the same step, saved again after a restart: the same content
        shutil.rmtree(target)
    written.rename(target)
    sync(checkpoints)
    for old in complete_checkpoints(checkpoints)[:-keep]:
        shutil.rmtree(old)
    return target


def sync(path: pathlib.Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
