"""Checkpoints as the loops use them: when one is due, what it takes along, how to go on from it."""

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
from finetune_trainer.checkpoints.content import Parts, Progress
from finetune_trainer.checkpoints.store import Store, read_manifest
from finetune_trainer.checkpoints.writer import HostCopy, Writer, free_memory
from finetune_trainer.loops.evaluation import Evaluator
from finetune_trainer.loops.finite import LossGuard
from finetune_trainer.loops.watch import Watch
from finetune_trainer.monitoring.progress import timestamp
from finetune_trainer.output.directory import Output
from finetune_trainer.runtime import heartbeat
from finetune_trainer.runtime.disk import is_full
from finetune_trainer.runtime.distributed import Control

log = logging.getLogger(__name__)

# Of the host's free memory a copy takes no more than this share.
_SHARE = 0.5
_MODEL, _STATE, _REST = "model.safetensors", "state.safetensors", "state.json"


@dataclasses.dataclass(frozen=True)
class Resumption:
    """Where a training goes on. directory: of the checkpoint; None at the beginning. skipped: names of damaged checkpoints."""

    directory: pathlib.Path | None
    progress: Progress | None
    saved: CheckpointStatus | None
    skipped: tuple[str, ...]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.progress.step if self.progress else 0


def find_resumption(store: Store, output: Output) -> Resumption:
    """The newest checkpoint that is whole, with the history as it was when it was made. On rank 0, before anything is written."""
    directory, skipped = store.open()
    if directory is None:
        output.truncate_history(-1)
        return Resumption(None, None, None, tuple(skipped))
    progress = Progress.from_state(_read_state(directory)["progress"])
    output.truncate_history(progress.step)
    log.info("going on from the checkpoint of step %d", progress.step)
    saved = CheckpointStatus(step=progress.step, time=timestamp(read_manifest(directory)["time"]))
    return Resumption(directory, progress, saved, tuple(skipped))


