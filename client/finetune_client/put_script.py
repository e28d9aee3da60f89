"""The script that `kubectl finetune put` runs in the helper pod. It needs Python 3.9 and its standard library only.

put_script.py ROOT PATH    Receive a file or a folder at ROOT/PATH. It reads and writes lines of JSON:

1. It reads the request: {"folder": bool, "replace": bool, "files": [{"path", "size", "sha256"}, …]}.
2. It writes {"same": true} and ends if all of it is there already. Otherwise it writes {"have": [bytes, …]}: how much of each
   file an earlier call has left in ROOT/PATH.partial.
3. It reads the rest of each file, in the order of the request, and writes {"received": bytes} after each piece.
4. It renames ROOT/PATH.partial to ROOT/PATH and writes {"done": true}. If files are not as announced, it deletes them and writes
   {"corrupt": [path, …]} instead.

If something prevents that, it writes {"error": sentence}. Empty lines keep the connection alive.
"""

import errno
import hashlib
import json
import os
import pathlib
import shutil
import sys
from typing import Any

_CHUNK_BYTES = 1 << 20
_KEEPALIVE_BYTES = 64 << 20
_MEBIBYTE = 1 << 20


class ReceiveError(Exception):
    """The files can't be received. The message is a sentence for the user."""


def answer(**content: Any) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


def sha256(path: pathlib.Path) -> str:
    """Return the hash of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    position = 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            position += len(chunk)
            if position % _KEEPALIVE_BYTES == 0:
                sys.stdout.write("\n")
                sys.stdout.flush()
    return digest.hexdigest()


def is_same(path: pathlib.Path, file: dict[str, Any]) -> bool:
    """Whether the file is there, with the announced content."""
    return path.is_file() and path.stat().st_size == file["size"] and sha256(path) == file["sha256"]


def check_place(root: pathlib.Path, target: pathlib.Path, folder: bool) -> None:
    """End if the target is out of the claim, or of the other kind."""
    name = target.relative_to(root)
    if not target.parent.resolve().is_relative_to(root.resolve()) or target.is_symlink() or partial_of(target).is_symlink():
        raise ReceiveError(f"{name} leads through a symbolic link in the claim: choose another path")
    if folder and target.is_file():
        raise ReceiveError(f"{name} is a file in the claim: choose another path for the folder")
    if not folder and target.is_dir():
        raise ReceiveError(f"{name} is a folder in the claim: write {name}/ to put the file into it")


def partial_of(target: pathlib.Path) -> pathlib.Path:
    """Return where the files are until all of them are complete."""
    return target.with_name(f"{target.name}.partial")


def find_differing(target: pathlib.Path, request: dict[str, Any]) -> list[str]:
    """Return the files that the target lacks, has in addition, or has with another content."""
    files = {file["path"]: file for file in request["files"]}
    paths = (path for path in target.rglob("*") if not path.is_dir()) if request["folder"] else [target]
    present = {path.relative_to(target).as_posix() if path != target else "" for path in paths}
    return sorted(path for path in present | set(files) if path not in files or not is_same(target / path, files[path]))


def take_over(target: pathlib.Path, partial: pathlib.Path, files: list[dict[str, Any]], differing: set[str]) -> list[int]:
    """Return how many bytes of each file are in the partial copy. Files that are in the target already are linked there."""
    have = []
    for file in files:
        path = partial / file["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and file["path"] not in differing and not path.exists():
            try:
                os.link(target / file["path"], path)
            except OSError:  # a file system without hard links
                shutil.copyfile(target / file["path"], path)
        complete = is_same(path, file)
        if path.exists() and path.stat().st_nlink > 1 and not complete:
            path.unlink()  # The link of an earlier call: to write to it would change the target.
        size = path.stat().st_size if path.exists() else 0
        have.append(size if complete or size < file["size"] else 0)
    return have


def remove_others(partial: pathlib.Path, files: list[dict[str, Any]]) -> None:
    """Remove what earlier calls have left of files that are not sent now."""
    wanted = {partial / file["path"] for file in files}
    folders = {parent for path in wanted for parent in path.parents}
    for path in sorted(partial.rglob("*"), reverse=True):
        is_folder = path.is_dir() and not path.is_symlink()
        if path not in (folders if is_folder else wanted):
            shutil.rmtree(path) if is_folder else path.unlink()


def check_space(folder: pathlib.Path, needed: int) -> None:
    """End if the file system is too small."""
    system = os.statvfs(folder)
    free = system.f_bavail * system.f_frsize
    if free < needed:
        raise ReceiveError(
            f"the claim has {free / _MEBIBYTE:,.1f} MiB free, but {needed / _MEBIBYTE:,.1f} MiB are still to be sent: "
            "make room in the claim, or use a larger one"
        )


def receive(path: pathlib.Path, offset: int, size: int, received: int) -> int:
    """Write the file from the offset on. received: the bytes of the files before it. Return the bytes including this file."""
    # Written at its position: an earlier call whose connection broke may still write the same bytes.
    with path.open("r+b" if offset else "wb") as stream:
        stream.seek(offset)
        stream.truncate()
        while offset < size:
            chunk = sys.stdin.buffer.read(min(_CHUNK_BYTES, size - offset))
            stream.write(chunk)
            offset += len(chunk)
            received += len(chunk)
            if not chunk:
                stream.flush()
                sys.exit("the connection broke")
            answer(received=received)
        stream.flush()
        os.fsync(stream.fileno())
    return received


def move_into_place(partial: pathlib.Path, target: pathlib.Path) -> None:
    """Rename the partial copy; an earlier folder is deleted after that."""
    old = target.with_name(f".{target.name}.replaced-by-put")  # no name that a folder of the user has
    if old.is_dir():
        shutil.rmtree(old)
    if target.is_dir():
        target.rename(old)
    partial.replace(target)
    if old.is_dir():
        shutil.rmtree(old)


def describe(error: OSError) -> str:
    """Return a sentence for the user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the claim is full; what has arrived is kept: make room, or use a larger claim"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"user {os.getuid()} may not write to the claim ({error.strerror}): choose its owner with --user"
    return f"the claim can't be written: {error.strerror or error}"


