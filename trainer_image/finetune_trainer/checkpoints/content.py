"""What a checkpoint holds: enough to go on as if nothing had happened, with the very same numbers."""

import dataclasses
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.wire import Timing
from finetune_trainer.checkpoints.tensors import Tensors
from finetune_trainer.monitoring.evaluation import Evaluated
from finetune_trainer.runtime import device


@dataclasses.dataclass
class Parts:
    """What a loop trains with. model: without DDP around it. scaler: of fp16."""

    model: Any
    optimizer: Any
    scheduler: Any
    scaler: Any | None = None

    def state(self) -> dict[str, Any]:
        """All but the model."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }

    def load(self, model: Tensors, state: dict[str, Any]) -> None:
        """Put a checkpoint's state in the place of the present one."""
        load_model(self.model, model)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far the training was. world: number of processes.

    random: states of the random numbers of each process. losses: sum of each process's losses since the step ``logged``, the
    last that was logged.
    """

    step: int
    world: int
    random: Sequence[Any]
    losses: Sequence[float]
    logged: int
    timing: Timing
    evaluations: Sequence[Evaluated]

    def to_state(self) -> dict[str, Any]:
        """As flatten() takes it."""
        evaluations = [[entry.step, dict(entry.figures)] for entry in self.evaluations]
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return own | {"timing": self.timing.model_dump(), "evaluations": evaluations}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Progress":
        """What to_state() gave."""
        evaluations = [Evaluated(step, figures) for step, figures in state["evaluations"]]
        return cls(**state | {"timing": Timing(**state["timing"]), "evaluations": evaluations})


def model_tensors(model: Any) -> Tensors:
    """What training changes: weights that are trained, each once, and buffers; of a model with adapters just those."""
    trained = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    return trained | dict(_buffers(model))


def load_model(model: Any, saved: Tensors) -> None:
    """Put them back in place. Raises FineTuneError where the model has others."""
    targets = model_tensors(model)
    if targets.keys() != saved.keys() or any(targets[name].shape != saved[name].shape for name in targets):
        raise FineTuneError(
            Reason.OUTPUT_CONFLICT,
            "the checkpoints in the output directory are of a model with other weights, as after a change of version: go on with "
            "the image that began, or remove checkpoints/ there to begin anew",
        )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(saved[name])


def _buffers(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Buffers that belong to a model's state: others follow from its configuration."""
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield (f"{prefix}.{name}" if prefix else name), buffer


def is_finite(model: Any) -> bool:
    """Whether all trained weights are numbers; waits for the GPU."""
    trained = [weight.detach() for weight in model.parameters() if weight.requires_grad]
    return bool(torch.isfinite(torch.nn.utils.get_total_norm(trained)))


def random_state() -> dict[str, Any]:
    """Of this process."""
    numpy_state: Any = np.random.get_state(legacy=True)  # of the functions that libraries draw from
    return {
        "python": random.getstate(),
        "numpy": [numpy_state[0], torch.from_numpy(np.asarray(numpy_state[1], dtype=np.int64)), *numpy_state[2:]],
        "torch": torch.get_rng_state(),
        "cuda": device.random_state(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Draw on from there."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    device.set_random_state(state["cuda"])
