"""Trains several jobs in one process or one group of processes, and interrupts each of them at given steps.

`python train_with_interruptions.py FILE`, or with torchrun in front of it. FILE: a JSON list of {config, interruptions, leave}.
An interruption is a kind and a step. After each interruption the training starts again in the same directory. After the last
one it runs to its end, unless `leave` is true. Kinds:

stop: an orderly end, as on SIGTERM. die: loses everything that is not saved, like a killed process (but needs no new process).
full: the disk is full from that step on, for five steps. fenced: another attempt takes the directory.

Prints a JSON object per start: how it ended, and its report.
"""

import contextlib
import json
import os
import pathlib
import sys
import tempfile
from typing import Any

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.wire import RunConfig
from finetune_trainer.loops import skipped_batches
from finetune_trainer.monitoring.progress import Reporter
from finetune_trainer.runtime.distributed import Coordinator, World, init_process_group
from finetune_trainer.runtime.state import RunState

FULL_FOR_STEPS = 5


class SimulatedCrash(BaseException):
    """Ends a training without any cleanup, as if its process were killed."""


class InterruptingReporter(Reporter):
    """A reporter that interrupts the run when a step is reported. problems: the checkpoint problems that were reported."""

    def __init__(self, state: RunState, writes: bool, output: pathlib.Path, kind: str, at: int) -> None:
        super().__init__(state, 1, writes)
        self._run_state, self._output, self._kind, self._at = state, output, kind, at
        self.problems: list[str | None] = []

    def update(self, **fields: Any) -> None:
        super().update(**fields)
        if "checkpoint_problem" in fields:
            problem = fields["checkpoint_problem"]
            self.problems.append(problem and problem.reason)

    def step(self, step: int, *rest: Any) -> None:
        super().step(step, *rest)
        if step < self._at:
            return
        if self._kind == "die":
            raise SimulatedCrash
        if self._kind == "stop":
            self._run_state.request_stop()
        if self._kind == "full":
            self._fill() if step < self._at + FULL_FOR_STEPS else (self._output / "filler").unlink(missing_ok=True)
        if self._kind == "fenced":
            (self._output / "owner.json").write_text(json.dumps({"attempt": 2, "token": "2-another"}))

    def _fill(self) -> None:
        with contextlib.suppress(OSError), (self._output / "filler").open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"0" * size):
                        pass


def print_json(what: dict[str, Any]) -> None:
    """Print an object by a single write, because all ranks write to the same pipe."""
    os.write(sys.stdout.fileno(), (json.dumps(what) + "\n").encode())


def run(config: RunConfig, coordinator: Coordinator, kind: str, at: int) -> bool:
    """Start a training once; return whether the job is finished."""
    from finetune_trainer.train import train

    output = pathlib.Path(config.output)
    # A thread of an interrupted training may still write to the directory while it is removed.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        state = RunState(pathlib.Path(directory))
        state.create()
        reporter = InterruptingReporter(state, coordinator.world.local_rank == 0, output, kind, at)
        outcome: dict[str, Any] = {"output": config.output, "rank": coordinator.world.rank}
        try:
            train(config, coordinator, state, reporter)
        except SimulatedCrash:
            return False
        except FineTuneError as error:
            print_json(outcome | {"reason": error.reason, "message": error.message})
            again = error.reason is Reason.NON_FINITE_LOSS and config.spec.recovery.on_non_finite_loss == "SkipBatch"
            return not (again and skipped_batches.may_skip(output)) or run(config, coordinator, kind, at)
        report = reporter.report.model_dump(mode="json", by_alias=True)
        print_json(outcome | {"report": report, "problems": reporter.problems})
        return reporter.report.phase == "Succeeded"


def main() -> None:
    jobs = json.loads(pathlib.Path(sys.argv[1]).read_text())
    with tempfile.TemporaryDirectory() as directory:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory  # before the module of the metrics is imported
        from finetune_trainer import train as training
        from finetune_trainer.loops.monitor import TrainingMonitor

        def build_monitor(*arguments: Any) -> TrainingMonitor:
            """Make the interval of checkpoints shorter than each step."""
            *others, seconds = arguments
            return TrainingMonitor(*others, seconds and 1e-6 * seconds)

        training.TrainingMonitor = build_monitor  # type: ignore[assignment, misc]
        configs = [RunConfig.model_validate(job["config"]) for job in jobs]
        world = World.from_environment()
        training.configure_logging(world.rank, configs[0])
        init_process_group(world, b"key", 300)
        coordinator = Coordinator(world)
        for config, job in zip(configs, jobs, strict=True):
            for kind, at in [*job["interruptions"], *([] if job["leave"] else [("", 0)])]:
                if run(config, coordinator, kind, at):
                    break
        coordinator.close()


if __name__ == "__main__":
    main()
