"""What both loops tell of a run, step by step: reports, metrics, history; and whether somebody asked for an end."""

import json
import logging
import math
import time
from typing import Any

from finetune_api import metrics as declared
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.status import CheckpointStatus, Evaluation
from finetune_trainer.distributed import Control
from finetune_trainer.loops.best import Evaluated
from finetune_trainer.metrics import WorkerMetrics
from finetune_trainer.output import Output
from finetune_trainer.progress import Reporter, timestamp
from finetune_trainer.state import RunState

log = logging.getLogger(__name__)


def evaluation_status(done: Evaluated) -> Evaluation:
    """As the status shows it: rounded."""
    return Evaluation(step=done.step, metrics={name: round(value, 6) for name, value in done.figures.items()})


class Watch:
    """One per process. global_batch: rows of an optimizer step, for the rate."""

    def __init__(
        self, state: RunState, reporter: Reporter, metrics: WorkerMetrics, ranks: Control, output: Output, global_batch: int
    ) -> None:
        self._run_state, self._reporter, self._metrics = state, reporter, metrics
        self._ranks, self._output, self._global_batch = ranks, output, global_batch
        self._step_started = time.monotonic()
        self._total_steps = 0
        self.interrupted = False

    def begin(self, step: int, total_steps: int) -> None:
        """Say how much there is to do."""
        self._reporter.update(message="the first step is under way", step=step, total_steps=total_steps)
        self._metrics.set(declared.TRAINING_MAX_STEPS, total_steps)
        self._total_steps = total_steps
        self.resume_clock()

    def resume_clock(self) -> None:
        """What took time until now was no step: an evaluation, a checkpoint."""
        self._step_started = time.monotonic()

    def tokens(self, count: int) -> None:
        """Tokens of a forward pass, padding left out."""
        self._metrics.tokens(count)

    def step_done(self, step: int, total_steps: int, epoch: float) -> bool:
        """Count the step; whether all ranks are to save and end now, the same on all of them."""
        now = time.monotonic()
        self._metrics.step(now - self._step_started, time.time())
        self._step_started = now
        self._metrics.set(declared.TRAINING_STEP, step)
        self._reporter.step(step, epoch, self._global_batch)
        if self._ranks.any_rank(self._run_state.stop_requested()) and step < total_steps:
            self.interrupted = True
        return self.interrupted

    def logged(self, step: int, epoch: float, loss: float, gradient_norm: float | None, learning_rate: float) -> None:
        """Write the figures of a step down; a loss that is no number ends the job on every rank alike."""
        if not math.isfinite(loss):
            raise FineTuneError(
                Reason.NON_FINITE_LOSS,
                f"the loss is {loss} at step {step}; lower spec.training.learningRate or set spec.training.precision to fp32",
            )
        norm = f", gradient norm {gradient_norm:.3f}" if gradient_norm is not None else ""
        log.info("step %d of %d: loss %.4f%s, learning rate %.3g", step, self._total_steps, loss, norm, learning_rate)
        self._append({"step": step, "epoch": epoch, "loss": loss, "gradientNorm": gradient_norm, "learningRate": learning_rate})
        self._metrics.set(declared.TRAINING_LOSS, loss)
        self._metrics.set(declared.TRAINING_LEARNING_RATE, learning_rate)
        self._metrics.set(declared.TRAINING_GRADIENT_NORM, gradient_norm or 0.0)
        self._reporter.update(loss=loss, learning_rate=learning_rate)

    def evaluated(self, done: Evaluated) -> None:
        """Tell of an evaluation."""
        log.info(
            "evaluation after step %d: %s", done.step, ", ".join(f"{name} {value:.4f}" for name, value in done.figures.items())
        )
        self._append({"step": done.step, "evaluation": dict(done.figures)})
        if "loss" in done.figures:  # not where it is no number
            self._metrics.set(declared.TRAINING_EVAL_LOSS, done.figures["loss"])
        self._reporter.update(evaluation=evaluation_status(done))
        self.resume_clock()

    def saved(self, step: int, seconds: float) -> None:
        """Tell of a complete checkpoint. seconds: for so long the training stood still."""
        self._reporter.update(checkpoint=CheckpointStatus(step=step, time=timestamp(time.time())))
        self._metrics.set(declared.CHECKPOINT_LAST_SUCCESS, time.time())
        self._metrics.set(declared.CHECKPOINT_DURATION, seconds)
        self.resume_clock()

    def _append(self, entry: dict[str, Any]) -> None:
        """One line of the run's history; a value that is no number is left out, as JSON has no NaN."""
        if self._ranks.world.rank == 0:
            finite = {key: value for key, value in entry.items() if not isinstance(value, float) or math.isfinite(value)}
            with self._output.history.open("a") as stream:
                stream.write(json.dumps(finite) + "\n")
