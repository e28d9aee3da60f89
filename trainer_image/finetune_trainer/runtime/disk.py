"""What is on the disk, and whether an error comes from a disk that is full, however a library has wrapped it."""

import errno
import os
import pathlib
from collections.abc import Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT)
# The last of these is all that torch.save says of it.
_FULL_SIGNS = ("No space left on device", "Disk quota exceeded", "inline_container.cc")


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came from, the nearest first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_disk_full(error: BaseException) -> bool:
    """Whether that is what an error comes from: a library may have wrapped it."""
    return any(map(is_full, chain(error)))


def is_full(link: BaseException) -> bool:
    """Whether this very error says so."""
    if isinstance(link, OSError) and link.errno in _FULL:
        return True
    text = str(link)
    return any(sign in text for sign in _FULL_SIGNS) and "Reader" not in text  # which a file that is broken has


def sync(path: pathlib.Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
