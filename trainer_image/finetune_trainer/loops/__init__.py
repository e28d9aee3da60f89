"""The training loops: trainer.py uses the Hugging Face Trainer, native.py uses PyTorch and Accelerate. Both take the same steps.

Both share the other modules: arguments, ddp, monitor, evaluation, best, checkpointer, loss_guard, skipped_batches, throughput.
"""

from typing import Protocol


class Loop(Protocol):
    """The interface of both loops."""

    def run(self) -> int:
        """Train, from the last checkpoint if there is one. Return the number of optimizer steps done."""
        ...

    def evaluate_model(self) -> dict[str, float]:
        """Return the metrics of the current model."""
        ...
