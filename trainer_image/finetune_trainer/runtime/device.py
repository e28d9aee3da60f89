"""The device that a process computes on. Only this module uses ``torch.cuda``.

A process has one device: the GPU of its local rank, or the CPU if there is no GPU.
"""

import contextlib
import dataclasses
import pathlib
import platform
import re
from typing import Any

import torch
from transformers.utils.import_utils import is_torch_tf32_available

from finetune_api.reasons import FineTuneError, Reason
from finetune_trainer.runtime.precision import Precision, Requested, choose_precision


@dataclasses.dataclass(frozen=True)
class GpuMemory:
    """Memory of the GPU in bytes. allocated: by tensors of this process. peak: maximum of allocated. total: of the GPU."""

    allocated: int
    peak: int
    total: int


def has_gpu() -> bool:
    """Return whether torch sees a GPU."""
    return torch.cuda.is_available()


def require_gpu() -> None:
    """Raise FineTuneError if torch sees no GPU, for a pod that asked for some."""
    if not has_gpu():
        raise FineTuneError(Reason.CONFIGURATION_ERROR, explain_missing_gpu(torch.__version__, _built_for(), _driver_version()))


def explain_missing_gpu(version: str, built_for: str | None, driver: str | None) -> str:
    """Return why torch sees no GPU, and what to do. built_for: None if for the CPU only. driver: None if there is none."""
    if built_for is None:
        problem = f"torch {version} of this image was built for the CPU only: use an image with a build for the GPU"
    elif driver is None:
        problem = (
            "the container has no GPU driver: the node's container runtime gives it none, or spec.distributed.gpuResourceName is "
            "not the resource of its device plugin"
        )
    else:
        problem = (
            f"torch {version} of this image needs a driver for {built_for}, and the node has {driver} (CUDA 13 needs 580): "
            "update the driver, or build the trainer image with a torch for an earlier version"
        )
    return f"spec.distributed.gpusPerNode: the job asks for GPUs, and torch sees none: {problem}"


def _built_for() -> str | None:
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    return f"CUDA {torch.version.cuda}" if torch.version.cuda else None


def _driver_version() -> str | None:
    """Return the version of NVIDIA's or AMD's driver, as its kernel module tells it; None if there is none."""
    for file in ("/proc/driver/nvidia/version", "/sys/module/amdgpu/version"):
        with contextlib.suppress(OSError):
            if found := re.search(r"\d+\.[\d.]+", pathlib.Path(file).read_text()):
                return f"driver {found[0]}"
    return None


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


def supports_tf32() -> bool:
    """Return whether the GPU supports tf32: NVIDIA's since Ampere."""
    return has_gpu() and is_torch_tf32_available()


def resolve_precision(requested: Requested) -> Precision:
    """Return the precision for ``spec.training.precision`` on this device. Raises ValueError if the device lacks it."""
    return choose_precision(requested, has_gpu(), supports_bf16(), supports_tf32())


def gpu_memory() -> GpuMemory | None:
    """Return the memory of the GPU; None without a GPU. Does not wait for the GPU."""
    if not has_gpu():
        return None
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return GpuMemory(torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated(), total)


def total_gpu_memory() -> int:
    """Return the GPU's memory in bytes, as the driver reports it."""
    return int(torch.cuda.mem_get_info()[1])


def release_memory() -> None:
    """Give the GPU's memory that no tensor uses back to the driver, so that it can be cut anew."""
    if has_gpu():
        torch.cuda.empty_cache()


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
