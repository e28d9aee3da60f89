"""Reads the history while it is written."""

import json
import os
import pathlib
from typing import Any


class Follower:
    """Lines of a file that another process appends to, and replaces when it goes back to a checkpoint."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._identity: tuple[int, int] | None = None
        self._read = 0

    def new_entries(self) -> list[dict[str, Any]]:
        """What came since the last call; all of it again where the file was replaced. Half a line waits for its end."""
        try:
            with self._path.open("rb") as stream:
                status = _identity_of(stream.fileno())
                if status[0] != self._identity or status[1] < self._read:
                    self._identity, self._read = status[0], 0
                stream.seek(self._read)
                whole, _, _ = stream.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        if not whole:
            return []
        self._read += len(whole) + 1
        return [entry for line in whole.splitlines() if (entry := _entry(line)) is not None]


def _identity_of(descriptor: int) -> tuple[tuple[int, int], int]:
    """Which file this is, by device and inode, and its bytes."""
    status = os.fstat(descriptor)
    return (status.st_dev, status.st_ino), status.st_size


def _entry(line: bytes) -> dict[str, Any] | None:
    """None for a line that is no entry, as after a fall of the machine."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "step" in entry and "time" in entry else None
