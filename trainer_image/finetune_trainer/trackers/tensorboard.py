"""TensorBoard: event files in the output directory."""

import shutil
from collections.abc import Sequence

from tensorboardX import SummaryWriter

from finetune_trainer.trackers.base import LoggedSteps, Point, Run

DIRECTORY = "tensorboard"


class TensorBoard:
    """Rewrites the files from the whole history each time it is opened, so that no step appears twice."""

    def __init__(self, run: Run) -> None:
        directory = run.directory / DIRECTORY
        shutil.rmtree(directory, ignore_errors=True)
        self._writer = SummaryWriter(str(directory), flush_secs=5)
        self._logged_steps = LoggedSteps()

    def log(self, points: Sequence[Point]) -> None:
        """Append the new metrics."""
        for point in points:
            for name, value in self._logged_steps.new(point).items():
                self._writer.add_scalar(name, value, point.step, walltime=point.time)
                self._logged_steps.set(name, point.step)
        self._writer.flush()

    def finish(self, outcome: str) -> None:
        """Close the file."""
        self._writer.close()
