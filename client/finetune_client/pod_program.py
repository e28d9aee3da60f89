"""What the helper pod of `kubectl finetune pull` is asked to run: any Python 3 with nothing but its own library.

list FOLDER [FILE...]      what is in it, or which of these files, as one JSON object per line
send FOLDER FILE OFFSET    a file from that byte on; the SHA-256 of all of it, as hexadecimal digits, on standard error, perhaps
                           after empty lines
"""

import hashlib
import json
import pathlib
import sys

_PIECE_BYTES = 1 << 20
_SIGN_BYTES = 64 << 20


def list_files(folder: pathlib.Path, wanted: list[str]) -> None:
    """Every file below the folder, or those of the wanted that are there: its path from there, and its size in bytes."""
    if not folder.is_dir():
        sys.exit("no such folder")
    for path in [folder / name for name in wanted] or sorted(folder.rglob("*")):
        if path.is_file():
            sys.stdout.write(json.dumps({"path": path.relative_to(folder).as_posix(), "size": path.stat().st_size}) + "\n")


def send_file(path: pathlib.Path, offset: int) -> None:
    """The bytes from the offset on; those before it count for the hash only."""
    digest = hashlib.sha256()
    position = 0
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
            if position < offset and position % _SIGN_BYTES == 0:
                sys.stderr.write("\n")  # a sign of life: nothing else is sent until the offset
                sys.stderr.flush()
            sys.stdout.buffer.write(piece[max(0, offset - position) :])
            position += len(piece)
    sys.stdout.buffer.flush()
    sys.stderr.write(digest.hexdigest())


if __name__ == "__main__":
    if sys.argv[1] == "list":
        list_files(pathlib.Path(sys.argv[2]), sys.argv[3:])
    else:
        send_file(pathlib.Path(sys.argv[2], sys.argv[3]), int(sys.argv[4]))
