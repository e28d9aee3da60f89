"""Measures the work of one process: MFU, memory, and the duration of a forward pass.

Nothing here waits for the GPU. The allocator keeps its numbers on the CPU, and only events that the GPU has reached are read.
"""

import dataclasses
import math
import time
from typing import Any

import torch

from finetune_trainer.monitoring.mfu import ModelSize, peak_flops
from finetune_trainer.runtime import device

# Maximum number of forward passes to time between two readings. More would add no information.
_MAX_TIMED_PASSES = 32


@dataclasses.dataclass(frozen=True)
class Reading:
    """Values since the last reading; None if there is no value.

    mfu: 0 to 1. forward_seconds: mean seconds of a forward pass. memory_*: in bytes.
    """

    mfu: float | None = None
    forward_seconds: float | None = None
    memory_allocated: int | None = None
    memory_peak: int | None = None
    memory_total: int | None = None


class DeviceStats:
    """Measures one process. model: the trained model. length: tokens of a typical row. compiled: with torch.compile."""

    def __init__(self, model: Any, config: Any, length: float, compiled: bool = False) -> None:
        self._flops_per_token = model_size(model, config).flops_per_token(length)
        gpu = device.gpu_name()
        self._peak = peak_flops(gpu) if gpu else None
        self.forward_timer = ForwardTimer()
        if not compiled:  # a timer in a compiled model would break its graph
            self.forward_timer.attach(model)

    def read(self, tokens: int, seconds: float) -> Reading:
        """Return the values since the last reading. tokens: trained by this process. seconds: duration of the steps."""
        mfu = tokens * self._flops_per_token / (seconds * self._peak) if self._peak and seconds > 0 else None
        forward = self.forward_timer.read()
        memory = device.gpu_memory()
        if memory is None:
            return Reading(mfu, forward)
        return Reading(mfu, forward, memory.allocated, memory.peak, memory.total)


class ForwardTimer:
    """Times the forward passes of a model in training mode, without the time that its DDP wrapper waits for other processes.

    These times show which process is slow. The steps of a slow process take as long as the steps of those that wait for it.
    """

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._events: list[tuple[Any, Any]] = []
        self._started: Any = None

    def attach(self, model: torch.nn.Module) -> None:
        """Time the model's forward passes from now on."""
        model.register_forward_pre_hook(self.begin)
        model.register_forward_hook(self.end)

    def read(self) -> float | None:
        """Return the mean seconds of the completed passes since the last reading; None if there is none."""
        # Events that the GPU has not reached yet are dropped, because nothing waits for the GPU here.
        done = [begin.elapsed_time(end) / 1000 for begin, end in self._events if end.query()]
        seconds, self._seconds, self._events = [*self._seconds, *done], [], []
        return sum(seconds) / len(seconds) if seconds else None

    def begin(self, model: torch.nn.Module, _: Any) -> None:
        """Start the timer. The model calls this hook before each forward pass."""
        self._started = None
        if not model.training or len(self._seconds) + len(self._events) >= _MAX_TIMED_PASSES:
            return
        self._started = device.record_event() if device.has_gpu() else time.perf_counter()

    def end(self, *_: Any) -> None:
        """Stop the timer. The model calls this hook after each forward pass."""
        if self._started is None:
            return
        if isinstance(self._started, float):
            self._seconds.append(time.perf_counter() - self._started)
        else:
            self._events.append((self._started, device.record_event()))
        self._started = None


def model_size(model: Any, config: Any) -> ModelSize:
    """Return the size of a model. Embedding tables do not count, because a lookup is no multiplication, unless one is the head.

    If the configuration lacks a size, or has one per layer, attention counts as 0, and the MFU is a little too low.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    tables -= {id(getattr(_output_head(model), "weight", None))}
    counted = [parameter for parameter in model.parameters() if id(parameter) not in tables]
    layers, heads, hidden, width = (
        _config_int(config, name) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size", "head_dim")
    )
    return ModelSize(
        parameters=sum(_num_elements(parameter) for parameter in counted),
        trainable=sum(_num_elements(parameter) for parameter in counted if parameter.requires_grad),
        attention=layers * (heads * width or hidden),
    )


def _output_head(model: Any) -> Any:
    try:
        return model.get_output_embeddings()
    except (AttributeError, NotImplementedError):  # a model with custom code may lack it
        return None


def _config_int(config: Any, name: str) -> int:
    """Return an integer of the text model's configuration; 0 if it has none, or one per layer."""
    try:
        value = getattr(config.get_text_config(), name, 0)
    except ValueError:  # an encoder-decoder model has two text configurations
        return 0
    return value if isinstance(value, int) else 0


def _num_elements(parameter: Any) -> int:
    """Return the number of weights in a parameter. A 4-bit parameter is stored packed, and keeps its original shape."""
    quantized = getattr(parameter, "quant_state", None)
    return math.prod(quantized.shape) if quantized is not None else int(parameter.numel())
