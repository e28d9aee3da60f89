"""Prints at the end of a run where its seconds went: by folder of tests, and the ten longest fixtures.

With pytest-xdist each worker measures its own fixtures and hands them to the controller, which prints the table.
"""

import collections
import time
from collections.abc import Iterator
from typing import Any

import pytest

LONGEST = 10
_WORKER_KEY = "fixture_seconds"


class Timings:
    """Adds up seconds of tests by folder, and seconds of fixtures by name. One per process of pytest."""

    def __init__(self) -> None:
        self._seconds: collections.Counter[str] = collections.Counter()
        self._tests: collections.Counter[str] = collections.Counter()
        self._fixtures: collections.Counter[str] = collections.Counter()
        self._started = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count set-up, call and tear-down of a test for its folder."""
        folder = "/".join(report.nodeid.split("::")[0].split("/")[:-1])
        self._seconds[folder] += report.duration
        self._tests[folder] += report.when == "setup"

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
        """Time the set-up of a fixture, without the fixtures that it asks for."""
        started = time.monotonic()
        try:
            return (yield)
        finally:
            self._fixtures[f"{fixturedef.argname} ({fixturedef.baseid})"] += time.monotonic() - started

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """In a worker of pytest-xdist: hand the seconds of its fixtures to the controller."""
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output[_WORKER_KEY] = dict(self._fixtures)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """In the controller of pytest-xdist: add what a worker measured."""
        self._fixtures.update(getattr(node, "workeroutput", {}).get(_WORKER_KEY, {}))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table."""
        if not self._tests:
            return
        terminalreporter.section("seconds by folder")
        for folder, seconds in self._seconds.most_common():
            terminalreporter.write_line(f"{seconds:9.1f}  {self._tests[folder]:5} tests  {folder}")
        wall = time.monotonic() - self._started
        terminalreporter.write_line(f"{self._seconds.total():9.1f}  {self._tests.total():5} tests  in {wall:.1f} s")
        terminalreporter.section(f"seconds of the {LONGEST} longest fixtures (set-up)")
        for name, seconds in [entry for entry in self._fixtures.most_common(LONGEST) if entry[1] >= 0.1]:
            terminalreporter.write_line(f"{seconds:9.1f}  {name}")
