"""Keeps the end of a pod's log in the output directory, because Kubernetes deletes the log with the pod."""

import contextlib
import os
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator

from finetune_api import names
from finetune_api.wire import RunConfig
from finetune_trainer.output.directory import OutputDirectory

TAIL_BYTES = 256 * 1024
# The log is also saved while the pod runs, because a pod that is killed can't save it. The pause keeps the volume idle.
_SAVE_SECONDS = 30.0
_READ_BYTES = 64 * 1024
# Processes that outlive the training, or a volume that does not answer, must not keep the pod.
_END_SECONDS = 5.0
# As many attempts as the status shows.
_KEPT_ATTEMPTS = 10


class _Tail:
    """The last bytes of a stream, from the beginning of a line on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._content = bytearray()
        self._cut = False
        self._changed = False

    def add(self, data: bytes) -> None:
        with self._lock:
            self._content += data
            self._changed = True
            if len(self._content) > 2 * TAIL_BYTES:  # cutting at each write would copy all of it each time
                del self._content[:-TAIL_BYTES]
                self._cut = True

    def take(self) -> bytes | None:
        """Return the content, or None if nothing was added since the last call."""
        with self._lock:
            if not self._changed:
                return None
            self._changed = False
            content, cut = bytes(self._content[-TAIL_BYTES:]), self._cut or len(self._content) > TAIL_BYTES
        return content[content.find(b"\n") + 1 :] if cut else content


@contextlib.contextmanager
def keep_log(config: RunConfig, index: int) -> Iterator[None]:
    """Save the end of what this process and its children write, beside the pod's own log. index: completion index of the pod."""
    output = OutputDirectory(pathlib.Path(config.output))
    oldest = config.attempt - _KEPT_ATTEMPTS

    def save(content: bytes) -> None:
        if output.accepts(config):
            _write(output.logs / f"{names.pod_host_name(config.name, config.attempt, index)}.log", content)
            (output.logs / f"{names.pod_host_name(config.name, oldest, index)}.log").unlink(missing_ok=True)

    tail, stop = _Tail(), threading.Event()
    saver = threading.Thread(target=_save_repeatedly, args=(tail, save, stop), name="save-log", daemon=True)
    saver.start()
    try:
        with _copied_output(tail):
            yield
    finally:
        stop.set()
        saver.join(_END_SECONDS)


@contextlib.contextmanager
def _copied_output(tail: _Tail) -> Iterator[None]:
    """Add to the tail what is written to standard output and error, also by children, until the end of the block."""
    reader, writer = os.pipe()
    originals = {number: os.dup(number) for number in (1, 2)}
    for number in originals:
        os.dup2(writer, number)
    os.close(writer)
    copier = threading.Thread(target=_copy, args=(reader, originals[2], tail), name="copy-log", daemon=True)
    copier.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, original in originals.items():
            os.dup2(original, number)
        os.close(originals[1])
        copier.join(_END_SECONDS)


def _copy(reader: int, log: int, tail: _Tail) -> None:
    """Copy to the pod's log until all writers have ended. It must go on after any error, or all processes would block."""
    while data := os.read(reader, _READ_BYTES):
        tail.add(data)
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(log, data) :]
    os.close(reader)
    os.close(log)


def _save_repeatedly(tail: _Tail, save: Callable[[bytes], None], stop: threading.Event) -> None:
    while True:
        stopped = stop.wait(_SAVE_SECONDS)
        content = tail.take()
        if content is not None:
            with contextlib.suppress(OSError):  # the volume is full or read-only: the log of the pod is the only one
                save(content)
        if stopped:
            return


def _write(file: pathlib.Path, content: bytes) -> None:
    """Replace a file at once, so that a reader finds all of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}")
    try:
        temporary.write_bytes(content)
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
