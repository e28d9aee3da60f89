"""The operator is killed (SIGKILL) at every write for a job: the outcome is always the same."""

import collections
import concurrent.futures
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from faults.environment import Environment
from faults.scenarios import PARALLEL_RUNS, KillPoint, Run, When, run_job, run_scenarios

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
WHENS: tuple[When, ...] = ("after", "before")


@pytest.fixture
def envs(make_environment: Any) -> Iterator[list[Environment]]:
    """Environments for runs in parallel."""
    with contextlib.ExitStack() as stack, concurrent.futures.ThreadPoolExecutor(PARALLEL_RUNS) as pool:
        yield list(pool.map(lambda _: stack.enter_context(make_environment()), range(PARALLEL_RUNS)))


def check(baseline: Run, runs: list[Run]) -> None:
    """Compare the runs with the run without a kill. At least three quarters of them must have had their kill."""
    expected = baseline.outcome
    for run in runs:
        outcome = run.outcome
        where = f"killed {run.when} write {run.write_number} ({expected.writes[run.write_number - 1]})"
        assert outcome.phase == "Succeeded", where
        assert (outcome.attempt, outcome.failures) == (expected.attempt, expected.failures), where
        assert outcome.children == expected.children, where
        assert outcome.created == expected.created, f"{where}: the operator must create each attempt's Job once, in order"
        for reason, times in collections.Counter(outcome.events).items():
            assert times <= max(1, expected.events.count(reason)), f"{where}: duplicate event {reason}"
    not_killed = [(run.write_number, run.when) for run in runs if not run.killed]
    other_events = [(run.write_number, run.when) for run in runs if run.outcome.events != expected.events]
    print(f"{len(expected.writes)} writes: {expected.writes}")
    print(f"{len(runs)} runs; without a kill: {not_killed}; with other events: {other_events}")
    assert len(not_killed) <= len(runs) // 4, f"runs without a kill: {not_killed}"


def test_a_job_has_the_same_outcome_whenever_the_operator_is_killed(envs: list[Environment]) -> None:
    baseline = run_job(envs[0], "baseline")
    outcome = baseline.outcome
    assert (outcome.phase, outcome.attempt, outcome.failures) == ("Succeeded", 1, 0)
    assert outcome.created == ["NAME-1"]
    # A kill before a write differs only in time from a kill after the previous write. So every second "before" is enough.
    kill_points = [(number, when) for number in range(1, len(outcome.writes) + 1) for when in WHENS[: 1 + number % 2]]
    check(baseline, run_scenarios(envs, kill_points, "run"))


def test_a_job_that_fails_once_has_the_same_outcome_whenever_the_operator_is_killed(envs: list[Environment]) -> None:
    job: dict[str, Any] = {"plan": "fail CodeError at 3 on attempt 1", "training": {"maxSteps": 6}}
    baseline = run_job(envs[0], "baseline", **job)
    outcome = baseline.outcome
    assert (outcome.phase, outcome.attempt, outcome.failures) == ("Succeeded", 2, 1)
    assert outcome.created == ["NAME-1", "NAME-2"]
    kill_points: list[KillPoint] = [(number, "after") for number in range(1, len(outcome.writes) + 1)]
    check(baseline, run_scenarios(envs, kill_points, "run", **job))
