"""What a process measures of its own work: its share of the GPU's peak, its memory, and how long a forward pass takes it.

Nothing here waits for the GPU: the allocator knows its figures on the CPU, and of events only those are read that are over.
"""

import dataclasses
import math
import time
from typing import Any

import torch

from finetune_trainer.monitoring.mfu import ModelSize, peak_flops
from finetune_trainer.runtime import device

# Forward passes that are timed between two readings; the first ones, as more would tell nothing new.
_MOST_TIMED = 32


@dataclasses.dataclass(frozen=True)
class Reading:
    """Since the last one. mfu: 0 to 1; forward: mean seconds of a forward pass; memory in bytes. None where there is none."""

    mfu: float | None = None
    forward: float | None = None
    memory_allocated: int | None = None
    memory_peak: int | None = None
    memory_total: int | None = None


class Meter:
    """Measures one process. model: what is trained; length: tokens of a typical row; compiled: by torch.compile."""

    def __init__(self, model: Any, config: Any, length: float, compiled: bool = False) -> None:
        self._flops_per_token = measure(model, config).flops_per_token(length)
        gpu = device.gpu_name()
        self._peak = peak_flops(gpu) if gpu else None
        self.forward = ForwardClock()
        if not compiled:  # a clock in what is compiled would cut it in two
            self.forward.attach(model)

    def read(self, tokens: int, seconds: float) -> Reading:
        """Since the last reading. tokens: that this process trained on, in so many seconds of steps."""
        mfu = tokens * self._flops_per_token / (seconds * self._peak) if self._peak and seconds > 0 else None
        forward = self.forward.read()
        memory = device.gpu_memory()
        if memory is None:
            return Reading(mfu, forward)
        return Reading(mfu, forward, memory.allocated, memory.peak, memory.total)


class ForwardClock:
    """Times forward passes of a model in training, from within: what its wrapper waits for beforehand is not its own time.

    That tells a slow process from those that wait for it, as their steps take equally long.
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
        """Mean seconds of the passes since the last reading; None if there was none that is over."""
        # What the GPU has not come to yet is left out, not waited for.
        done = [begin.elapsed_time(end) / 1000 for begin, end in self._events if end.query()]
        seconds, self._seconds, self._events = [*self._seconds, *done], [], []
        return sum(seconds) / len(seconds) if seconds else None

    def begin(self, model: torch.nn.Module, _: Any) -> None:
        """A forward pass of the model begins: a hook."""
        self._started = None
        if not model.training or len(self._seconds) + len(self._events) >= _MOST_TIMED:
            return
        self._started = device.record_event() if device.has_gpu() else time.perf_counter()

    def end(self, *_: Any) -> None:
        """It is over: a hook."""
        if self._started is None:
            return
        if isinstance(self._started, float):
            self._seconds.append(time.perf_counter() - self._started)
        else:
            self._events.append((self._started, device.record_event()))
        self._started = None


def measure(model: Any, config: Any) -> ModelSize:
    """The size of a model. A table of embeddings only looks tokens up, unless it is the head as well (tied).

    Of a model of another make than usual attention counts for nothing: a figure that is a little low harms no training.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    tables -= {id(getattr(_head(model), "weight", None))}
    counted = [parameter for parameter in model.parameters() if id(parameter) not in tables]
    layers, heads, hidden, width = (
        _number(config, name) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size", "head_dim")
    )
    return ModelSize(
        weights=sum(_elements(parameter) for parameter in counted),
        trained=sum(_elements(parameter) for parameter in counted if parameter.requires_grad),
        attention=layers * (heads * width or hidden),
    )


def _head(model: Any) -> Any:
    try:
        return model.get_output_embeddings()
    except (AttributeError, NotImplementedError):  # code of a model's repository need not have it
        return None


def _number(config: Any, name: str) -> int:
    """Of the configuration of the text model; 0 where it has none, or one for each layer."""
    try:
        value = getattr(config.get_text_config(), name, 0)
    except ValueError:  # of an encoder and a decoder, which are two
        return 0
    return value if isinstance(value, int) else 0


def _elements(parameter: Any) -> int:
    """Weights of a parameter; one of 4 bits is stored packed, and knows its shape."""
    quantized = getattr(parameter, "quant_state", None)
    return math.prod(quantized.shape) if quantized is not None else int(parameter.numel())
