"""The directory of the checkpoints: which of them are complete, and how a new one is written.

A checkpoint is written under a temporary name, with its manifest (size and hash of every file) last. It is synced to the disk and
then renamed. A training can resume from a directory that has the name of a checkpoint, and whose files match its manifest.
"""

import hashlib
import json
import logging
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from finetune_trainer.checkpoints import tensors
from finetune_trainer.output.fence import Fence
from finetune_trainer.runtime.disk import sync

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_PREFIX = "step-"
_DAMAGED = "damaged-"
_HASH = "sha256"  # the fastest hash in hashlib, because processors have instructions for it


def list_checkpoints(directory: pathlib.Path) -> list[pathlib.Path]:
    """Return all directories with the name of a checkpoint, oldest first."""
    named = [path for path in directory.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()]
    return sorted(named, key=checkpoint_step)


def checkpoint_step(checkpoint: pathlib.Path) -> int:
    """Return the optimizer step of a checkpoint."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def read_manifest(checkpoint: pathlib.Path) -> dict[str, Any]:
    """Return step, time (Unix), best (step of the best evaluation so far, or None), and files. Raises OSError, ValueError."""
    manifest: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_text())
    return manifest


def find_damage(checkpoint: pathlib.Path) -> str | None:
    """Read every byte of a checkpoint, and return what is wrong with it; None if it is complete."""
    try:
        manifest = read_manifest(checkpoint)
        for name, expected in manifest["files"].items():
            with (checkpoint / name).open("rb") as file:
                if os.fstat(file.fileno()).st_size != expected["bytes"]:
                    return f"{name} does not have the size that was written"
                if hashlib.file_digest(file, _HASH).hexdigest() != expected[_HASH]:
                    return f"{name} does not have the content that was written"
    except FileNotFoundError as error:
        return f"{pathlib.Path(error.filename).name} is missing"
    except OSError as error:
        return f"it can't be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} can't be read"
    return None


class CheckpointDirectory:
    """The directory of the checkpoints. Only rank 0 writes to it. keep: number of the newest checkpoints to keep."""

    def __init__(self, directory: pathlib.Path, fence: Fence, keep: int) -> None:
        self.directory = directory
        self._fence, self._keep = fence, keep

    def find_latest(self) -> tuple[pathlib.Path | None, list[str]]:
        """Return the newest complete checkpoint, and the names of newer ones that are damaged. The damaged ones are renamed.

        Also remove what earlier processes were writing when they ended.
        """
        self.directory.mkdir(exist_ok=True)
        for left in self.directory.glob(".*"):
            shutil.rmtree(left, ignore_errors=True)
        skipped: list[str] = []
        for checkpoint in reversed(list_checkpoints(self.directory)):
            damage = find_damage(checkpoint)
            if damage is None:
                return checkpoint, skipped
            log.warning("the checkpoint %s is damaged, so the one before it is used: %s", checkpoint, damage)
            skipped.append(checkpoint.name)
            shutil.rmtree(self.directory / f"{_DAMAGED}{checkpoint.name}", ignore_errors=True)
            checkpoint.rename(self.directory / f"{_DAMAGED}{checkpoint.name}")
        return None, skipped

    def write(
        self,
        step: int,
        best: int | None,
        files: Mapping[str, Iterator[memoryview]],
        dependencies: Sequence[pathlib.Path],
        throttle: Callable[[], None],
    ) -> pathlib.Path:
        """Write the checkpoint of a step. Delete old checkpoints only after that.

        best: step of the best evaluation so far. dependencies: files elsewhere that the checkpoint needs; they are synced first.
        throttle: called after every few MiB. Raises OSError after removing what was written, and FineTuneError if another attempt
        owns the directory.
        """
        target = self.directory / f"{_PREFIX}{step}"
        temporary = self._temporary(target.name)
        try:
            temporary.mkdir()
            sizes = {name: _write(temporary / name, chunks, throttle) for name, chunks in files.items()}
            manifest = {"step": step, "time": time.time(), "best": best, "files": sizes}
            _write(temporary / MANIFEST, iter([memoryview(json.dumps(manifest).encode())]), throttle)
            for path in (*dependencies, temporary):
                sync(path)
            self._fence.check()
            if target.exists():  # the step was repeated, so the content is the same
                self._discard(target)
            temporary.rename(target)
            sync(self.directory)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._prune()
        return target

    def best_steps(self) -> set[int]:
        """Return the steps that the checkpoints name as the best evaluation."""
        known = set()
        for checkpoint in list_checkpoints(self.directory):
            try:
                best = read_manifest(checkpoint)["best"]
            except (OSError, ValueError, KeyError):
                continue  # damaged: no training resumes from it
            known.add(best)
        return known - {None}

    def _prune(self) -> None:
        try:
            for old in list_checkpoints(self.directory)[: -self._keep]:
                self._discard(old)
        except OSError as error:  # the new checkpoint is complete anyway
            log.warning("an old checkpoint in %s can't be removed: %s", self.directory, error.strerror)
        for damaged in self.directory.glob(f"{_DAMAGED}*"):
            shutil.rmtree(damaged, ignore_errors=True)

    def _discard(self, checkpoint: pathlib.Path) -> None:
        """Rename the directory, then delete it. A directory that lacks some of its files must not look like a checkpoint."""
        shutil.rmtree(checkpoint.rename(self._temporary(f"{checkpoint.name}.old")), ignore_errors=True)

    def _temporary(self, name: str) -> pathlib.Path:
        """Return a name that no other process uses, even one that wrongly writes to this directory."""
        return self.directory / f".{name}.{self._fence.token}"


def _write(path: pathlib.Path, chunks: Iterator[memoryview], throttle: Callable[[], None]) -> dict[str, Any]:
    """Write a file to the disk, and return its entry in the manifest."""
    digest, size = hashlib.new(_HASH), 0

    def on_chunk(chunk: memoryview) -> None:
        nonlocal size
        digest.update(chunk)
        size += len(chunk)
        throttle()

    tensors.write(path, chunks, on_chunk)
    sync(path)
    return {"bytes": size, _HASH: digest.hexdigest()}
