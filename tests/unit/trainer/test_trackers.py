"""What trackers are made of: a file that is read while it is written, and points that wait for a tracker that is away."""

import json
import logging
import pathlib
import threading
import time
from collections.abc import Sequence

import pytest

from finetune_trainer.trackers import deliver
from finetune_trainer.trackers.base import Marks, Point, point_of
from finetune_trainer.trackers.deliver import Delivery
from finetune_trainer.trackers.follow import Follower

NOON = "2026-01-01T12:00:00Z"


def line(step: int, **figures: object) -> str:
    return json.dumps({"step": step, "time": NOON, **figures}) + "\n"


def test_half_a_line_waits_for_its_end_and_a_replaced_file_is_read_again(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "history.jsonl"
    follower = Follower(path)
    assert follower.new_entries() == []
    whole = line(1) + line(2)
    path.write_text(whole[:-10])
    assert [entry["step"] for entry in follower.new_entries()] == [1]
    path.write_text(whole)
    assert [entry["step"] for entry in follower.new_entries()] == [2]
    assert follower.new_entries() == []
    other = tmp_path / "other"
    other.write_text(line(1) + "not an entry\n" + line(3))
    other.replace(path)
    assert [entry["step"] for entry in follower.new_entries()] == [1, 3]


def test_a_line_of_the_history_becomes_figures_by_name() -> None:
    step = {"step": 3, "epoch": 0.5, "loss": 0.25, "gradientNorm": None, "time": NOON, "attempt": 2}
    assert point_of(step) == Point(3, {"train/epoch": 0.5, "train/loss": 0.25}, 1767268800.0)
    assert point_of({"step": 3, "evaluation": {"accuracy": 1}, "time": NOON}).figures == {"eval/accuracy": 1.0}
    assert point_of({"step": 4, "skipped": True, "time": NOON}).figures == {}


def test_steps_that_are_done_again_are_left_out_by_figure() -> None:
    marks = Marks()
    marks.set("a", 5)
    assert marks.new(Point(5, {"a": 1.0, "b": 2.0}, 0.0)) == {"b": 2.0}
    assert marks.new(Point(6, {"a": 1.0}, 0.0)) == {"a": 1.0}


class Moody:
    """A tracker that fails as often as it is told to, and keeps what it gets."""

    def __init__(self, failures: int) -> None:
        self.failures, self.made = failures, 0
        self.steps: list[int] = []
        self.outcome: str | None = None
        self.held = threading.Event()

    def make(self) -> "Moody":
        self.made += 1
        return self

    def log(self, points: Sequence[Point]) -> None:
        self.held.wait()
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no answer of http://me:word@host/top-secret-key")
        self.steps += [point.step for point in points]

    def finish(self, outcome: str) -> None:
        self.outcome = outcome


POINTS = [Point(step, {"loss": 1.0}, 0.0) for step in range(1200)]


def test_points_wait_for_a_tracker_that_fails_and_come_in_order_and_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deliver, "_FIRST_PAUSE_SECONDS", 0.01)
    tracker = Moody(failures=3)
    delivery = Delivery("moody", tracker.make, ["top-secret-key"])
    with caplog.at_level(logging.INFO, "finetune_trainer"):
        started = time.monotonic()
        delivery.put(POINTS[:700])
        delivery.put(POINTS[700:])
        assert time.monotonic() - started < 0.5, "it holds up nobody, while the tracker does not answer"
        tracker.held.set()
        deadline = time.monotonic() + 10
        while len(tracker.steps) < len(POINTS) and time.monotonic() < deadline:
            time.sleep(0.01)
        delivery.close("Succeeded")
        delivery.wait(10)
    assert tracker.steps == list(range(1200))
    assert tracker.outcome == "Succeeded"
    assert tracker.made == 4, "made anew after each failure"
    assert caplog.messages == [
        "moody can't be reached (ConnectionError: no answer of http://[removed]@host/[removed]); the training goes on without it",
        "reporting to moody",
    ]


def test_in_the_end_a_tracker_that_is_away_gets_one_more_try(caplog: pytest.LogCaptureFixture) -> None:
    tracker = Moody(failures=1000)
    tracker.held.set()
    delivery = Delivery("moody", tracker.make)
    delivery.put(POINTS[:1])
    started = time.monotonic()
    delivery.close("Failed")
    delivery.wait(10)
    assert time.monotonic() - started < 5
    assert (tracker.steps, tracker.outcome) == ([], None)
    assert len(caplog.messages) == 1


def test_a_tracker_that_does_not_answer_is_given_up_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    tracker = Moody(failures=0)
    delivery = Delivery("moody", tracker.make)
    delivery.put(POINTS[:1])
    delivery.close(None)
    delivery.wait(0.1)
    assert caplog.messages == ["moody did not take the last figures in time: they are left out"]
    tracker.held.set()
    delivery.wait(10)
    assert tracker.outcome is None, "the run goes on"
