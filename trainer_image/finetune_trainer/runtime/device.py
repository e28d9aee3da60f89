"""The device that a process computes on. This module alone asks ``torch.cuda``.

A process has one device: the GPU of its local rank, or the CPU where there is no GPU.
"""

import dataclasses
import platform
from typing import Any, Literal

import torch

from finetune_trainer.runtime.precision import Precision, choose_precision


@dataclasses.dataclass(frozen=True)
class GpuMemory:
    """Memory of the GPU, in bytes. allocated, peak: by tensors of this process, now and at most."""

    allocated: int
    peak: int
    total: int


def has_gpu() -> bool:
    """Whether torch sees a GPU."""
    return torch.cuda.is_available()


def count_gpus() -> int:
    """GPUs that torch sees."""
    return torch.cuda.device_count()


def use_gpu(index: int) -> None:
    """Make GPU ``index`` the device of this process."""
    torch.cuda.set_device(index)


def current_device() -> torch.device:
    """The device of this process."""
    return torch.device("cuda", torch.cuda.current_device()) if has_gpu() else torch.device("cpu")


def gpu_name() -> str | None:
    """As the driver calls the GPU; None without one."""
    return torch.cuda.get_device_name() if has_gpu() else None


def device_name() -> str:
    """A name for people: of the GPU, or of the processor's architecture."""
    return gpu_name() or f"CPU ({platform.machine()})"


def computes_bf16() -> bool:
    """Whether the GPU computes in bf16 by itself, not by emulation."""
    return has_gpu() and torch.cuda.is_bf16_supported(including_emulation=False)


def half_dtype() -> torch.dtype:
    """The half precision that suits the device: bf16 where the GPU computes in it, else fp16."""
    return torch.bfloat16 if computes_bf16() else torch.float16


def resolve_precision(requested: Literal["auto", "bf16", "fp16", "fp32"]) -> Precision:
    """``spec.training.precision`` on this device. Raises ValueError for one that the device lacks."""
    return choose_precision(requested, has_gpu(), computes_bf16())


def gpu_memory() -> GpuMemory | None:
    """Memory of the GPU; None without one. Does not wait for the GPU."""
    if not has_gpu():
        return None
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return GpuMemory(torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated(), total)


def total_gpu_memory() -> int:
    """Bytes of the GPU, as the driver reports them."""
    return int(torch.cuda.mem_get_info()[1])


def random_state() -> torch.Tensor | None:
    """State of the GPU's random number generator; None without a GPU."""
    return torch.cuda.get_rng_state() if has_gpu() else None


def set_random_state(state: torch.Tensor | None) -> None:
    """Restore the state of the GPU's random number generator; does nothing without a GPU or without a state."""
    if state is not None and has_gpu():
        torch.cuda.set_rng_state(state)


def synchronize() -> None:
    """Wait until the GPU has done all work of the current stream."""
    torch.cuda.current_stream().synchronize()


def record_event() -> Any:
    """An event that the GPU reaches when it has done all work so far; two of them measure the time between."""
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
