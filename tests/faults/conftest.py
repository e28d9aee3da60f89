"""Fixtures of the fault tests. Operators run as local processes, behind a proxy that injects faults, on a real cluster.

Each test has its own namespace. The tests read two environment variables:

    KUBECONFIG            its user may create namespaces and roles
    FAKE_TRAINER_IMAGE    every node of the cluster must have this image:
                          docker build -t localhost/finetune-fake-trainer:dev tests/fake_trainer

The machine that runs the tests must reach pods by their IP addresses.
"""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from faults.environment import Environment, open_environment
from faults.permissions import Audit
from lanes import Lanes


def pytest_runtest_setup() -> None:
    """Skip the test if there is no cluster. A hook skips all tests in one line of pytest's summary, unlike a fixture."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("the fault tests need KUBECONFIG: a cluster that has the fake trainer image (tests/fake_trainer)")


@pytest.fixture(scope="session")
def audit(lanes: Lanes) -> Audit:
    return Audit(lanes.directory)


@pytest.fixture
def make_environment(
    custom_resource_definition: None, audit: Audit, tmp_path: pathlib.Path, request: pytest.FixtureRequest
) -> Any:
    """``make_environment(*arguments of run, start=True)`` returns a context manager of a namespace with an operator."""

    class AuditedEnvironment:
        def __init__(self, *arguments: str, start: bool = True) -> None:
            self._manager = open_environment(tmp_path, *arguments, start=start)

        def __enter__(self) -> Environment:
            self._env = self._manager.__enter__()
            return self._env

        def __exit__(self, *error: Any) -> None:
            self._manager.__exit__(*error)
            audit.add(request.path.name, self._env.rules, self._env.proxies)

    return AuditedEnvironment


@pytest.fixture
def env(make_environment: Any) -> Iterator[Environment]:
    """A namespace with an operator that is ready."""
    with make_environment() as env:
        yield env
