"""Tokenised data on disk: one directory per content, which jobs, restarts and ranks share.

A complete entry is renamed to its final name, and only entries with a final name are read. So correctness needs no lock. The
entry lock only prevents jobs from doing the same work. A job waits for it no longer than the work would take.
"""

import contextlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from finetune_api import names
from finetune_trainer.runtime import heartbeat
from finetune_trainer.runtime.disk import sync

log = logging.getLogger(__name__)

MANIFEST = "entry.json"
_DIRECTORY = "tokenised"
_UNFINISHED = ".unfinished-"
_MAX_UNFINISHED_AGE_SECONDS = 86_400  # no entry takes a day to write
_STALE_LOCK_SECONDS = 30.0  # a lock expires if its owner has not touched it for this time
_POLL_SECONDS = 0.5

# Writes the files of an entry into the directory and returns metadata for the manifest.
Fill = Callable[[pathlib.Path], Mapping[str, Any]]


def cache_roots(output: str, nodes: int) -> list[pathlib.Path]:
    """Return the directories for entries, the best first: shared cache, job's output, with one node a temporary directory."""
    shared = os.environ.get(names.ENV_CACHE_DIR)
    found = [pathlib.Path(shared) / _DIRECTORY] if shared else []
    found.append(pathlib.Path(output) / _DIRECTORY)
    return [*found, pathlib.Path(tempfile.gettempdir()) / f"finetune-{_DIRECTORY}"] if nodes == 1 else found


def read(entry: pathlib.Path) -> Mapping[str, Any] | None:
    """Return the metadata of an entry; None if there is no such entry, or if the size of a file is wrong."""
    try:
        manifest = json.loads((entry / MANIFEST).read_bytes())
        complete = all((entry / name).stat().st_size == size for name, size in manifest["sizes"].items())
        return manifest["kept"] if complete else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def find(roots: Sequence[pathlib.Path], key: str) -> tuple[pathlib.Path, Mapping[str, Any]] | None:
    """Return the first complete entry with that name, and its metadata."""
    for root in roots:
        kept = read(root / key)
        if kept is not None:
            return root / key, kept
    return None


def write(roots: Sequence[pathlib.Path], key: str, fill: Fill) -> pathlib.Path:
    """Write an entry to the first directory that accepts it; skip a full or read-only one. Raise the last OSError."""
    for root in roots[:-1]:
        try:
            return _write(root, key, fill)
        except OSError as error:
            log.warning("%s can't store the tokenised data (%s); trying the next directory", root, error.strerror or error)
    return _write(roots[-1], key, fill)


def _write(root: pathlib.Path, key: str, fill: Fill) -> pathlib.Path:
    root.mkdir(parents=True, exist_ok=True)
    unfinished = root / f"{_UNFINISHED}{uuid.uuid4().hex}"
    unfinished.mkdir()
    try:
        kept = fill(unfinished)
        sizes = {file.name: file.stat().st_size for file in unfinished.iterdir()}
        (unfinished / MANIFEST).write_text(json.dumps({"sizes": sizes, "kept": kept}))
        for path in (*unfinished.iterdir(), unfinished):
            sync(path)
        return _commit(unfinished, root / key)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _commit(unfinished: pathlib.Path, entry: pathlib.Path) -> pathlib.Path:
    """Rename the entry to its name, unless another job was faster. Replace an incomplete entry with that name."""
    try:
        unfinished.rename(entry)
    except OSError:
        if not entry.is_dir():
            raise
        if read(entry) is None:
            entry.rename(entry.with_name(f"{_UNFINISHED}{uuid.uuid4().hex}"))
            unfinished.rename(entry)
    sync(entry.parent)
    return entry


def clean_up(output: str, roots: Sequence[pathlib.Path], kept: pathlib.Path) -> None:
    """Remove other entries from the job's own output, and old unfinished entries from all directories."""
    own = pathlib.Path(output) / _DIRECTORY
    for root in roots:
        with contextlib.suppress(OSError):
            for entry in root.iterdir():
                abandoned = (
                    entry.name.startswith(_UNFINISHED) and time.time() - entry.stat().st_mtime > _MAX_UNFINISHED_AGE_SECONDS
                )
                if abandoned or (root == own and entry != kept):
                    shutil.rmtree(entry, ignore_errors=True)


class EntryLock:
    """Lock for making an entry: a file that its owner touches while it makes progress.

    It works on NFS: it uses O_EXCL, and compares only mtimes that the server sets. It never raises an error: a job that can't
    get the lock does the work anyway.
    """

    def __init__(self, root: pathlib.Path, key: str) -> None:
        self._file = root / f"{key}.turn"
        self._owned = False

    def acquire(self, done: Callable[[], bool], seconds: float) -> None:
        """Return when this job owns the lock, when ``done`` is true, when ``seconds`` have passed, or when the lock is stale."""
        deadline = time.monotonic() + seconds
        while not self._try_acquire() and not done() and time.monotonic() < deadline and not self._is_stale():
            heartbeat.beat("waiting for another job to tokenise the same data")
            time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))

    def touch(self) -> None:
        """Show that the work makes progress."""
        heartbeat.beat("tokenising the data")
        if self._owned:
            with contextlib.suppress(OSError):
                os.utime(self._file)

    def release(self) -> None:
        """Remove the lock if this job owns it."""
        if self._owned:
            self._file.unlink(missing_ok=True)
            self._owned = False

    def _try_acquire(self) -> bool:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            self._owned = True
        except FileExistsError:
            return False
        except OSError:
            return True  # a directory that accepts no files can't have locks
        return True

    def _is_stale(self) -> bool:
        """Return whether the owner is gone or stuck, according to the file server's clock; if so, remove the lock."""
        probe = self._file.with_name(f"{_UNFINISHED}{uuid.uuid4().hex}")
        try:
            probe.touch()
            age = probe.stat().st_mtime - self._file.stat().st_mtime
        except FileNotFoundError:
            return False
        except OSError:
            return True
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
        if age > _STALE_LOCK_SECONDS:
            self._file.unlink(missing_ok=True)
        return age > _STALE_LOCK_SECONDS


@contextlib.contextmanager
def entry_lock(root: pathlib.Path, key: str, done: Callable[[], bool], seconds: float) -> Iterator[EntryLock]:
    """Hold the lock of an entry. Wait for another job at most ``seconds``, and not if that job makes no progress."""
    lock = EntryLock(root, key)
    lock.acquire(done, seconds)
    try:
        yield lock
    finally:
        with contextlib.suppress(OSError):
            lock.release()
