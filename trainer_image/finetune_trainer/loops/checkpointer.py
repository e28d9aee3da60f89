"""The loops' interface to checkpoints: decides when to save one, collects its content, and resumes from it."""

import dataclasses
import json
import logging
import pathlib
import time
from typing import Any

import torch

from finetune_api.status import CheckpointStatus
from finetune_api.wire import Problem
from finetune_trainer.checkpoints import content, tensors
from finetune_trainer.checkpoints.content import Progress, TrainState
from finetune_trainer.checkpoints.directory import CheckpointDirectory, read_manifest
from finetune_trainer.checkpoints.writer import HostCopy, Writer
from finetune_trainer.loops.evaluation import Evaluator
from finetune_trainer.loops.loss_guard import LossGuard
from finetune_trainer.loops.monitor import TrainingMonitor
from finetune_trainer.monitoring.progress import timestamp
from finetune_trainer.output.directory import OutputDirectory
from finetune_trainer.runtime import heartbeat
from finetune_trainer.runtime.cgroup import available_memory
from finetune_trainer.runtime.disk import is_disk_full_error
from finetune_trainer.runtime.distributed import Coordinator

log = logging.getLogger(__name__)

# A copy takes at most this share of the host's free memory.
_MAX_MEMORY_SHARE = 0.5
_MODEL_FILE, _STATE_FILE, _SKELETON_FILE = "model.safetensors", "state.safetensors", "state.json"


@dataclasses.dataclass(frozen=True)
class ResumePoint:
    """Where a training resumes. directory: of the checkpoint; None for a new training. skipped: names of damaged checkpoints."""

    directory: pathlib.Path | None
    progress: Progress | None
    saved: CheckpointStatus | None
    skipped: tuple[str, ...]

    @property
    def step(self) -> int:
        """Optimizer steps that the checkpoint holds; 0 for a new training."""
        return self.progress.step if self.progress else 0


def find_resume_point(checkpoint_directory: CheckpointDirectory, output: OutputDirectory) -> ResumePoint:
    """Return the newest complete checkpoint, and cut the history to its step. Rank 0 calls this before anything is written."""
    directory, skipped = checkpoint_directory.find_latest()
    if directory is None:
        output.truncate_history(-1)
        return ResumePoint(None, None, None, tuple(skipped))
    progress = Progress.from_state(_read_state(directory)["progress"])
    output.truncate_history(progress.step)
    log.info("resuming from the checkpoint of step %d", progress.step)
    saved = CheckpointStatus(step=progress.step, time=timestamp(read_manifest(directory)["time"]))
    return ResumePoint(directory, progress, saved, tuple(skipped))


