"""A command that runs in a container, over the WebSocket of the API server."""

import json
from collections.abc import Iterator

import websocket
from kubernetes.stream.ws_client import ERROR_CHANNEL, STDERR_CHANNEL, STDIN_CHANNEL, STDOUT_CHANNEL

from finetune_client.errors import CommandError, UnreachableError


class RemoteCommand:
    """Writes to the command's standard input and reads its output.

    It does not use kubernetes.stream, which keeps all output in memory and copies it for each frame.
    """

    def __init__(self, socket: websocket.WebSocket) -> None:
        self._socket = socket
        self._stderr = b""

    def send(self, content: bytes) -> None:
        """Write to standard input. Raise CommandError if the command has failed, UnreachableError if the connection is lost."""
        try:
            self._socket.send_binary(bytes([STDIN_CHANNEL]) + content)
        except (websocket.WebSocketException, OSError) as error:
            for _ in self.frames():  # The reason may be in what the command wrote before it ended.
                pass
            raise UnreachableError(f"the connection to the pod broke: {type(error).__name__}") from error

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Yield the output as (STDOUT_CHANNEL or STDERR_CHANNEL, bytes) until the server reports the exit status.

        Raises CommandError if the command fails, and UnreachableError if the connection ends before the command.
        """
        while True:
            try:
                opcode, frame = self._socket.recv_data_frame(True)
            except (websocket.WebSocketException, OSError) as error:
                raise UnreachableError(f"the connection to the pod broke: {type(error).__name__}") from error
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                raise UnreachableError("the connection to the pod was closed before the command ended")
            if opcode not in (websocket.ABNF.OPCODE_BINARY, websocket.ABNF.OPCODE_TEXT) or not frame.data:
                continue
            channel, content = frame.data[0], frame.data[1:]
            if channel == ERROR_CHANNEL and content:
                status = json.loads(content)
                if status.get("status") != "Success":
                    words = self._stderr.decode(errors="replace").strip()
                    raise CommandError(words or status.get("message", "the command failed"))
                return
            if channel in (STDOUT_CHANNEL, STDERR_CHANNEL) and content:
                self._stderr += content if channel == STDERR_CHANNEL else b""
                yield channel, content

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of standard output that are not empty. Raise UnreachableError after the last one."""
        rest = b""
        for channel, content in self.frames():
            if channel == STDOUT_CHANNEL:
                *complete, rest = (rest + content).split(b"\n")
                yield from (line for line in complete if line)
        raise UnreachableError("the command in the pod ended early")
