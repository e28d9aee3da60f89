"""Weights & Biases: a run in the project WANDB_PROJECT. With WANDB_MODE=offline, it writes files for `wandb sync`."""

import json
import os
import pathlib
from collections.abc import Sequence

import wandb

from finetune_trainer.runtime.state import write_atomically
from finetune_trainer.trackers.base import Point, Run

_PROJECT = "finetune"
_STEP_FILE = "wandb.json"
_OPEN_SECONDS = 60


class WeightsAndBiases:
    """Asks the server for the last step of the run. Offline, a file next to the run's files holds the last step."""

    def __init__(self, run: Run) -> None:
        # Sends only metrics: no program output, no source code, no list of packages.
        settings = wandb.Settings(
            console="off", silent=True, disable_git=True, save_code=False, disable_job_creation=True,
            x_save_requirements=False, init_timeout=_OPEN_SECONDS,
        )  # fmt: skip
        directory = run.directory / "wandb"
        directory.mkdir(exist_ok=True)  # otherwise wandb chooses another directory
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT), id=run.id, name=run.job, group=run.namespace,
            resume="allow", config=dict(run.config), dir=str(run.directory), settings=settings,
        )  # fmt: skip
        self._step_file = directory / _STEP_FILE
        self._last = _read(self._step_file) if self._run.offline else self._run.step - 1

    def log(self, points: Sequence[Point]) -> None:
        """Pass the points to wandb's own process. The metrics of one step may come in several points."""
        last = self._last
        for point in points:
            if point.step > self._last:
                self._run.log(dict(point.metrics), step=point.step)
                last = max(last, point.step)
        # An evaluation follows the metrics of its step, perhaps in the next call. So the last step is not closed yet.
        self._last = max(self._last, last - 1)
        if self._run.offline:
            write_atomically(self._step_file, json.dumps({"step": last}))

    def finish(self, outcome: str) -> None:
        """Wait until everything is uploaded. An interrupted run is shown as failed until it continues."""
        self._run.summary["outcome"] = outcome
        self._run.finish(exit_code=0 if outcome == "Succeeded" else 1)


def _read(step_file: pathlib.Path) -> int:
    try:
        return int(json.loads(step_file.read_text())["step"])
    except (OSError, ValueError, KeyError):
        return -1