class Checkpointer:
    """Saves and loads checkpoints. Each process has one. All ranks call save() and load() together; rank 0 writes.

    every_steps: steps between two checkpoints; None if the interval is in seconds (see TrainingMonitor).
    """

    def __init__(
        self,
        checkpoint_directory: CheckpointDirectory,
        output: OutputDirectory,
        resume_point: ResumePoint,
        coordinator: Coordinator,
        monitor: TrainingMonitor,
        guard: LossGuard,
        evaluator: Evaluator,
        every_steps: int | None,
    ) -> None:
        self._checkpoint_directory, self._output, self._resume_point = checkpoint_directory, output, resume_point
        self._coordinator, self._monitor, self._guard, self._evaluator = coordinator, monitor, guard, evaluator
        self._every_steps = every_steps
        self._writer = Writer()
        self._model_copy, self._state_copy = HostCopy(), HostCopy()
        self.saved_step = resume_point.step
        self.problem: Problem | None = None

    @property
    def resume_step(self) -> int:
        """Optimizer steps that were done before this start; 0 for a new training."""
        return self._resume_point.step

    def is_due(self, step: int, total_steps: int) -> bool:
        """Return whether to save after this step (the last, one before a stop, as the spec says). It is the same on all ranks."""
        regular = self._every_steps is not None and step % self._every_steps == 0
        return regular or step == total_steps or self._monitor.interrupted or self._monitor.should_save

    def save(self, step: int, train_state: TrainState, losses: torch.Tensor, last_logged_step: int) -> None:
        """Copy the content of a checkpoint, and start to write it while the training continues.

        losses: this process's sum of the losses since the step ``last_logged_step``. Raises FineTuneError on all ranks if a loss
        or a weight is NaN or infinite. Such a state is not saved.
        """
        started = time.monotonic()
        heartbeat.beat(heartbeat.SAVING)
        if self._coordinator.world.rank == 0:
            self._writer.wait()
        finite = self._coordinator.world.rank > 0 or content.is_finite(train_state.model)
        with self._coordinator.waiting():
            found = self._coordinator.all_gather(
                (self._guard.first_non_finite_step() or (0 if finite else step), content.get_rng_state(), float(losses))
            )
        bad, random, sums = zip(*found, strict=True)
        self._guard.raise_if_non_finite(list(bad))
        timing, evaluations = self._monitor.timing.model_copy(), list(self._evaluator.history)
        progress = Progress(step, len(found), random, sums, last_logged_step, timing, evaluations)
        self._coordinator.broadcast_from_rank0(lambda: self._start_write(progress, train_state))
        self._monitor.add_checkpoint_time(time.monotonic() - started)

    def load(self, train_state: TrainState) -> tuple[float, int]:
        """Restore all except random number generators. Return this process's losses since the last logged step, and that step."""
        directory, progress = self._resume_point.directory, self._resume_point.progress
        assert directory
        assert progress
        state = _read_state(directory)
        train_state.load(tensors.load(directory / _MODEL_FILE), state)
        sums, world = progress.losses, self._coordinator.world
        same = progress.world == world.size
        return (sums[world.rank] if same else sum(sums) / len(sums)), progress.logged

    def load_model(self, model: Any) -> None:
        """Restore the weights only."""
        assert self._resume_point.directory
        content.load_model(model, tensors.load(self._resume_point.directory / _MODEL_FILE))

    def load_rng_state(self) -> None:
        """Restore this process's random number generators. A process without a state in the checkpoint starts from the seed."""
        assert self._resume_point.progress
        states, rank = self._resume_point.progress.random, self._coordinator.world.rank
        if rank < len(states):
            content.set_rng_state(states[rank])

    def close(self, timeout_seconds: float | None = None) -> None:
        """Wait until the last checkpoint is written."""
        heartbeat.beat(heartbeat.SAVING)
        if not self._writer.wait(timeout_seconds):
            log.warning("the last checkpoint was not complete after %.0f s", timeout_seconds)

    def _start_write(self, progress: Progress, train_state: TrainState) -> None:
        """Copy to host memory and start to write. If there is no room for a copy, wait until the checkpoint is written."""
        model = content.model_tensors(train_state.model)
        skeleton, state = tensors.flatten({"progress": progress.to_state(), **train_state.state_dict()}, "state")
        free = available_memory()
        in_background = self._model_copy.missing_bytes(model) + self._state_copy.missing_bytes(state) <= _MAX_MEMORY_SHARE * free
        if in_background:
            model, state = self._model_copy.copy(model), self._state_copy.copy(state)
        best = self._evaluator.best_step(progress.step)
        self._writer.submit(lambda: self._write(progress.step, best, model, state, skeleton))
        if not in_background:
            log.info("host memory has no room for a copy of the train state: the training waits until the checkpoint is written")
            self._writer.wait()

    def _write(self, step: int, best: int | None, model: tensors.Tensors, state: tensors.Tensors, skeleton: Any) -> None:
        """Write a checkpoint, in the writer's thread. An error of the file system is reported, and the training continues."""
        files = {
            _MODEL_FILE: tensors.as_safetensors(model),
            _STATE_FILE: tensors.as_safetensors(state),
            _SKELETON_FILE: iter([memoryview(json.dumps(skeleton).encode())]),
        }
        try:
            path = self._checkpoint_directory.write(step, best, files, self._output.files_to_sync(best), self._writer.throttle)
        except OSError as error:
            self.problem = _describe_problem(error, self._checkpoint_directory.directory, step)
            log.warning("%s", self.problem.message)
            self._monitor.checkpoint_failed(self.problem)
            return
        self.saved_step, self.problem = step, None
        self._output.prune_best_models(self._checkpoint_directory.best_steps(), before=step)
        self._monitor.checkpoint_saved(step, read_manifest(path)["time"])


def _describe_problem(error: OSError, directory: pathlib.Path, step: int) -> Problem:
    """Describe the problem and its remedy in one sentence."""
    what = f"the checkpoint of step {step} could not be written to {directory}"
    if is_disk_full_error(error):
        return Problem(
            reason="DiskFull",
            message=f"{what}: the disk is full; the training continues without it: make room there, or enlarge the volume",
        )
    why = error.strerror or type(error).__name__
    return Problem(reason="WriteFailed", message=f"{what}: {why}; the training continues without it: check that volume")


def _read_state(directory: pathlib.Path) -> dict[str, Any]:
    skeleton = json.loads((directory / _SKELETON_FILE).read_text())
    state: dict[str, Any] = tensors.restore(skeleton, tensors.load(directory / _STATE_FILE))
    return state
