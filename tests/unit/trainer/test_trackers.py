"""Parts of the trackers: a history that is read while it is written, and points that wait for an unreachable tracker."""

import json
import logging
import pathlib
import threading
import time
from collections.abc import Sequence

import pytest

from finetune_trainer.trackers import deliver
from finetune_trainer.trackers.base import LoggedSteps, Point, point_from_entry
from finetune_trainer.trackers.deliver import Delivery
from finetune_trainer.trackers.follow import HistoryReader

NOON = "2026-01-01T12:00:00Z"


def line(step: int, **metrics: object) -> str:
    return json.dumps({"step": step, "time": NOON, **metrics}) + "\n"


def test_an_incomplete_line_is_read_after_its_end_is_written_and_a_replaced_file_is_read_again(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "history.jsonl"
    follower = HistoryReader(path)
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


def test_a_line_of_the_history_becomes_metrics_by_name() -> None:
    step = {"step": 3, "epoch": 0.5, "loss": 0.25, "gradientNorm": None, "time": NOON, "attempt": 2}
    assert point_from_entry(step) == Point(3, {"train/epoch": 0.5, "train/loss": 0.25}, 1767268800.0)
    assert point_from_entry({"step": 3, "evaluation": {"accuracy": 1}, "time": NOON}).metrics == {"eval/accuracy": 1.0}
    assert point_from_entry({"step": 4, "skipped": True, "time": NOON}).metrics == {}


def test_repeated_steps_are_left_out_for_each_metric() -> None:
    marks = LoggedSteps()
    marks.set("a", 5)
    assert marks.new(Point(5, {"a": 1.0, "b": 2.0}, 0.0)) == {"b": 2.0}
    assert marks.new(Point(6, {"a": 1.0}, 0.0)) == {"a": 1.0}


class UnreliableTracker:
    """A tracker that fails a given number of times and records what it receives."""

    def __init__(self, failures: int) -> None:
        self.failures, self.made = failures, 0
        self.steps: list[int] = []
        self.outcome: str | None = None
        self.held = threading.Event()

    def make(self) -> "UnreliableTracker":
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


def test_points_wait_for_a_tracker_that_fails_and_arrive_in_order_and_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deliver, "_FIRST_PAUSE_SECONDS", 0.01)
    tracker = UnreliableTracker(failures=3)
    delivery = Delivery("fake", tracker.make, ["top-secret-key"])
    with caplog.at_level(logging.INFO, "finetune_trainer"):
        started = time.monotonic()
        delivery.put(POINTS[:700])
        delivery.put(POINTS[700:])
        assert time.monotonic() - started < 0.5, "put() returns at once while the tracker does not answer"
        tracker.held.set()
        deadline = time.monotonic() + 10
        while len(tracker.steps) < len(POINTS) and time.monotonic() < deadline:
            time.sleep(0.01)
        delivery.close("Succeeded")
        delivery.wait(10)
    assert tracker.steps == list(range(1200))
    assert tracker.outcome == "Succeeded"
    assert tracker.made == 4, "the tracker is created again after each failure"
    assert caplog.messages == [
        "fake can't be reached (ConnectionError: no answer of http://[removed]@host/[removed]); the training goes on without it",
        "reporting to fake",
    ]


def test_an_unreachable_tracker_is_tried_once_more_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    tracker = UnreliableTracker(failures=1000)
    tracker.held.set()
    delivery = Delivery("fake", tracker.make)
    delivery.put(POINTS[:1])
    started = time.monotonic()
    delivery.close("Failed")
    delivery.wait(10)
    assert time.monotonic() - started < 5
    assert (tracker.steps, tracker.outcome) == ([], None)
    assert len(caplog.messages) == 1


def test_a_tracker_that_does_not_answer_is_abandoned_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    tracker = UnreliableTracker(failures=0)
    delivery = Delivery("fake", tracker.make)
    delivery.put(POINTS[:1])
    delivery.close(None)
    delivery.wait(0.1)
    assert caplog.messages == ["fake did not accept the last metrics in time: they are left out"]
    tracker.held.set()
    delivery.wait(10)
    assert tracker.outcome is None, "the run of the tracker is not finished"
