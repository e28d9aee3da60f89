"""What a process that loads data (dataloader_num_workers) does if it can't hand over a batch."""

import multiprocessing.queues
import os
import signal
import traceback

from finetune_trainer.runtime.disk import is_shared_memory_error


def end_on_lost_batch(_worker: int) -> None:
    """Make this process end if it can't hand over a batch, for example because /dev/shm is full.

    Python's queue drops the batch, prints a traceback and goes on, so the training would wait for that batch until it stalls.
    """
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined]


def _end(error: Exception, _batch: object) -> None:
    """End like a process that writes to a full /dev/shm: torch's loader then raises an error that says so."""
    traceback.print_exception(error)
    os.kill(os.getpid(), signal.SIGBUS if is_shared_memory_error(error) else signal.SIGABRT)
