"""Reads the history while the training writes it."""

import json
import os
import pathlib
from typing import Any


class HistoryReader:
    """Reads lines of a file that another process appends to, and replaces when it returns to a checkpoint."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._identity: tuple[int, int] | None = None
        self._read = 0

    def new_entries(self) -> list[dict[str, Any]]:
        """Return the entries since the last call; all entries if the file was replaced. Leave an incomplete line for later."""
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
        return [entry for line in whole.splitlines() if (entry := _parse_line(line)) is not None]


def _identity_of(descriptor: int) -> tuple[tuple[int, int], int]:
    """Return the identity of a file (device and inode), and its size in bytes."""
    status = os.fstat(descriptor)
    return (status.st_dev, status.st_ino), status.st_size


def _parse_line(line: bytes) -> dict[str, Any] | None:
    """Parse a line. Return None if it is not an entry, which can happen after a crash of the node."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "step" in entry and "time" in entry else None
