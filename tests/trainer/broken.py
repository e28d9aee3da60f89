"""Trains several jobs in one process, or one gang of processes, and breaks each of them off at given steps.

`python broken.py FILE`, or with torchrun in front of it. FILE: a JSON list of {config, breaks, leave}; a break is a kind and a
step, after each the training begins again in the same directory, and comes to its end after the last unless `leave` says no:

stop: an orderly end, as on SIGTERM. die: loses what is not saved, as a process that is killed does (but needs no new process).
full: nothing more can be written from that step on, and again five steps later. robbed: another attempt takes the directory.

Prints a JSON object per start: how it ended, and what its report said.
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
from finetune_trainer.loops import skipped_batches as skipping
from finetune_trainer.monitoring.progress import Reporter
from finetune_trainer.runtime.distributed import Control, World, join
from finetune_trainer.runtime.state import RunState

FULL_FOR_STEPS = 5


class Died(BaseException):
    """The process is gone, in the middle of whatever it did."""


class Breaking(Reporter):
    """A reporter that breaks the run off when a step is told to it. problems: of checkpoints, as they were told."""

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
            raise Died
        if self._kind == "stop":
            self._run_state.request_stop()
        if self._kind == "full":
            self._fill() if step < self._at + FULL_FOR_STEPS else (self._output / "filler").unlink(missing_ok=True)
        if self._kind == "robbed":
            (self._output / "owner.json").write_text(json.dumps({"attempt": 2, "token": "2-another"}))

    def _fill(self) -> None:
        with contextlib.suppress(OSError), (self._output / "filler").open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"0" * size):
                        pass


def tell(what: dict[str, Any]) -> None:
    """In one piece: all ranks write to the same pipe."""
    os.write(sys.stdout.fileno(), (json.dumps(what) + "\n").encode())


def run(config: RunConfig, ranks: Control, kind: str, at: int) -> bool:
    """One start; whether nothing is left to do."""
    from finetune_trainer.train import train

    output = pathlib.Path(config.output)
    # A thread of a training that was broken off may still write there while it is removed.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        state = RunState(pathlib.Path(directory))
        state.create()
        reporter = Breaking(state, ranks.world.local_rank == 0, output, kind, at)
        told: dict[str, Any] = {"output": config.output, "rank": ranks.world.rank}
        try:
            train(config, ranks, state, reporter)
        except Died:
            return False
        except FineTuneError as error:
            tell(told | {"reason": error.reason, "message": error.message})
            again = error.reason is Reason.NON_FINITE_LOSS and config.spec.recovery.on_non_finite_loss == "SkipBatch"
            return not (again and skipping.may_skip(output)) or run(config, ranks, kind, at)
        report = reporter.report.model_dump(mode="json", by_alias=True)
        tell(told | {"report": report, "problems": reporter.problems})
        return reporter.report.phase == "Succeeded"


def main() -> None:
    jobs = json.loads(pathlib.Path(sys.argv[1]).read_text())
    with tempfile.TemporaryDirectory() as directory:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory  # before anything is imported that counts
        from finetune_trainer.train import configure_logging

        configs = [RunConfig.model_validate(job["config"]) for job in jobs]
        world = World.from_environment()
        configure_logging(world.rank, configs[0])
        join(world, 300)
        ranks = Control(world)
        for config, job in zip(configs, jobs, strict=True):
            for kind, at in [*job["breaks"], *([] if job["leave"] else [("", 0)])]:
                if run(config, ranks, kind, at):
                    break
        ranks.close()


if __name__ == "__main__":
    main()
