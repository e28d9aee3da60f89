"""What both loops tell of a run, step by step: reports, metrics, history; and whether somebody asked for an end."""

import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from finetune_api import metrics as declared
from finetune_api.status import CheckpointStatus
from finetune_api.wire import Problem, Timing
from finetune_trainer.loops.pace import Pace
from finetune_trainer.monitoring.evaluation import Evaluated, evaluation_status
from finetune_trainer.monitoring.metrics import WorkerMetrics
from finetune_trainer.monitoring.progress import Reporter, timestamp
from finetune_trainer.output.directory import Output
from finetune_trainer.output.fence import Fence
from finetune_trainer.runtime import heartbeat
from finetune_trainer.runtime.distributed import Control
from finetune_trainer.runtime.state import RunState
from finetune_trainer.tasks.base import Batch

log = logging.getLogger(__name__)

# Lines of the history that wait for room on a disk that is full.
_MOST_UNWRITTEN = 10_000


class Watch:
    """One per process. global_batch: rows of an optimizer step, for the rate. timing: where the job's time went so far.

    fence: looked at before anything is written to the output. save_every_seconds: how often rank 0's clock asks for a checkpoint,
    if it does: then ``save_agreed`` is set, on all ranks at the same step.
    """

    def __init__(
        self,
        state: RunState,
        reporter: Reporter,
        metrics: WorkerMetrics,
        ranks: Control,
        output: Output,
        global_batch: int,
        fence: Fence,
        save_every_seconds: float | None = None,
    ) -> None:
        self._run_state, self._reporter, self._metrics = state, reporter, metrics
        self._ranks, self._output, self._global_batch = ranks, output, global_batch
        self._pace = Pace(global_batch)
        self._fence, self._save_every_seconds = fence, save_every_seconds
        self._step_started = self._saved_at = time.monotonic()
        self._save_asked = False
        self._total_steps = self._tokens = 0
        self._unwritten: list[str] = []
        self.timing = Timing()
        self.interrupted = self.save_agreed = False

    def begin(self, step: int, total_steps: int) -> None:
        """Say how much there is to do."""
        self._reporter.update(message="the first step is under way", step=step, total_steps=total_steps)
        self._metrics.set(declared.TRAINING_MAX_STEPS, total_steps)
        self._total_steps = total_steps
        self._ranks.forget()
        self._step_started = self._saved_at = time.monotonic()

    def take(self, batches: Iterator[Batch], count: int) -> list[Batch]:
        """The next micro-batches, fewer at the end; the time until they are there is told: a part of the step's."""
        started = time.monotonic()
        taken = list(islice(batches, count))
        self._metrics.waited(time.monotonic() - started)
        return taken

    def waited(self, seconds: float) -> None:
        """Time until the next batch was there; a part of a step."""
        self._metrics.waited(seconds)

    def tokens(self, count: int, of_all_ranks: int) -> None:
        """Tokens of a step, padding left out: of this process, and of all of them."""
        self._metrics.tokens(count)
        self._pace.tokens(of_all_ranks)
        self._tokens += of_all_ranks

    def step_done(self, step: int, total_steps: int, epoch: float) -> bool:
        """Count the step; whether all ranks are to save and end now, the same on all of them. Sets ``save_agreed``, too."""
        now = time.monotonic()
        self._metrics.step(now - self._step_started, time.time())
        self._metrics.count(declared.TRAINING_SAMPLES, self._global_batch)
        self._pace.step(now - self._step_started)
        self.timing = self.timing.model_copy(update={"steps": self.timing.steps + now - self._step_started})
        self._step_started = now
        heartbeat.beat("training")
        self._metrics.set(declared.TRAINING_STEP, step)
        self._reporter.step(step, epoch, self._global_batch, self._tokens, self.timing)
        stop, self.save_agreed = self._ranks.agree(self._run_state.stop_requested(), self._asks_for_save(now))
        if self.save_agreed:
            self._save_asked = False
        if stop and step < total_steps:
            self.interrupted = True
            heartbeat.beat(heartbeat.SAVING)
        return self.interrupted

    def _asks_for_save(self, now: float) -> bool:
        """On rank 0, once it is time, and once only: the others hear of it a step later."""
        if self._save_every_seconds is None or self._ranks.world.rank > 0 or self._save_asked:
            return False
        self._save_asked = now - self._saved_at >= self._save_every_seconds
        return self._save_asked

    def logged(self, step: int, epoch: float, loss: float, gradient_norm: float | None, learning_rate: float) -> None:
        """Write the figures of a step down."""
        norm = f", gradient norm {gradient_norm:.3f}" if gradient_norm is not None else ""
        entry = {"step": step, "epoch": epoch, "loss": loss, "gradientNorm": gradient_norm, "learningRate": learning_rate}
        entry |= self._pace.take()
        log.info(
            "step %d of %d: loss %.4f%s, learning rate %.3g", step, self._total_steps, loss, norm, learning_rate,
            extra={"figures": entry},
        )  # fmt: skip
        self._append(entry)
        self._metrics.set(declared.TRAINING_LOSS, loss)
        self._metrics.set(declared.TRAINING_LEARNING_RATE, learning_rate)
        self._metrics.set(declared.TRAINING_GRADIENT_NORM, gradient_norm or 0.0)
        self._metrics.logged()
        self._reporter.update(loss=loss, learning_rate=learning_rate)

    def evaluated(self, done: Evaluated) -> None:
        """Tell of an evaluation."""
        entry = {"step": done.step, "evaluation": dict(done.figures)}
        shown = ", ".join(f"{name} {value:.4f}" for name, value in done.figures.items())
        log.info("evaluation after step %d: %s", done.step, shown, extra={"figures": entry})
        self._append(entry)
        self._metrics.evaluated(done.figures)
        self._reporter.update(evaluation=evaluation_status(done))

    def improved(self, best: Evaluated) -> None:
        """Tell of the best evaluation so far."""
        self._reporter.update(best=evaluation_status(best))

    def begin_from(self, saved: CheckpointStatus | None, timing: Timing, skipped: Sequence[str]) -> None:
        """Tell of what was there before: the checkpoint to go on from, the time until then, checkpoints that are damaged."""
        self.timing = timing
        self._reporter.update(checkpoint=saved, timing=timing, skipped_checkpoints=list(skipped) or None)

    def evaluation_took(self, seconds: float) -> None:
        """Count an evaluation's time, which is no step's."""
        self._step_started += seconds
        self.timing = self.timing.model_copy(update={"evaluation": self.timing.evaluation + seconds})
        self._reporter.update(timing=self.timing)

    def stood_still(self, seconds: float) -> None:
        """Count the time in which nothing was trained because of a checkpoint."""
        self._step_started += seconds
        self._saved_at = time.monotonic()
        self.timing = self.timing.model_copy(update={"checkpoint": self.timing.checkpoint + seconds})
        self._metrics.set(declared.CHECKPOINT_DURATION, seconds)

    def saved(self, step: int, when: float) -> None:
        """Tell of a complete checkpoint; may be called by another thread. when: Unix time."""
        self._reporter.update(checkpoint=CheckpointStatus(step=step, time=timestamp(when)), checkpoint_problem=None)
        self._metrics.set(declared.CHECKPOINT_LAST_SUCCESS, when)

    def not_saved(self, problem: Problem) -> None:
        """Tell of a checkpoint that could not be written; may be called by another thread."""
        self._reporter.update(checkpoint_problem=problem)
        self._metrics.count(declared.CHECKPOINT_FAILURES)

    def skipped(self, step: int, epoch: float) -> None:
        """Write down that a step's batch was left out."""
        log.warning("the batch of step %d is left out: the loss was no number there", step)
        self._append({"step": step, "epoch": epoch, "skipped": True})

    def _append(self, entry: dict[str, Any]) -> None:
        """One line of the history, with when and in which attempt; a value that is no number is left out: JSON has no NaN."""
        if self._ranks.world.rank == 0:
            entry |= {"time": timestamp(time.time()), "attempt": self._reporter.report.attempt}
            finite = {key: value for key, value in entry.items() if not isinstance(value, float) or math.isfinite(value)}
            self._fence.check()
            self._unwritten = self._output.append_history([*self._unwritten, json.dumps(finite) + "\n"][-_MOST_UNWRITTEN:])
