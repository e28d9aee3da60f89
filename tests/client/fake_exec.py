"""Commands with standard input in a fake pod: they run on this machine, connected with a WebSocket as Kubernetes does it."""

import contextlib
import json
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

_STDIN, _STDOUT, _STDERR, _STATUS = range(4)


def run_with_input(
    words: Sequence[str], stream: BinaryIO, send_frame: Callable[[int, bytes], None], cut: int | None, corrupt: bool
) -> None:
    """Run a Python command until it ends.

    cut: the bytes of input after which the connection breaks. What the command answers to them still arrives. corrupt: change the
    last byte of each frame that begins with no text, so not of the request.
    """
    process = subprocess.Popen(
        [sys.executable, *words[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )
    assert process.stdin
    answering = threading.Thread(target=_answer, args=(process, send_frame, cut is not None), daemon=True)
    answering.start()
    with process.stdin as pipe, contextlib.suppress(OSError):  # the client has gone, or the command has ended
        received = 0
        for content in _read_input(stream):
            content = content if cut is None else content[: cut - received]
            pipe.write(content[:-1] + bytes([content[-1] ^ 1]) if corrupt and content[0] > 127 else content)
            received += len(content)
            if received == cut:
                break
    answering.join()


def _answer(process: "subprocess.Popen[bytes]", send_frame: Callable[[int, bytes], None], is_cut: bool) -> None:
    """Send the output and the exit status; not even a close frame if the connection is to break."""
    assert process.stdout
    assert process.stderr
    with process, contextlib.suppress(OSError):
        while content := process.stdout.read(1024):
            send_frame(_STDOUT, content)
        stderr, code = process.stderr.read(), process.wait()
        if is_cut:
            return
        if stderr:
            send_frame(_STDERR, stderr)
        failed = {"status": "Failure", "message": f"command terminated with exit code {code}"}
        send_frame(_STATUS, json.dumps(failed if code else {"status": "Success"}).encode())


def _read_input(stream: BinaryIO) -> Iterator[bytes]:
    """Yield what the client writes to standard input. Its frames are masked."""
    while (head := stream.read(2)) and head[0] & 0x0F == 2:
        size = head[1] & 0x7F
        if size == 126:
            [size] = struct.unpack(">H", stream.read(2))
        elif size == 127:
            [size] = struct.unpack(">Q", stream.read(8))
        mask, masked = stream.read(4), stream.read(size)
        number = int.from_bytes(masked, "little") ^ int.from_bytes((mask * (size // 4 + 1))[:size], "little")
        content = number.to_bytes(size, "little")
        assert content[0] == _STDIN
        yield content[1:]
