"""The files of a folder on this machine, with their SHA-256."""

import dataclasses
import hashlib
import os
import pathlib
import stat
from collections.abc import Callable, Iterator

from finetune_client.errors import PutError

_CHUNK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class LocalFile:
    """A file to send. path: relative to the folder, with "/"; empty if it is sent alone. size: in bytes."""

    path: str
    source: pathlib.Path
    size: int

    def sha256(self, on_bytes: Callable[[int], None]) -> str:
        """Return the hash in hexadecimal digits. on_bytes: called with the bytes read so far."""
        digest = hashlib.sha256()
        with self.source.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
                on_bytes(stream.tell())
        return digest.hexdigest()

    def read(self, offset: int, chunk_bytes: int) -> Iterator[bytes]:
        """Yield the bytes from the offset on. Raise PutError if the file has become shorter."""
        with self.source.open("rb") as stream:
            stream.seek(offset)
            while offset < self.size:
                chunk = stream.read(min(chunk_bytes, self.size - offset))
                if not chunk:
                    raise PutError(f"{self.source} has changed since the command began: run it again")
                offset += len(chunk)
                yield chunk


def list_files(source: pathlib.Path) -> list[LocalFile]:
    """Return the file, or the files in the folder and its subfolders. Raise PutError if there is something else in it."""
    if not source.exists():
        raise PutError(f"there is no file or folder {source}")
    if not source.is_dir():
        return [_local_file("", source, source.stat())]
    files = [_local_file(path.relative_to(source).as_posix(), path, path.lstat()) for path in _walk(source)]
    if not files:
        raise PutError(f"{source} contains no file")
    return sorted(files, key=lambda file: file.path)


def _walk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(folder / entry.name)
            else:
                yield folder / entry.name


def _local_file(path: str, source: pathlib.Path, state: os.stat_result) -> LocalFile:
    if stat.S_ISLNK(state.st_mode):
        raise PutError(f"{source} is a symbolic link, which a pod can't follow: replace it with a copy, as `cp -rL` does")
    if not stat.S_ISREG(state.st_mode):
        raise PutError(f"{source} is not a regular file")
    return LocalFile(path, source, state.st_size)
