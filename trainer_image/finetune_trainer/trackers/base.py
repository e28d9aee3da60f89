"""What goes to a tracker, and what a tracker is."""

import dataclasses
import datetime
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

# What of a line of the history is no figure of the training.
_NO_FIGURES = ("step", "time", "attempt", "evaluation")


@dataclasses.dataclass(frozen=True)
class Point:
    """Figures after ``step`` optimizer steps, by names such as train/loss and eval/accuracy. time: Unix seconds."""

    step: int
    figures: Mapping[str, float]
    time: float


@dataclasses.dataclass(frozen=True)
class Run:
    """What a tracker is to show. id: the same for the whole job. config: spec and resolved commits, without any secret.

    directory: the output's.
    """

    id: str
    job: str
    namespace: str
    config: Mapping[str, Any]
    directory: pathlib.Path


class Tracker(Protocol):
    """Open when it is made. Methods raise whatever its library does; it is made anew after that."""

    def log(self, points: Sequence[Point]) -> None:
        """Send what it does not have yet; steps that it has are left out."""

    def finish(self, outcome: str) -> None:
        """Say how it ended (Succeeded, Failed, Interrupted) and send everything."""


def point_of(entry: Mapping[str, Any]) -> Point:
    """A line of the history; without figures where it only says that a batch was left out."""
    if "evaluation" in entry:
        figures = {f"eval/{name}": value for name, value in entry["evaluation"].items()}
    else:
        figures = {f"train/{name}": value for name, value in entry.items() if name not in _NO_FIGURES}
    numbers = {
        name: float(value) for name, value in figures.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return Point(entry["step"], numbers, datetime.datetime.fromisoformat(entry["time"]).timestamp())


class Marks:
    """Up to which step a figure is there already: steps that are done again after a restart are the same once more."""

    def __init__(self) -> None:
        self._steps: dict[str, int] = {}

    def known(self, name: str) -> bool:
        """Whether anything was said of this figure."""
        return name in self._steps

    def set(self, name: str, step: int) -> None:
        """It is there up to this step; -1 for not at all."""
        self._steps[name] = step

    def new(self, point: Point) -> dict[str, float]:
        """The figures of a point that are not there yet."""
        return {name: value for name, value in point.figures.items() if point.step > self._steps.get(name, -1)}
