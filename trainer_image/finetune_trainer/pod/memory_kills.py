"""Recognises that the kernel killed a process of this pod because memory ran out, and says which memory that was."""

import pathlib

from finetune_api.quantities import format_bytes
from finetune_api.reasons import NODE_MEMORY_HINT, REASONS, Reason
from finetune_api.status import Failure
from finetune_trainer.runtime import cgroup

# The kernel frees what it can before it kills, so the peak is close to the limit if the limit is the cause.
_AT_LIMIT = 0.9


class MemoryKills:
    """Counts the processes of this container that the kernel has killed because memory ran out. root: of the cgroup."""

    def __init__(self, root: pathlib.Path = cgroup.ROOT) -> None:
        self._root = root
        self._known = cgroup.read_memory(root).kills

    def poll(self) -> cgroup.Memory | None:
        """Return the state of the memory if the kernel has killed a process since the last call, else None."""
        memory = cgroup.read_memory(self._root)
        killed, self._known = memory.kills > self._known, memory.kills
        return memory if killed else None


def memory_failure(process: str, memory: cgroup.Memory, rank: int | None = None) -> Failure:
    """Return the failure for a process that the kernel killed because memory ran out.

    If the container was below its limit, the memory of the node ran out. Another attempt, perhaps on another node, can succeed.
    """
    limit, peak = memory.limit_bytes, memory.peak_bytes
    used = f"peak {format_bytes(peak)}" if peak is not None else "peak unknown"
    if limit is not None and (peak is None or peak >= _AT_LIMIT * limit):
        reason, hint = Reason.OUT_OF_MEMORY, REASONS[Reason.OUT_OF_MEMORY].hint
        cause = f"the container reached its memory limit of {format_bytes(limit)} ({used})"
    else:
        reason, hint = Reason.WORKER_DIED, NODE_MEMORY_HINT
        own = f"a memory limit of {format_bytes(limit)}" if limit is not None else "no memory limit"
        cause = f"the memory of the node ran out (the container has {own}, {used})"
    return Failure(reason=reason, message=f"the kernel killed {process}: {cause}", hint=hint, rank=rank)
