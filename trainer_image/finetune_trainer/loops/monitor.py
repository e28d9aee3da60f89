"""The training monitor of both loops: reports each step (report, metrics, history), and checks for a stop request."""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from finetune_api import metrics as declared
from finetune_api.status import CheckpointStatus
from finetune_api.wire import Problem, Timing
from finetune_trainer.loops.diagnosis import Diagnosis
from finetune_trainer.loops.throughput import Throughput
from finetune_trainer.monitoring.evaluation import EvaluationResult, evaluation_status
from finetune_trainer.monitoring.metrics import WorkerMetrics
from finetune_trainer.monitoring.progress import Reporter, timestamp
from finetune_trainer.output.directory import OutputDirectory
from finetune_trainer.output.fence import Fence
from finetune_trainer.runtime import heartbeat
from finetune_trainer.runtime.distributed import Coordinator
from finetune_trainer.runtime.state import RunState
from finetune_trainer.tasks.base import Batch

log = logging.getLogger(__name__)

# Maximum number of history lines that are kept in memory while the disk is full.
_MAX_UNWRITTEN_LINES = 10_000


class TrainingMonitor:
    """Monitors the training of one process. global_batch: rows of an optimizer step. timing: how the job's time was used so far.

    fence: checked before each write to the output. save_every_seconds: interval of checkpoints by the clock of rank 0; None:
    no interval. When it is over, ``should_save`` is set on all ranks at the same step.
    """

    def __init__(
        self,
        state: RunState,
        reporter: Reporter,
        metrics: WorkerMetrics,
        coordinator: Coordinator,
        output: OutputDirectory,
        global_batch: int,
        fence: Fence,
        save_every_seconds: float | None = None,
    ) -> None:
        self._run_state, self._reporter, self._metrics = state, reporter, metrics
        self._coordinator, self._output, self._global_batch = coordinator, output, global_batch
        self._throughput = Throughput(global_batch)
        self._fence, self._save_every_seconds = fence, save_every_seconds
        self._step_started = self._saved_at = time.monotonic()
        self._save_requested = False
        self._total_steps = self._tokens = 0
        self._unwritten_lines: list[str] = []
        self.timing = Timing()
        self.diagnosis: Diagnosis | None = None  # only on rank 0
        self.interrupted = self.should_save = False

    def start(self, step: int, total_steps: int) -> None:
        """Report that the first step starts, and the total number of steps."""
        self._reporter.update(message="running the first step", step=step, total_steps=total_steps)
        self._metrics.set(declared.TRAINING_MAX_STEPS, total_steps)
        self._total_steps = total_steps
        self._coordinator.discard_pending()
        self._step_started = self._saved_at = time.monotonic()

    def next_micro_batches(self, batches: Iterator[Batch], count: int) -> list[Batch]:
        """Return the next micro-batches, fewer at the end. Count the time until they arrive, which is part of the step's time."""
        started = time.monotonic()
        taken = list(islice(batches, count))
        self._metrics.add_data_wait(time.monotonic() - started)
        if self.diagnosis is not None:
            self.diagnosis.add_time(0.0, time.monotonic() - started)
        return taken

    def add_tokens(self, count: int, global_count: int) -> None:
        """Count the tokens of a step without padding: of this process, and of all processes."""
        self._metrics.add_tokens(count)
        self._throughput.add_tokens(global_count)
        self._tokens += global_count

    def step_done(self, step: int, total_steps: int, epoch: float) -> bool:
        """Count the step. Return whether to save and stop now, the same on all ranks. Also set ``should_save``."""
        now = time.monotonic()
        self._metrics.observe_step(now - self._step_started, time.time())
        self._metrics.inc(declared.TRAINING_SAMPLES, self._global_batch)
        self._throughput.add_step(now - self._step_started)
        if self.diagnosis is not None:
            self.diagnosis.add_time(now - self._step_started, 0.0)
        self.timing = self.timing.model_copy(update={"steps": self.timing.steps + now - self._step_started})
        self._step_started = now
        heartbeat.beat("training")
        self._metrics.set(declared.TRAINING_STEP, step)
        self._reporter.step(step, epoch, self._global_batch, self._tokens, self.timing)
        stop, self.should_save = self._coordinator.all_reduce_any(self._run_state.stop_requested(), self._save_is_due(now))
        if self.should_save:
            self._save_requested = False
        if stop and step < total_steps:
            self.interrupted = True
            heartbeat.beat(heartbeat.SAVING)
        return self.interrupted

    def _save_is_due(self, now: float) -> bool:
        """Return True on rank 0 when the interval is over, once per checkpoint. All ranks get the answer one step later."""
        if self._save_every_seconds is None or self._coordinator.world.rank > 0 or self._save_requested:
            return False
        self._save_requested = now - self._saved_at >= self._save_every_seconds
        return self._save_requested

    def log_step(self, step: int, epoch: float, loss: float, gradient_norm: float | None, learning_rate: float) -> None:
        """Log and report the metrics of a step."""
        norm = f", gradient norm {gradient_norm:.3f}" if gradient_norm is not None else ""
        entry = {"step": step, "epoch": epoch, "loss": loss, "gradientNorm": gradient_norm, "learningRate": learning_rate}
        entry |= self._throughput.read_and_reset()
        log.info(
            "step %d of %d: loss %.4f%s, learning rate %.3g", step, self._total_steps, loss, norm, learning_rate,
            extra={"metrics": entry},
        )  # fmt: skip
        self._append_history(entry)
        self._metrics.set(declared.TRAINING_LOSS, loss)
        self._metrics.set(declared.TRAINING_LEARNING_RATE, learning_rate)
        self._metrics.set(declared.TRAINING_GRADIENT_NORM, gradient_norm or 0.0)
        self._metrics.set_device_stats()
        self._reporter.update(loss=loss, learning_rate=learning_rate)
        if self.diagnosis is not None:
            self.diagnosis.add_step(entry)

    def log_evaluation(self, result: EvaluationResult, details: Mapping[str, Any]) -> None:
        """Log and report an evaluation."""
        entry = {"step": result.step, "evaluation": dict(result.metrics)}
        shown = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
        log.info("evaluation after step %d: %s", result.step, shown, extra={"metrics": entry})
        self._append_history(entry)
        self._metrics.set_evaluation(result.metrics)
        self._reporter.update(evaluation=evaluation_status(result, self._baseline))
        if self.diagnosis is not None:
            self.diagnosis.add_evaluation(details)

    def record_best(self, best: EvaluationResult) -> None:
        """Report the best evaluation so far."""
        self._reporter.update(best=evaluation_status(best, self._baseline))

    @property
    def _baseline(self) -> Mapping[str, float]:
        return self.diagnosis.baseline if self.diagnosis is not None else {}

    def resume_from(self, saved: CheckpointStatus | None, timing: Timing, skipped: Sequence[str]) -> None:
        """Report the resume point: the checkpoint, the use of time until then, and the damaged checkpoints."""
        self.timing = timing
        self._reporter.update(checkpoint=saved, timing=timing, skipped_checkpoints=list(skipped) or None)
        if self._reporter.report.from_step is None:
            self._reporter.update(from_step=saved.step if saved is not None else 0)

    def add_evaluation_time(self, seconds: float) -> None:
        """Count the time of an evaluation, which is not part of a step's time."""
        self._step_started += seconds
        self.timing = self.timing.model_copy(update={"evaluation": self.timing.evaluation + seconds})
        self._reporter.update(timing=self.timing)

    def add_checkpoint_time(self, seconds: float) -> None:
        """Count the time in which the training paused for a checkpoint."""
        self._step_started += seconds
        self._saved_at = time.monotonic()
        self.timing = self.timing.model_copy(update={"checkpoint": self.timing.checkpoint + seconds})
        self._metrics.set(declared.CHECKPOINT_DURATION, seconds)

    def checkpoint_saved(self, step: int, when: float) -> None:
        """Report a complete checkpoint. Another thread may call this. when: Unix time."""
        self._reporter.update(checkpoint=CheckpointStatus(step=step, time=timestamp(when)), checkpoint_problem=None)
        self._metrics.set(declared.CHECKPOINT_LAST_SUCCESS, when)

    def checkpoint_failed(self, problem: Problem) -> None:
        """Report a checkpoint that could not be written. Another thread may call this."""
        self._reporter.update(checkpoint_problem=problem)
        self._metrics.inc(declared.CHECKPOINT_FAILURES)

    def batch_skipped(self, step: int, epoch: float) -> None:
        """Log that a step's batch was skipped."""
        log.warning("the batch of step %d is skipped, because its loss was NaN or infinite before", step)
        self._append_history({"step": step, "epoch": epoch, "skipped": True})

    def _append_history(self, entry: dict[str, Any]) -> None:
        """Append a line to the history, with time and attempt. NaN and infinite values are left out, because JSON has none."""
        if self._coordinator.world.rank == 0:
            entry |= {"time": timestamp(time.time()), "attempt": self._reporter.report.attempt}
            finite = {key: value for key, value in entry.items() if not isinstance(value, float) or math.isfinite(value)}
            self._fence.check()
            self._unwritten_lines = self._output.append_history(
                [*self._unwritten_lines, json.dumps(finite) + "\n"][-_MAX_UNWRITTEN_LINES:]
            )
