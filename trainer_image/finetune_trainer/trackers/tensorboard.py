"""TensorBoard: event files below the output directory."""

import shutil
from collections.abc import Sequence

from tensorboardX import SummaryWriter

from finetune_trainer.trackers.base import Marks, Point, Run

DIRECTORY = "tensorboard"


class TensorBoard:
    """Writes the files anew each time, as the whole history is at hand: so no step is there twice."""

    def __init__(self, run: Run) -> None:
        directory = run.directory / DIRECTORY
        shutil.rmtree(directory, ignore_errors=True)
        self._writer = SummaryWriter(str(directory), flush_secs=5)
        self._marks = Marks()

    def log(self, points: Sequence[Point]) -> None:
        """Append."""
        for point in points:
            for name, value in self._marks.new(point).items():
                self._writer.add_scalar(name, value, point.step, walltime=point.time)
                self._marks.set(name, point.step)
        self._writer.flush()

    def finish(self, outcome: str) -> None:
        """Close the file."""
        self._writer.close()
