"""Which tests run side by side, and what their processes share.

`make test` starts several workers of pytest-xdist. A worker takes one group of tests after another, in the order of ``ORDER``.
Those that wait for a cluster come first, so that those that compute run beside them. The tests of a file are one group, because
they share fixtures. The tests of ``OPERATOR`` are a single group. They start when those of ``BEFORE`` have ended: their operator
acts in all namespaces, and those in cluster/ break nodes and need a Hub without faults.

Without pytest-xdist all tests run in the same order in one process.
"""

import contextlib
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

HERE = pathlib.Path(__file__).parent
# All names here are beginnings of paths below tests/.
AUDIT = "faults/test_verbs_audit.py"  # it counts what the other fault tests used
OPERATOR = (AUDIT, "chart/test_install.py", "chart/test_policy.py", "chart/test_apply.py", "cluster/")
PROMETHEUS = "observability/test_on_cluster.py"  # its operator acts in one namespace, as those of the fault tests
PUBLISH = ("trainer/test_publish.py", "trainer/test_publish_faults.py")  # they inject faults into the Hub
BEFORE = {**dict.fromkeys(OPERATOR, ("faults/", PROMETHEUS)), "cluster/": ("faults/", PROMETHEUS, *PUBLISH)}
# Their pods are processes of this machine, and the first one of each job listens on the same port.
RENDEZVOUS = ("trainer/test_launcher.py", "trainer/test_strangers.py")
# Long files come before short ones, so that none of them starts last and keeps everybody waiting.
ORDER = (
    *("faults/test_kills.py", "faults/test_lost_and_stale.py", PROMETHEUS, "faults/test_endings.py", "faults/"),
    *OPERATOR,
    *(*PUBLISH, "trainer/test_run.py", "trainer/test_recovery.py", *RENDEZVOUS, "trainer/", ""),
)
_GATE_SECONDS = 3600.0
_DIRECTORY_KEY = "shared_directory"


def order(path: str) -> int:
    """The rank of a test file, by its path below tests/. The longest beginning that fits counts."""
    return ORDER.index(max((beginning for beginning in ORDER if path.startswith(beginning)), key=len))


def _is_of_operator(path: str) -> bool:
    return path.startswith(OPERATOR)


def _is_before(path: str, later: str) -> bool:
    """Return whether a test file must have ended before the tests of another one start."""
    earlier = next((earlier for beginning, earlier in BEFORE.items() if later.startswith(beginning)), ())
    return path.startswith(earlier) and not _is_of_operator(path)


class Lanes:
    """Groups and sorts the tests, and gives their processes a directory to share."""

    def __init__(self, config: pytest.Config) -> None:
        self.is_worker = hasattr(config, "workerinput")
        directory = config.workerinput[_DIRECTORY_KEY] if self.is_worker else tempfile.mkdtemp(prefix="finetune-tests-")
        self.directory = pathlib.Path(directory)

    def pytest_configure_node(self, node: Any) -> None:
        """In the controller of pytest-xdist: tell a worker the directory."""
        node.workerinput[_DIRECTORY_KEY] = str(self.directory)

    def pytest_unconfigure(self) -> None:
        """Remove the directory when all workers have ended."""
        if not self.is_worker:
            shutil.rmtree(self.directory, ignore_errors=True)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Sort the tests by their files' rank."""
        items.sort(key=lambda item: order(_path(item)))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """Give each group of tests to one worker. (pytest-xdist 3.8 ignores its own marker for groups under pytest 9.2.)"""
        from xdist.scheduler import LoadScopeScheduling

        class LaneScheduling(LoadScopeScheduling):
            def _split_scope(self, nodeid: str) -> str:
                path = nodeid.split("::")[0].removeprefix(f"{HERE.name}/")
                return "operator" if _is_of_operator(path) else "rendezvous" if path in RENDEZVOUS else path

        return LaneScheduling(config, log)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Remember which files this run has; -k and the like have removed some."""
        self._paths = {_path(item) for item in session.items}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
        """Note in the shared directory when the last test of a file has ended."""
        try:
            return (yield)
        finally:
            if nextitem is None or _path(nextitem) != _path(item):
                self._done(_path(item)).touch()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Begin a test when those that must come before it have ended, in every process."""
        before = [path for path in self._paths if _is_before(path, _path(item))]
        deadline = time.monotonic() + _GATE_SECONDS
        while missing := [path for path in before if not self._done(path).exists()]:
            assert time.monotonic() < deadline, f"these files did not end: {sorted(missing)}"
            time.sleep(0.5)

    def _done(self, path: str) -> pathlib.Path:
        """The file that says that the tests of a file have ended."""
        return self.directory / f"done-{path.replace('/', '-')}"


def _path(item: pytest.Item) -> str:
    with contextlib.suppress(ValueError):
        return item.path.relative_to(HERE).as_posix()
    return item.path.name
