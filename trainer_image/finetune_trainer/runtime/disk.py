"""Syncs files to the disk, and recognises errors of a full disk even if a library has wrapped them."""

import errno
import os
import pathlib
from collections.abc import Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT)
# If the disk is full, the error of torch.save contains only the last of these.
_FULL_SIGNS = ("No space left on device", "Disk quota exceeded", "inline_container.cc")
# /dev/shm in the texts of torch and NCCL, and what they say if it is full.
_SHARED_MEMORY = ("/dev/shm", "shared memory", "</torch_")  # noqa: S108 - a part of a text
_SHARED_MEMORY_FULL = ("no space left on device", "bus error", "unable to allocate", "out of shared memory")


def error_chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes, the nearest first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_caused_by_full_disk(error: BaseException) -> bool:
    """Return whether a full disk caused an error. A library may have wrapped the original error."""
    return any(map(is_disk_full_error, error_chain(error)))


def is_disk_full_error(link: BaseException) -> bool:
    """Return whether this error itself says that the disk is full."""
    if isinstance(link, OSError) and link.errno in _FULL:
        return True
    text = str(link)
    return any(sign in text for sign in _FULL_SIGNS) and "Reader" not in text  # torch's error about a broken file has "Reader"


def is_shared_memory_error(link: BaseException) -> bool:
    """Return whether this error says that /dev/shm is full: of torch's loaders, or of NCCL."""
    text = str(link).lower()
    return any(sign in text for sign in _SHARED_MEMORY) and any(sign in text for sign in _SHARED_MEMORY_FULL)


def sync(path: pathlib.Path) -> None:
    """Wait until a file, or the entries of a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