def main(root: pathlib.Path, target: pathlib.Path) -> None:
    """Receive a file or a folder."""
    request = json.loads(sys.stdin.buffer.readline())
    files, partial = request["files"], partial_of(target)
    check_place(root, target, request["folder"])
    differing = find_differing(target, request) if target.exists() else []
    if target.exists() and not differing:
        answer(same=True)
        return
    if target.exists() and not request["replace"]:
        name = target.relative_to(root)
        which = f" ({differing[0]}{f' and {len(differing) - 1} more' if differing[1:] else ''})" if differing[0] else ""
        raise ReceiveError(f"{name} exists in the claim and differs{which}: choose another path, or use --replace")
    target.parent.mkdir(parents=True, exist_ok=True)
    if partial.exists() and partial.is_dir() != request["folder"]:
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
    if request["folder"]:
        remove_others(partial, files)
    have = take_over(target, partial, files, set(differing))
    check_space(target.parent, sum(file["size"] for file in files) - sum(have))
    answer(have=have)
    received, corrupt = 0, []
    for file, offset in zip(files, have, strict=True):
        path = partial / file["path"]
        if offset < file["size"] or not path.exists():
            received = receive(path, offset, file["size"], received)
            if not is_same(path, file):
                path.unlink()
                corrupt.append(file["path"])
    if corrupt:
        answer(corrupt=corrupt)
        return
    move_into_place(partial, target)
    answer(done=True)


if __name__ == "__main__":
    place = pathlib.Path(sys.argv[1])
    try:
        main(place, place / sys.argv[2])
    except ReceiveError as refused:
        answer(error=str(refused))
    except OSError as failed:
        answer(error=describe(failed))
    # Kubernetes reports nothing about a command that ends before it has read what was sent to it.
    while sys.stdin.buffer.read(_CHUNK_BYTES):
        pass