class Keeper:
    """Saves and loads. One per process; rank 0 writes, all of them call save() and load() together.

    every_steps: how often to save, None where the clock decides (see Watch).
    """

    def __init__(
        self,
        store: Store,
        output: Output,
        resumption: Resumption,
        ranks: Control,
        watch: Watch,
        guard: LossGuard,
        evaluator: Evaluator,
        every_steps: int | None,
    ) -> None:
        self._store, self._output, self._resumption = store, output, resumption
        self._ranks, self._watch, self._guard, self._evaluator = ranks, watch, guard, evaluator
        self._every_steps = every_steps
        self._writer = Writer()
        self._model_copy, self._state_copy = HostCopy(), HostCopy()
        self.saved_step = resumption.step
        self.problem: Problem | None = None

    @property
    def resumes_from(self) -> int:
        """Optimizer steps that were done before; 0 at the beginning."""
        return self._resumption.step

    def is_due(self, step: int, total_steps: int) -> bool:
        """Whether to save after ``step`` steps, the same on all ranks: after the last, before a stop, and as often as asked."""
        regular = self._every_steps is not None and step % self._every_steps == 0
        return regular or step == total_steps or self._watch.interrupted or self._watch.save_agreed

    def save(self, step: int, parts: Parts, losses: torch.Tensor, logged: int) -> None:
        """Copy what a checkpoint holds, and let it be written while the training goes on.

        losses: this process's sum of the losses since the step ``logged``. Raises FineTuneError, on all ranks alike, where the
        training has gone astray: that is not saved.
        """
        started = time.monotonic()
        heartbeat.beat(heartbeat.SAVING)
        if self._ranks.world.rank == 0:
            self._writer.wait()
        finite = self._ranks.world.rank > 0 or content.is_finite(parts.model)
        with self._ranks.waiting():
            found = self._ranks.gather(
                (self._guard.first_bad() or (0 if finite else step), content.random_state(), float(losses))
            )
        bad, random, sums = zip(*found, strict=True)
        self._guard.judge(list(bad))
        timing, evaluations = self._watch.timing.model_copy(), list(self._evaluator.history)
        progress = Progress(step, len(found), random, sums, logged, timing, evaluations)
        self._ranks.from_rank_0(lambda: self._begin(progress, parts))
        self._watch.stood_still(time.monotonic() - started)

    def load(self, parts: Parts) -> tuple[float, int]:
        """Put all but the random numbers back; this process's sum of losses since the last logged step, and that step."""
        directory, progress = self._resumption.directory, self._resumption.progress
        assert directory
        assert progress
        state = _read_state(directory)
        parts.load(tensors.load(directory / _MODEL), state)
        sums, world = progress.losses, self._ranks.world
        same = progress.world == world.size
        return (sums[world.rank] if same else sum(sums) / len(sums)), progress.logged

    def load_model(self, model: Any) -> None:
        """Put the weights alone back."""
        assert self._resumption.directory
        content.load_model(model, tensors.load(self._resumption.directory / _MODEL))

    def load_random(self) -> None:
        """Go on with the random numbers of this process; one more than before begins with the seed."""
        assert self._resumption.progress
        states, rank = self._resumption.progress.random, self._ranks.world.rank
        if rank < len(states):
            content.set_random_state(states[rank])

    def close(self, timeout_seconds: float | None = None) -> None:
        """Wait for what is being written."""
        heartbeat.beat(heartbeat.SAVING)
        if not self._writer.wait(timeout_seconds):
            log.warning("the last checkpoint was not complete after %.0f s", timeout_seconds)

    def _begin(self, progress: Progress, parts: Parts) -> None:
        """Copy to the host's memory and start to write; where there is no room for a copy, write at once."""
        model = content.model_tensors(parts.model)
        skeleton, state = tensors.flatten({"progress": progress.to_state(), **parts.state()}, "state")
        free = free_memory()
        in_background = self._model_copy.missing_bytes(model) + self._state_copy.missing_bytes(state) <= _SHARE * free
        if in_background:
            model, state = self._model_copy.take(model), self._state_copy.take(state)
        best = self._evaluator.best_step(progress.step)
        self._writer.submit(lambda: self._write(progress.step, best, model, state, skeleton))
        if not in_background:
            log.info("host memory has no room for a copy of the training: it waits until the checkpoint is written")
            self._writer.wait()

    def _write(self, step: int, best: int | None, model: tensors.Tensors, state: tensors.Tensors, skeleton: Any) -> None:
        """In the writer's thread. An error of the file system is told, and the training goes on."""
        files = {
            _MODEL: tensors.as_safetensors(model),
            _STATE: tensors.as_safetensors(state),
            _REST: iter([memoryview(json.dumps(skeleton).encode())]),
        }
        try:
            path = self._store.write(step, best, files, self._output.durable_before(best), self._writer.pace)
        except OSError as error:
            self.problem = _explain(error, self._store.directory, step)
            log.warning("%s", self.problem.message)
            self._watch.not_saved(self.problem)
            return
        self.saved_step, self.problem = step, None
        self._output.drop_best_models(self._store.best_steps(), before=step)
        self._watch.saved(step, read_manifest(path)["time"])


def _explain(error: OSError, directory: pathlib.Path, step: int) -> Problem:
    """In one sentence, with what to do."""
    what = f"the checkpoint of step {step} could not be written to {directory}"
    if is_full(error):
        return Problem(
            reason="DiskFull",
            message=f"{what}: the disk is full; the training goes on without: make room there, or enlarge the volume",
        )
    why = error.strerror or type(error).__name__
    return Problem(reason="WriteFailed", message=f"{what}: {why}; the training goes on without: look after that volume")


def _read_state(directory: pathlib.Path) -> dict[str, Any]:
    skeleton = json.loads((directory / _REST).read_text())
    state: dict[str, Any] = tensors.restore(skeleton, tensors.load(directory / _STATE))
    return state
