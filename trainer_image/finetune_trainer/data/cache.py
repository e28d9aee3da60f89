"""Tokenised data on disk, one directory per content, which jobs, restarts and ranks share.

An entry appears under its name when it is whole, by a rename; nothing else is ever read. So no lock is needed for it to be
right: the turn that jobs take only saves work, and is waited for no longer than the work would take.
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
_ABANDONED_SECONDS = 86_400  # no entry takes a day to write
_STALE_SECONDS = 30.0  # a turn whose owner has shown no progress for so long is over
_POLL_SECONDS = 0.5

# Writes the files of an entry into the directory and returns what to keep beside them.
Fill = Callable[[pathlib.Path], Mapping[str, Any]]


def places(output: str, nodes: int) -> list[pathlib.Path]:
    """Where entries may be, the best first: the cache of many jobs, the job's own output, and with one node its own disk."""
    shared = os.environ.get(names.ENV_CACHE_DIR)
    found = [pathlib.Path(shared) / _DIRECTORY] if shared else []
    found.append(pathlib.Path(output) / _DIRECTORY)
    return [*found, pathlib.Path(tempfile.gettempdir()) / f"finetune-{_DIRECTORY}"] if nodes == 1 else found


def read(entry: pathlib.Path) -> Mapping[str, Any] | None:
    """What was kept beside the files of an entry; None if there is no such entry or a file of it is not as it was written."""
    try:
        manifest = json.loads((entry / MANIFEST).read_bytes())
        whole = all((entry / name).stat().st_size == size for name, size in manifest["sizes"].items())
        return manifest["kept"] if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def find(roots: Sequence[pathlib.Path], key: str) -> tuple[pathlib.Path, Mapping[str, Any]] | None:
    """The first whole entry of that name, and what was kept beside its files."""
    for root in roots:
        kept = read(root / key)
        if kept is not None:
            return root / key, kept
    return None


def write(roots: Sequence[pathlib.Path], key: str, fill: Fill) -> pathlib.Path:
    """A new entry in the first place that takes it: a full or read-only one costs time only. Raises the last one's OSError."""
    for root in roots[:-1]:
        try:
            return _write(root, key, fill)
        except OSError as error:
            log.warning("%s can't keep the tokenised data (%s); trying the next place", root, error.strerror or error)
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
    """Give it its name, unless another job was faster; what is there and not whole makes way."""
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


def tidy(output: str, roots: Sequence[pathlib.Path], kept: pathlib.Path) -> None:
    """Remove what the job's own output holds of earlier data, and what was begun long ago and never finished anywhere."""
    own = pathlib.Path(output) / _DIRECTORY
    for root in roots:
        with contextlib.suppress(OSError):
            for entry in root.iterdir():
                abandoned = entry.name.startswith(_UNFINISHED) and time.time() - entry.stat().st_mtime > _ABANDONED_SECONDS
                if abandoned or (root == own and entry != kept):
                    shutil.rmtree(entry, ignore_errors=True)


class Turn:
    """Whose turn it is to make an entry: a file that its owner touches while it gets on. Works on NFS: O_EXCL, and mtimes of
    the server alone are compared. Never an error: where it can't be had, the work is done anyway."""

    def __init__(self, root: pathlib.Path, key: str) -> None:
        self._file = root / f"{key}.turn"
        self._owned = False

    def wait(self, done: Callable[[], bool], seconds: float) -> None:
        """Return when the turn is ours, when another has made the entry, or when waiting no longer pays."""
        deadline = time.monotonic() + seconds
        while not self._take() and not done() and time.monotonic() < deadline and not self._stale():
            heartbeat.beat("waiting for another job to tokenise the same data")
            time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))

    def touch(self) -> None:
        """Show that the work gets on."""
        heartbeat.beat("tokenising the data")
        if self._owned:
            with contextlib.suppress(OSError):
                os.utime(self._file)

    def end(self) -> None:
        """Let others have it."""
        if self._owned:
            self._file.unlink(missing_ok=True)
            self._owned = False

    def _take(self) -> bool:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            self._owned = True
        except FileExistsError:
            return False
        except OSError:
            return True  # a place that takes no file has no turns
        return True

    def _stale(self) -> bool:
        """Whether its owner is gone or stuck, by the file server's clock."""
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
        if age > _STALE_SECONDS:
            self._file.unlink(missing_ok=True)
        return age > _STALE_SECONDS


@contextlib.contextmanager
def turn(root: pathlib.Path, key: str, done: Callable[[], bool], seconds: float) -> Iterator[Turn]:
    """Take turns with other jobs; waits at most ``seconds``, and not at all for one that makes no progress."""
    mine = Turn(root, key)
    mine.wait(done, seconds)
    try:
        yield mine
    finally:
        with contextlib.suppress(OSError):
            mine.end()
