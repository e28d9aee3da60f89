"""The script that `kubectl finetune pull` runs in the helper pod. It needs Python 3 and its standard library only.

list FOLDER [FILE...]      Print the files in the folder, or those of the named files that exist, as one JSON object per line.
send FOLDER FILE OFFSET    Write the file from this byte on to standard output. Write the SHA-256 of the whole file, as
                           hexadecimal digits, to standard error; empty lines may come before it.
"""

import hashlib
import json
import pathlib
import sys

_CHUNK_BYTES = 1 << 20
_KEEPALIVE_BYTES = 64 << 20


def list_files(folder: pathlib.Path, wanted: list[str]) -> None:
    """Print the relative path and the size in bytes of every file in the folder, or of the wanted files that exist."""
    if not folder.is_dir():
        sys.exit("no such folder")
    for path in [folder / name for name in wanted] or sorted(folder.rglob("*")):
        if path.is_file():
            sys.stdout.write(json.dumps({"path": path.relative_to(folder).as_posix(), "size": path.stat().st_size}) + "\n")


def send_file(path: pathlib.Path, offset: int) -> None:
    """Write the bytes from the offset on. The hash covers the bytes before it, too."""
    digest = hashlib.sha256()
    position = 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            if position < offset and position % _KEEPALIVE_BYTES == 0:
                sys.stderr.write("\n")  # Keeps the connection alive, because nothing else is sent before the offset.
                sys.stderr.flush()
            sys.stdout.buffer.write(chunk[max(0, offset - position) :])
            position += len(chunk)
    sys.stdout.buffer.flush()
    sys.stderr.write(digest.hexdigest())


if __name__ == "__main__":
    if sys.argv[1] == "list":
        list_files(pathlib.Path(sys.argv[2]), sys.argv[3:])
    else:
        send_file(pathlib.Path(sys.argv[2], sys.argv[3]), int(sys.argv[4]))
