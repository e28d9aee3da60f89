"""Writes checkpoints while the training continues: from a copy in host memory, in a thread that limits its speed."""

import contextlib
import os
import threading
import time
from collections.abc import Callable

import torch

from finetune_trainer.checkpoints.tensors import Tensors
from finetune_trainer.runtime import device, heartbeat

# Rest divided by the work before it. The thread rests because it takes processor time from the training.
_REST_RATIO = 1.0
_MAX_REST_SECONDS = 0.1
# A higher niceness is a risk: a thread can't lower it again, and on a busy node it would make little progress.
_NICENESS = 5
_POLL_SECONDS = 0.5


class HostCopy:
    """A copy of tensors in host memory. Its buffers are reused, so the next copy costs no new memory and no page faults."""

    def __init__(self) -> None:
        self._buffers: Tensors = {}

    def copy(self, tensors: Tensors) -> Tensors:
        """Copy the tensors, and wait until that is done. The result is valid until the next call."""
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
        """Return how many more bytes a copy would take."""
        return sum(tensor.nbytes for name, tensor in tensors.items() if name not in self._buffers)


class Writer:
    """A thread that does one piece of work at a time, at limited speed until something waits for it."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._full_speed = threading.Event()
        self._error: BaseException | None = None
        self._worked_until = 0.0
        self._chunks_written = 0

    def submit(self, work: Callable[[], None]) -> None:
        """Start a piece of work. The one before must be done."""
        assert self._thread is None, "wait() comes first"
        self._full_speed.clear()
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait until the work is done; it continues at full speed. Return whether it is done. Raises the error of the work."""
        if self._thread is not None:
            self._full_speed.set()
            if not self._join(self._thread, timeout_seconds):
                return False
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return True

    def _join(self, thread: threading.Thread, timeout_seconds: float | None) -> bool:
        """Wait until the thread ends. While it makes progress, this process sends heartbeats."""
        until = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        seen = self._chunks_written
        while thread.is_alive() and (until is None or time.monotonic() < until):
            thread.join(_POLL_SECONDS if until is None else max(0.0, min(_POLL_SECONDS, until - time.monotonic())))
            if self._chunks_written != seen:
                heartbeat.beat(heartbeat.SAVING)
                seen = self._chunks_written
        return not thread.is_alive()

    def throttle(self) -> None:
        """Rest as long as the thread has worked. The work calls this every few milliseconds."""
        self._chunks_written += 1
        worked = time.thread_time() - self._worked_until
        self._full_speed.wait(min(_REST_RATIO * worked, _MAX_REST_SECONDS))
        self._worked_until = time.thread_time()

    def _run(self, work: Callable[[], None]) -> None:
        with contextlib.suppress(OSError):  # for this thread only
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        self._worked_until = time.thread_time()
        try:
            work()
        except BaseException as error:  # wait() raises it
            self._error = error
