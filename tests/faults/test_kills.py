"""kill -9 of the operator at every write of a job's whole life: the end is always the same."""

import collections
import concurrent.futures
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from faults.lives import LANES, Life, When, kill_at_each_write, live
from faults.place import Place

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
WHENS: tuple[When, ...] = ("after", "before")


@pytest.fixture
def places(make_place: Any) -> Iterator[list[Place]]:
    """Places in which lives go on side by side."""
    with contextlib.ExitStack() as stack, concurrent.futures.ThreadPoolExecutor(LANES) as pool:
        yield list(pool.map(lambda _: stack.enter_context(make_place()), range(LANES)))


def check(whole: Life, lives: list[Life]) -> None:
    """Every life ended as the one without a kill did, and most were really cut."""
    for life in lives:
        where = f"killed {life.when} write {life.number} ({whole.end.writes[life.number - 1]})"
        assert life.end.phase == "Succeeded", where
        assert (life.end.attempt, life.end.failures) == (whole.end.attempt, whole.end.failures), where
        assert life.end.children == whole.end.children, where
        assert life.end.created == whole.end.created, f"{where}: every attempt's Job is created once, in order"
        for reason, times in collections.Counter(life.end.told).items():
            assert times <= max(1, whole.end.told.count(reason)), f"{where}: {reason} is told twice"
    missed = [(life.number, life.when) for life in lives if not life.killed]
    silent = [(life.number, life.when) for life in lives if life.end.told != whole.end.told]
    print(f"{len(whole.end.writes)} writes: {whole.end.writes}; {len(lives)} lives, not reached: {missed}, less told: {silent}")
    assert len(missed) <= len(lives) // 4, f"kills that never struck: {missed}"


def test_a_job_ends_the_same_whenever_the_operator_is_killed(places: list[Place]) -> None:
    whole = live(places[0], "whole")
    assert (whole.end.phase, whole.end.attempt, whole.end.failures) == ("Succeeded", 1, 0)
    assert whole.end.created == ["NAME-1"]
    # Right before a write and right after the one ahead of it only the time differs: every second one will do.
    cuts = [(number, when) for number in range(1, len(whole.end.writes) + 1) for when in WHENS[: 1 + number % 2]]
    check(whole, kill_at_each_write(places, cuts, "life"))


def test_a_job_that_fails_once_ends_the_same_whenever_the_operator_is_killed(places: list[Place]) -> None:
    job: dict[str, Any] = {"plan": "fail CodeError at 3 on attempt 1", "training": {"maxSteps": 6}}
    whole = live(places[0], "whole", **job)
    assert (whole.end.phase, whole.end.attempt, whole.end.failures) == ("Succeeded", 2, 1)
    assert whole.end.created == ["NAME-1", "NAME-2"]
    cuts: list[tuple[int, When]] = [(number, "after") for number in range(1, len(whole.end.writes) + 1)]
    check(whole, kill_at_each_write(places, cuts, "life", **job))
