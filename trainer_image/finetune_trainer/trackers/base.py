"""The interface of a tracker, and the data that it gets."""

import dataclasses
import datetime
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

# Fields of a history line that are not training metrics.
_NON_METRIC_FIELDS = ("step", "time", "attempt", "evaluation")


@dataclasses.dataclass(frozen=True)
class Point:
    """Metrics after ``step`` optimizer steps, with names such as train/loss and eval/accuracy. time: Unix seconds."""

    step: int
    metrics: Mapping[str, float]
    time: float


@dataclasses.dataclass(frozen=True)
class Run:
    """The run that a tracker shows.

    id: the same for all attempts of the job. config: spec and resolved commits, without secrets. directory: output directory.
    """

    id: str
    job: str
    namespace: str
    config: Mapping[str, Any]
    directory: pathlib.Path


class Tracker(Protocol):
    """An open tracker. Methods raise the errors of its library; after an error, a new tracker is opened."""

    def log(self, points: Sequence[Point]) -> None:
        """Send the points, except those of steps that the tracker already has."""

    def finish(self, outcome: str) -> None:
        """Report the outcome (Succeeded, Failed, Interrupted) and send everything."""


def point_from_entry(entry: Mapping[str, Any]) -> Point:
    """Convert a line of the history. The point has no metrics if the line only reports a skipped batch."""
    if "evaluation" in entry:
        metrics = {f"eval/{name}": value for name, value in entry["evaluation"].items()}
    else:
        metrics = {f"train/{name}": value for name, value in entry.items() if name not in _NON_METRIC_FIELDS}
    numbers = {
        name: float(value) for name, value in metrics.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return Point(entry["step"], numbers, datetime.datetime.fromisoformat(entry["time"]).timestamp())


class LoggedSteps:
    """Last logged step of each metric. Steps that are repeated after a restart have the same values and are not logged again."""

    def __init__(self) -> None:
        self._steps: dict[str, int] = {}

    def known(self, name: str) -> bool:
        """Return whether the last step of this metric is known."""
        return name in self._steps

    def set(self, name: str, step: int) -> None:
        """Set the last step of this metric; -1 if it was never logged."""
        self._steps[name] = step

    def new(self, point: Point) -> dict[str, float]:
        """Return the metrics of a point that are not logged yet."""
        return {name: value for name, value in point.metrics.items() if point.step > self._steps.get(name, -1)}
