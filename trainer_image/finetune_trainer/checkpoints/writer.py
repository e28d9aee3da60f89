"""What writes checkpoints while the training goes on: a copy in host memory, and a thread that takes its time."""

import contextlib
import os
import pathlib
import threading
import time
from collections.abc import Callable

import psutil
import torch

from finetune_trainer.checkpoints.tensors import Tensors
from finetune_trainer.runtime import device, heartbeat

# Rest after so much work, in terms of it: the processors are the training's, and what they do for us it can't do meanwhile.
_REST = 1.0
_LONGEST_REST_SECONDS = 0.1
# Not more: it can't be taken back, and a machine that others use, too, would hardly let it come to its end.
_NICENESS = 5
_LOOK_SECONDS = 0.5


class HostCopy:
    """A copy of tensors in host memory, whose buffers are used again: the next copy costs no memory and no page faults."""

    def __init__(self) -> None:
        self._buffers: Tensors = {}

    def take(self, tensors: Tensors) -> Tensors:
        """Copy them, and wait until it is done. The result is valid until the next call."""
        on_gpu = False
        for name, tensor in tensors.items():
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                self._buffers[name] = buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            buffer.copy_(tensor, non_blocking=True)
            on_gpu = on_gpu or tensor.is_cuda
        if on_gpu:
            device.synchronize()
        return {name: self._buffers[name] for name in tensors}

    def missing_bytes(self, tensors: Tensors) -> int:
        """How much more memory a copy would take."""
        return sum(tensor.nbytes for name, tensor in tensors.items() if name not in self._buffers)


class Writer:
    """A thread that does one piece of work at a time, gently, until somebody waits for it."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._hurry = threading.Event()
        self._error: BaseException | None = None
        self._worked_until = 0.0
        self._pieces = 0

    def submit(self, work: Callable[[], None]) -> None:
        """Begin a piece of work; the one before must be through."""
        assert self._thread is None, "wait() comes first"
        self._hurry.clear()
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait, as fast as it can, until the work is through; whether it is. Raises what it raised."""
        if self._thread is not None:
            self._hurry.set()
            if not self._join(self._thread, timeout_seconds):
                return False
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return True

    def _join(self, thread: threading.Thread, timeout_seconds: float | None) -> bool:
        """Wait for its end; as long as it gets on, this process gives signs of life."""
        until = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        seen = self._pieces
        while thread.is_alive() and (until is None or time.monotonic() < until):
            thread.join(_LOOK_SECONDS if until is None else max(0.0, min(_LOOK_SECONDS, until - time.monotonic())))
            if self._pieces != seen:
                heartbeat.beat(heartbeat.SAVING)
                seen = self._pieces
        return not thread.is_alive()

    def pace(self) -> None:
        """Called by the work, every few milliseconds: rests as long as it worked."""
        self._pieces += 1
        worked = time.thread_time() - self._worked_until
        self._hurry.wait(min(_REST * worked, _LONGEST_REST_SECONDS))
        self._worked_until = time.thread_time()

    def _run(self, work: Callable[[], None]) -> None:
        with contextlib.suppress(OSError):  # of this thread alone
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        self._worked_until = time.thread_time()
        try:
            work()
        except BaseException as error:  # told to whoever waits
            self._error = error


def free_memory(cgroup: pathlib.Path = pathlib.Path("/sys/fs/cgroup")) -> int:
    """Bytes that this container may still take: the machine's, cut by the limit of its cgroup (v2 or v1)."""
    free = int(psutil.virtual_memory().available)
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
            left = int((cgroup / limit).read_text()) - int((cgroup / used).read_text())
            stat = dict(line.split() for line in (cgroup / used).with_name("memory.stat").read_text().splitlines())
            free = min(free, left + int(stat.get(cache, 0)))
    return max(0, free)
