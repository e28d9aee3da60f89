"""The device that a process computes on. Only this module uses ``torch.cuda``.

A process has one device: the GPU of its local rank, or the CPU if there is no GPU.
"""

import dataclasses
import platform
from typing import Any, Literal

import torch

from finetune_trainer.runtime.precision import Precision, choose_precision


@dataclasses.dataclass(frozen=True)
class GpuMemory:
    """Memory of the GPU in bytes. allocated: by tensors of this process. peak: maximum of allocated. total: of the GPU."""

    allocated: int
    peak: int
    total: int


def has_gpu() -> bool:
    """Return whether torch sees a GPU."""
    return torch.cuda.is_available()


def count_gpus() -> int:
    """Return the number of GPUs that torch sees."""
    return torch.cuda.device_count()


def use_gpu(index: int) -> None:
    """Make GPU ``index`` the device of this process."""
    torch.cuda.set_device(index)


def current_device() -> torch.device:
    """Return the device of this process."""
    return torch.device("cuda", torch.cuda.current_device()) if has_gpu() else torch.device("cpu")


def gpu_name() -> str | None:
    """Return the driver's name of the GPU; None without a GPU."""
    return torch.cuda.get_device_name() if has_gpu() else None


def device_name() -> str:
    """Return a name to display: that of the GPU, or the processor's architecture."""
    return gpu_name() or f"CPU ({platform.machine()})"


def supports_bf16() -> bool:
    """Return whether the GPU supports bf16 in hardware, not by emulation."""
    return has_gpu() and torch.cuda.is_bf16_supported(including_emulation=False)


def half_dtype() -> torch.dtype:
    """Return the half precision for the device: bf16 if the GPU supports it, else fp16."""
    return torch.bfloat16 if supports_bf16() else torch.float16


def resolve_precision(requested: Literal["auto", "bf16", "fp16", "fp32"]) -> Precision:
    """Return the precision for ``spec.training.precision`` on this device. Raises ValueError if the device lacks it."""
    return choose_precision(requested, has_gpu(), supports_bf16())


def gpu_memory() -> GpuMemory | None:
    """Return the memory of the GPU; None without a GPU. Does not wait for the GPU."""
    if not has_gpu():
        return None
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return GpuMemory(torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated(), total)


def total_gpu_memory() -> int:
    """Return the GPU's memory in bytes, as the driver reports it."""
    return int(torch.cuda.mem_get_info()[1])


def get_rng_state() -> torch.Tensor | None:
    """Return the state of the GPU's random number generator; None without a GPU."""
    return torch.cuda.get_rng_state() if has_gpu() else None


def set_rng_state(state: torch.Tensor | None) -> None:
    """Restore the state of the GPU's random number generator; does nothing without a GPU or without a state."""
    if state is not None and has_gpu():
        torch.cuda.set_rng_state(state)


def synchronize() -> None:
    """Wait until the GPU has done all work of the current stream."""
    torch.cuda.current_stream().synchronize()


def record_event() -> Any:
    """Record an event that follows all work queued on the GPU. Two events measure the time between them."""
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
