"""The content of a checkpoint: enough to resume with exactly the same numbers as without an interruption."""

import dataclasses
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.wire import Timing
from finetune_trainer.checkpoints.tensors import Tensors
from finetune_trainer.monitoring.evaluation import EvaluationResult
from finetune_trainer.runtime import device


@dataclasses.dataclass
class TrainState:
    """The objects that a loop trains with. model: without the DDP wrapper. scaler: of fp16."""

    model: Any
    optimizer: Any
    scheduler: Any
    scaler: Any | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state of everything except the model."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }

    def load(self, model: Tensors, state: dict[str, Any]) -> None:
        """Replace the current state with that of a checkpoint."""
        load_model(self.model, model)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a training. world: number of processes.

    random: states of the random number generators, by process. logged: the last logged step. losses: sum of the losses since that
    step, by process.
    """

    step: int
    world: int
    random: Sequence[Any]
    losses: Sequence[float]
    logged: int
    timing: Timing
    evaluations: Sequence[EvaluationResult]

    def to_state(self) -> dict[str, Any]:
        """Return the fields as a nested state for flatten()."""
        evaluations = [[entry.step, dict(entry.metrics)] for entry in self.evaluations]
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return own | {"timing": self.timing.model_dump(), "evaluations": evaluations}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Progress":
        """Return the progress from what to_state() returned."""
        evaluations = [EvaluationResult(step, metrics) for step, metrics in state["evaluations"]]
        return cls(**state | {"timing": Timing(**state["timing"]), "evaluations": evaluations})


def model_tensors(model: Any) -> Tensors:
    """Return the tensors that training changes: trained weights (with adapters, only theirs), each once, and buffers."""
    trained = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    return trained | dict(_buffers(model))


def load_model(model: Any, saved: Tensors) -> None:
    """Copy saved tensors into the model. Raises FineTuneError if the model has other tensors."""
    targets = model_tensors(model)
    if targets.keys() != saved.keys() or any(targets[name].shape != saved[name].shape for name in targets):
        raise FineTuneError(
            Reason.OUTPUT_CONFLICT,
            "the checkpoints in the output directory are of a model with other weights, for example after a change of version: "
            "resume with the image that the training started with, or remove checkpoints/ there to start from the beginning",
        )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(saved[name])


def _buffers(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the buffers that belong to a model's state. The other buffers follow from its configuration."""
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield (f"{prefix}.{name}" if prefix else name), buffer


def is_finite(model: Any) -> bool:
    """Return whether all trained weights are finite. Waits for the GPU."""
    trained = [weight.detach() for weight in model.parameters() if weight.requires_grad]
    return bool(torch.isfinite(torch.nn.utils.get_total_norm(trained)))


def get_rng_state() -> dict[str, Any]:
    """Return the states of this process's random number generators."""
    numpy_state: Any = np.random.get_state(legacy=True)  # of the global generator, which libraries use
    return {
        "python": random.getstate(),
        "numpy": [numpy_state[0], torch.from_numpy(np.asarray(numpy_state[1], dtype=np.int64)), *numpy_state[2:]],
        "torch": torch.get_rng_state(),
        "cuda": device.get_rng_state(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore the states of this process's random number generators."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    device.set_rng_state(state["cuda"])
