"""Losses that are no numbers: seen without ever waiting for the GPU, and never saved."""

import math

import torch

from finetune_api import metrics as declared
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import Recovery
from finetune_trainer.loops import skipped_batches as skipping
from finetune_trainer.monitoring.metrics import WorkerMetrics
from finetune_trainer.output.directory import Output
from finetune_trainer.runtime.distributed import Control


class LossGuard:
    """Remembers on the device which step was the first whose loss, or gradient, was no number.

    scaled: of fp16, whose gradients may overflow: the scaler leaves such a step out and goes on with a smaller scale.
    skipped: steps whose batch is left out, as it did that before.
    """

    def __init__(self, recovery: Recovery, ranks: Control, output: Output, metrics: WorkerMetrics, scaled: bool) -> None:
        self._skips = recovery.on_non_finite_loss == "SkipBatch"
        self._ranks, self._output, self._metrics, self._scaled = ranks, output, metrics, scaled
        self._first: torch.Tensor | None = None
        self.skipped = ranks.from_rank_0(lambda: skipping.load(output.directory)) if self._skips else frozenset()

    def trained_steps(self, after: int, last: int) -> int:
        """How many steps of those after ``after`` up to ``last`` were trained on: all but those that are left out."""
        return last - after - sum(after < step <= last for step in self.skipped)

    def observe(self, step: int, losses: torch.Tensor, gradient_norm: torch.Tensor | None) -> None:
        """Look at a sum of losses that this step's was added to, and at the norm of its gradient, where they are."""
        bad = ~torch.isfinite(losses)
        if gradient_norm is not None and not self._scaled:
            bad |= ~torch.isfinite(gradient_norm).to(bad.device)
        if self._first is None:
            self._first = torch.zeros((), dtype=torch.int64, device=bad.device)
        self._first = torch.where(bad & (self._first == 0), step, self._first)

    def first_bad(self) -> int:
        """The first such step of this process, 0 if there was none; waits for the GPU."""
        return int(self._first.item()) if self._first is not None else 0

    def check(self) -> None:
        """Raise FineTuneError, on all ranks alike, if there was one on any; all ranks call it."""
        self.judge(self._ranks.gather(self.first_bad()))

    def check_logged(self, step: int, loss: float, gradient_norm: float | None) -> None:
        """The same where figures are looked at that all ranks have alike: no need to ask them while these are numbers."""
        if math.isfinite(loss) and (self._scaled or gradient_norm is None or math.isfinite(gradient_norm)):
            return
        self.check()
        self.judge([step])

    def judge(self, first_bad: list[int]) -> None:
        """Raise FineTuneError for the first of the steps that all ranks told of, 0 where one knows of none."""
        steps = [step for step in first_bad if step]
        if not steps:
            return
        step = min(steps)
        self._metrics.count(declared.NON_FINITE_LOSS)
        message = f"the loss is no number at step {step}"
        remedy = "lower spec.training.learningRate or set spec.training.precision to fp32"
        if not self._skips:
            raise FineTuneError(Reason.NON_FINITE_LOSS, f"{message}; {remedy}")
        if self._ranks.from_rank_0(lambda: skipping.record(self._output.directory, step)):
            raise FineTuneError(
                Reason.NON_FINITE_LOSS, f"{message}: its batch is left out, and the training goes on from the last checkpoint"
            )
        count = len(self._ranks.from_rank_0(lambda: skipping.load(self._output.directory)))
        raise FineTuneError(Reason.NON_FINITE_LOSS, f"{message}, after {count} batches were left out for that; {remedy}")
