"""The rank of this process, and collectives between the ranks on a gloo group on the CPU."""

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
from finetune_trainer.runtime.signed_store import SignedStore, Signer, open_tcp_store, sign_object_collectives

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class World:
    """Ranks and world size, as torchrun sets them. A process that was started without torchrun has world size 1."""

    rank: int
    local_rank: int
    size: int

    @classmethod
    def from_environment(cls) -> "World":
        """Read RANK, LOCAL_RANK, WORLD_SIZE."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def init_process_group(world: World, key: bytes, timeout_seconds: int) -> None:
    """Join the other processes; do nothing if the world size is 1. accelerate and DDP use this process group later.

    key: signs what the processes exchange, see signed_store.py.
    Raises torch's error if a peer does not join in time, and FineTuneError if there is no GPU for this process.
    """
    if world.size == 1:
        return
    if device.has_gpu():
        if world.local_rank >= device.count_gpus():
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                f"spec.distributed.processesPerNode (or --processes): there are {device.count_gpus()} GPU(s) here, and "
                "each process needs its own GPU; write as many processes as there are GPUs, or raise gpusPerNode",
            )
        device.use_gpu(world.local_rank)
    backend = "nccl" if device.has_gpu() else "gloo"
    timeout = datetime.timedelta(seconds=timeout_seconds)
    # The port is new for each generation of processes, and the same for all of them.
    port = int(os.environ["MASTER_PORT"])
    signer = Signer(key, f"{os.environ['TORCHELASTIC_RUN_ID']}/processes/{port}")
    sign_object_collectives(signer)
    store = open_tcp_store(os.environ["MASTER_ADDR"], port, world.rank == 0, timeout, world.size)
    dist.init_process_group(
        backend,
        store=SignedStore(store, signer),
        rank=world.rank,
        world_size=world.size,
        timeout=timeout,
        # Without it, NCCL guesses the device from the rank, and connects in the first collective instead of here.
        device_id=device.current_device() if device.has_gpu() else None,
    )


# It is long, because ranks wait for rank 0 while it tokenises. If a rank dies, its connection closes, which is noticed at once.
_TIMEOUT = datetime.timedelta(hours=12)


class Coordinator:
    """Collectives of all ranks, on gloo and the CPU, so they never sync the GPU. With world size 1, every call is local."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._group = dist.new_group(backend="gloo", timeout=_TIMEOUT) if world.size > 1 else None
        self._pending: tuple[torch.Tensor, dist.Work] | None = None

    def broadcast_from_rank0(self, produce: Callable[[], T]) -> T:
        """Call ``produce`` on rank 0 only, and return its result on all ranks."""
        if self._group is None:
            return produce()
        values = [produce() if self.world.rank == 0 else None]
        with self.waiting():
            dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]  # type: ignore[return-value]

    def all_gather(self, value: T) -> list[T]:
        """Return the values of all ranks, ordered by rank, on every rank."""
        if self._group is None:
            return [value]
        values: list[T | None] = [None] * self.world.size
        dist.all_gather_object(values, value, group=self._group)
        return values  # type: ignore[return-value]

    def all_reduce_sum(self, *values: int) -> list[int]:
        """Return for each value its sum over all ranks."""
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
        """Return a context manager for a wait for other ranks.

        In pods without rank 0, it sets the stage WAITING, in which the pod of rank 0 detects a stall for them. Ranks in the pod
        of rank 0 do not set this stage, because the newest heartbeat of a pod counts for all of its processes.
        """
        return heartbeat.waiting() if self.world.rank > self.world.local_rank else contextlib.nullcontext()

    def all_reduce_any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether a rank set it in the previous call. All ranks get the same result at the same step.

        The result is one call late, because the all-reduce runs during the next step, and no rank waits for it.
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

    def discard_pending(self) -> None:
        """Discard the flags of the last call, because they belong to an earlier training."""
        if self._pending is not None:
            self._pending[1].wait()
            self._pending = None

    def close(self) -> None:
        """Wait for the pending all-reduce, and leave the process group."""
        self.discard_pending()
        if dist.is_initialized():
            dist.destroy_process_group()
