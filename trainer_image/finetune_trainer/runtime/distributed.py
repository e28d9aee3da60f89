"""This process's place among the others, and what they agree on over a control group on the CPU."""

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from finetune_api.reasons import FineTuneError, Reason
from finetune_trainer.runtime import device, heartbeat

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class World:
    """Ranks as torchrun sets them; a process started without torchrun is a world of one."""

    rank: int
    local_rank: int
    size: int

    @classmethod
    def from_environment(cls) -> "World":
        """Read RANK, LOCAL_RANK, WORLD_SIZE."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def join(world: World, timeout_seconds: int) -> None:
    """Meet the other processes; does nothing in a world of one. Everybody after us (accelerate, DDP) uses this group.

    Raises what torch raises when a peer does not come in time, and FineTuneError where there is no GPU for this one.
    """
    if world.size == 1:
        return
    if device.has_gpu():
        if world.local_rank >= device.count_gpus():
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                f"spec.distributed.processesPerNode (or --processes): there are {device.count_gpus()} GPU(s) here, and "
                "each process needs one of its own; write as many processes, or more gpusPerNode",
            )
        device.use_gpu(world.local_rank)
    backend = "nccl" if device.has_gpu() else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_seconds))


# Ranks that wait for rank 0 may wait as long as it takes to tokenise; one that died is noticed at once by its connection.
_PATIENCE = datetime.timedelta(hours=12)


class Control:
    """Agreement of all ranks, on gloo and the CPU: never a GPU sync. In a world of one every call is local."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE) if world.size > 1 else None
        self._pending: tuple[torch.Tensor, dist.Work] | None = None

    def from_rank_0(self, produce: Callable[[], T]) -> T:
        """What ``produce`` returns on rank 0, on all ranks; only rank 0 calls it."""
        if self._group is None:
            return produce()
        values = [produce() if self.world.rank == 0 else None]
        with self.waiting():
            dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """The value of every rank, in order, on every rank."""
        if self._group is None:
            return [value]
        values: list[T | None] = [None] * self.world.size
        dist.all_gather_object(values, value, group=self._group)
        return values  # type: ignore[return-value]

    def sums(self, *values: int) -> list[int]:
        """Of each value, the sum over all ranks."""
        if self._group is None:
            return list(values)
        totals = torch.tensor(values)
        dist.all_reduce(totals, op=dist.ReduceOp.SUM, group=self._group)
        return [int(total) for total in totals.tolist()]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self._group is not None:
            with self.waiting():
                dist.barrier(group=self._group)

    def waiting(self) -> contextlib.AbstractContextManager[None]:
        """While ranks wait for each other: those of other pods leave it to rank 0's to find out who takes too long.

        Not so those of its own pod, whose newest sign of life counts for all of them.
        """
        return heartbeat.waiting() if self.world.rank > self.world.local_rank else contextlib.nullcontext()

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Whether a rank raised each flag by the call before this one; all ranks get the same answer at the same step.

        One call late on purpose: the reduction runs beside the next step instead of being waited for.
        """
        if self._group is None:
            return flags
        agreed = (False,) * len(flags)
        if self._pending is not None:
            tensor, work = self._pending
            work.wait()
            agreed = tuple(map(bool, tensor.tolist()))
        tensor = torch.tensor(flags, dtype=torch.uint8)
        work = dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = (tensor, work)
        return agreed

    def forget(self) -> None:
        """Forget the flags that were raised last: they were of another training."""
        if self._pending is not None:
            self._pending[1].wait()
            self._pending = None

    def close(self) -> None:
        """Wait for what is under way and leave the process group."""
        self.forget()
        if dist.is_initialized():
            dist.destroy_process_group()
