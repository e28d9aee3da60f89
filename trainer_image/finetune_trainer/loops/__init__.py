"""The training loops: trainer.py on the Hugging Face Trainer, native.py in plain PyTorch. Both take the same steps."""

from typing import Protocol


class Loop(Protocol):
    """What train.py asks of either."""

    def run(self) -> int:
        """Train, from the last checkpoint if there is one; the optimizer steps done in the end."""
        ...

    def evaluate_again(self) -> dict[str, float]:
        """Figures of the model as it is now."""
        ...
