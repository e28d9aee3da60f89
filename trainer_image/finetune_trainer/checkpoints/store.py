"""The directory of the checkpoints: which of them are whole, and how another one comes to be.

A checkpoint is written under another name, its manifest (size and hash of every file) last, all of it synced to the disk, and
then renamed. What bears the name of a checkpoint and fits its manifest can be gone on from.
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
_HASH = "sha256"  # processors have instructions for it: no other of hashlib's is as fast


def complete_checkpoints(directory: pathlib.Path) -> list[pathlib.Path]:
    """All that bear the name of a checkpoint, oldest first."""
    named = [path for path in directory.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()]
    return sorted(named, key=step_of)


def step_of(checkpoint: pathlib.Path) -> int:
    """Optimizer step that a checkpoint holds."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def read_manifest(checkpoint: pathlib.Path) -> dict[str, Any]:
    """step, time (Unix), best (step of the best evaluation so far, or None), files. Raises OSError, ValueError."""
    manifest: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_text())
    return manifest


def find_damage(checkpoint: pathlib.Path) -> str | None:
    """What is wrong with a checkpoint, read from its first to its last byte; None where it is whole."""
    try:
        manifest = read_manifest(checkpoint)
        for name, expected in manifest["files"].items():
            with (checkpoint / name).open("rb") as file:
                if os.fstat(file.fileno()).st_size != expected["bytes"]:
                    return f"{name} has another size than it was written with"
                if hashlib.file_digest(file, _HASH).hexdigest() != expected[_HASH]:
                    return f"{name} holds something else than what was written"
    except FileNotFoundError as error:
        return f"{pathlib.Path(error.filename).name} is missing"
    except OSError as error:
        return f"it can't be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} can't be read"
    return None


class Store:
    """Written to by rank 0 alone. keep: so many of the newest stay."""

    def __init__(self, directory: pathlib.Path, fence: Fence, keep: int) -> None:
        self.directory = directory
        self._fence, self._keep = fence, keep

    def open(self) -> tuple[pathlib.Path | None, list[str]]:
        """The newest checkpoint that is whole, and the names of newer ones that are not: those are set aside for good.

        Whatever earlier processes were writing when they ended is removed.
        """
        self.directory.mkdir(exist_ok=True)
        for left in self.directory.glob(".*"):
            shutil.rmtree(left, ignore_errors=True)
        skipped: list[str] = []
        for checkpoint in reversed(complete_checkpoints(self.directory)):
            damage = find_damage(checkpoint)
            if damage is None:
                return checkpoint, skipped
            log.warning("the checkpoint %s is damaged, the one before it is taken: %s", checkpoint, damage)
            skipped.append(checkpoint.name)
            shutil.rmtree(self.directory / f"{_DAMAGED}{checkpoint.name}", ignore_errors=True)
            checkpoint.rename(self.directory / f"{_DAMAGED}{checkpoint.name}")
        return None, skipped

    def write(
        self,
        step: int,
        best: int | None,
        files: Mapping[str, Iterator[memoryview]],
        needed: Sequence[pathlib.Path],
        pace: Callable[[], None],
    ) -> pathlib.Path:
        """Write the checkpoint of a step; then, and only then, drop all but the newest.

        best: step of the best evaluation so far. needed: files elsewhere that are of no use to it if they are lost. pace: called
        after every few MiB. Raises OSError, with nothing left of what was written, and FineTuneError where another owns the
        directory.
        """
        target = self.directory / f"{_PREFIX}{step}"
        temporary = self._temporary(target.name)
        try:
            temporary.mkdir()
            sizes = {name: _write(temporary / name, chunks, pace) for name, chunks in files.items()}
            manifest = {"step": step, "time": time.time(), "best": best, "files": sizes}
            _write(temporary / MANIFEST, iter([memoryview(json.dumps(manifest).encode())]), pace)
            for path in (*needed, temporary):
                sync(path)
            self._fence.check()
            if target.exists():  # the same step, done again: the same content
                self._discard(target)
            temporary.rename(target)
            sync(self.directory)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._prune()
        return target

    def best_steps(self) -> set[int]:
        """The best evaluations as the checkpoints know them."""
        known = set()
        for checkpoint in complete_checkpoints(self.directory):
            try:
                best = read_manifest(checkpoint)["best"]
            except (OSError, ValueError, KeyError):
                continue  # damaged: nothing goes on from it
            known.add(best)
        return known - {None}

    def _prune(self) -> None:
        try:
            for old in complete_checkpoints(self.directory)[: -self._keep]:
                self._discard(old)
        except OSError as error:  # the new one is complete all the same
            log.warning("an old checkpoint in %s can't be removed: %s", self.directory, error.strerror)
        for damaged in self.directory.glob(f"{_DAMAGED}*"):
            shutil.rmtree(damaged, ignore_errors=True)

    def _discard(self, checkpoint: pathlib.Path) -> None:
        """First the name, then the files: nothing that has lost some of them may look like a checkpoint."""
        shutil.rmtree(checkpoint.rename(self._temporary(f"{checkpoint.name}.old")), ignore_errors=True)

    def _temporary(self, name: str) -> pathlib.Path:
        """A name that no other process uses, whatever it believes."""
        return self.directory / f".{name}.{self._fence.token}"


def _write(path: pathlib.Path, chunks: Iterator[memoryview], pace: Callable[[], None]) -> dict[str, Any]:
    """Write a file to the disk; its entry in the manifest."""
    digest, size = hashlib.new(_HASH), 0

    def told(chunk: memoryview) -> None:
        nonlocal size
        digest.update(chunk)
        size += len(chunk)
        pace()

    tensors.write(path, chunks, told)
    sync(path)
    return {"bytes": size, _HASH: digest.hexdigest()}
