"""Finds losses that are NaN or infinite, without waiting for the GPU in each step. A state after such a loss is never saved."""

import math

import torch

from finetune_api import metrics as declared
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import Recovery
from finetune_trainer.loops import skipped_batches
from finetune_trainer.monitoring.metrics import WorkerMetrics
from finetune_trainer.output.directory import OutputDirectory
from finetune_trainer.runtime.distributed import Coordinator


class LossGuard:
    """Records on the device the first step whose loss or gradient is NaN or infinite.

    loss_scaling: whether fp16's scaler is used. Gradients may overflow then; the scaler skips such a step and lowers the scale.
    skipped_steps: steps whose batch is skipped, because their loss was NaN or infinite before.
    """

    def __init__(
        self, recovery: Recovery, coordinator: Coordinator, output: OutputDirectory, metrics: WorkerMetrics, loss_scaling: bool
    ) -> None:
        self._skips_batches = recovery.on_non_finite_loss == "SkipBatch"
        self._coordinator, self._output, self._metrics, self._loss_scaling = coordinator, output, metrics, loss_scaling
        self._first_non_finite_step: torch.Tensor | None = None
        self.skipped_steps = (
            coordinator.broadcast_from_rank0(lambda: skipped_batches.load(output.directory))
            if self._skips_batches
            else frozenset()
        )

    def trained_steps(self, after: int, last: int) -> int:
        """Return the number of steps from ``after`` + 1 to ``last`` without the skipped ones."""
        return last - after - sum(after < step <= last for step in self.skipped_steps)

    def observe(self, step: int, losses: torch.Tensor, gradient_norm: torch.Tensor | None) -> None:
        """Check two values on the device: a sum of losses that includes this step's loss, and this step's gradient norm."""
        bad = ~torch.isfinite(losses)
        if gradient_norm is not None and not self._loss_scaling:
            bad |= ~torch.isfinite(gradient_norm).to(bad.device)
        if self._first_non_finite_step is None:
            self._first_non_finite_step = torch.zeros((), dtype=torch.int64, device=bad.device)
        self._first_non_finite_step = torch.where(bad & (self._first_non_finite_step == 0), step, self._first_non_finite_step)

    def first_non_finite_step(self) -> int:
        """Return this process's first step with a NaN or infinite loss or gradient; 0 if there is none. Waits for the GPU."""
        return int(self._first_non_finite_step.item()) if self._first_non_finite_step is not None else 0

    def check(self) -> None:
        """Raise FineTuneError on all ranks if any rank has a non-finite step. All ranks call this together."""
        self.raise_if_non_finite(self._coordinator.all_gather(self.first_non_finite_step()))

    def check_logged(self, step: int, loss: float, gradient_norm: float | None) -> None:
        """Check logged values, which are equal on all ranks. The ranks communicate only if a value is NaN or infinite."""
        if math.isfinite(loss) and (self._loss_scaling or gradient_norm is None or math.isfinite(gradient_norm)):
            return
        self.check()
        self.raise_if_non_finite([step])

    def raise_if_non_finite(self, first_steps: list[int]) -> None:
        """Raise FineTuneError for the lowest step that a rank reports. first_steps: one entry per rank; 0 means none."""
        steps = [step for step in first_steps if step]
        if not steps:
            return
        step = min(steps)
        self._metrics.inc(declared.NON_FINITE_LOSS)
        message = f"the loss is NaN or infinite at step {step}"
        remedy = "lower spec.training.learningRate or set spec.training.precision to fp32"
        if not self._skips_batches:
            raise FineTuneError(Reason.NON_FINITE_LOSS, f"{message}; {remedy}")
        if self._coordinator.broadcast_from_rank0(lambda: skipped_batches.record(self._output.directory, step)):
            raise FineTuneError(
                Reason.NON_FINITE_LOSS,
                f"{message}: the batch of this step is skipped, and the training resumes from the last checkpoint",
            )
        count = len(self._coordinator.broadcast_from_rank0(lambda: skipped_batches.load(self._output.directory)))
        raise FineTuneError(Reason.NON_FINITE_LOSS, f"{message}, after {count} batches were skipped for this reason; {remedy}")
