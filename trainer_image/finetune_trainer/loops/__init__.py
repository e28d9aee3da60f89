"""The training loops: trainer.py uses the Hugging Face Trainer, native.py plain PyTorch. Both take the same steps."""

from typing import Protocol


class Loop(Protocol):
    """The interface of both loops for train.py."""

    def run(self) -> int:
        """Train, from the last checkpoint if there is one. Return the number of optimizer steps done."""
        ...

    def evaluate_model(self) -> dict[str, float]:
        """Return the metrics of the current model."""
        ...
