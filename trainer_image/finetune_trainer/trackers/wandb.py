"""Weights & Biases: a run in the project of WANDB_PROJECT, or with WANDB_MODE=offline files that `wandb sync` uploads later."""

import json
import os
import pathlib
from collections.abc import Sequence

import wandb

from finetune_trainer.runtime.state import write_atomically
from finetune_trainer.trackers.base import Point, Run

_PROJECT = "finetune"
_MARK = "wandb.json"
_OPEN_SECONDS = 60


class WeightsAndBiases:
    """The server says up to which step it has the run. Offline there is none: then a file beside the run's does."""

    def __init__(self, run: Run) -> None:
        # Nothing but figures: no output of programs, no source code, no list of packages.
        settings = wandb.Settings(
            console="off", silent=True, disable_git=True, save_code=False, disable_job_creation=True,
            x_save_requirements=False, init_timeout=_OPEN_SECONDS,
        )  # fmt: skip
        directory = run.directory / "wandb"
        directory.mkdir(exist_ok=True)  # else it falls back to a directory of its own choice
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT), id=run.id, name=run.job, group=run.namespace,
            resume="allow", config=dict(run.config), dir=str(run.directory), settings=settings,
        )  # fmt: skip
        self._mark = directory / _MARK
        self._last = _read(self._mark) if self._run.offline else self._run.step - 1

    def log(self, points: Sequence[Point]) -> None:
        """Hand over to its own process; the figures of one step come one after the other."""
        last = self._last
        for point in points:
            if point.step > self._last:
                self._run.log(dict(point.figures), step=point.step)
                last = max(last, point.step)
        # An evaluation comes after the step's own figures, perhaps in the next call: the last step stays open.
        self._last = max(self._last, last - 1)
        if self._run.offline:
            write_atomically(self._mark, json.dumps({"step": last}))

    def finish(self, outcome: str) -> None:
        """Wait until all is uploaded. One that was interrupted is shown as failed until it goes on."""
        self._run.summary["outcome"] = outcome
        self._run.finish(exit_code=0 if outcome == "Succeeded" else 1)


def _read(mark: pathlib.Path) -> int:
    try:
        return int(json.loads(mark.read_text())["step"])
    except (OSError, ValueError, KeyError):
        return -1
