"""Operators as processes, behind a proxy that injects faults, on a real cluster. Each test gets a namespace of its own.

From the environment: KUBECONFIG (of somebody who may create namespaces and roles) and STANDIN_IMAGE, which the cluster's
machines must have: `docker build -t localhost/finetune-standin:dev tests/standin`. Pods must be reachable from here.
"""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.kube import custom_resource_definition
from faults.place import Place, open_place
from faults.rights import Audit

HERE = pathlib.Path(__file__).parent
AUDIT = "test_verbs_audit.py"


def pytest_runtest_setup() -> None:
    """Skip where there is no cluster. As a hook, and not a fixture, it is one line in pytest's summary."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("the fault tests need KUBECONFIG: a cluster that has the stand-in image (tests/standin)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The audit counts what all the others used; the operator of tests/cluster acts everywhere, so it comes last."""

    def rank(item: pytest.Item) -> int:
        if item.path.parent == HERE:
            return 1 + (item.path.name == AUDIT)
        return 3 if item.path.parent == HERE.parent / "cluster" else 0

    items.sort(key=rank)


@pytest.fixture(scope="session")
def audit() -> Audit:
    return Audit()


@pytest.fixture(scope="session")
def crd() -> Iterator[None]:
    """The CustomResourceDefinition; brought along where it is not there yet."""
    with custom_resource_definition():
        yield


@pytest.fixture
def make_place(crd: None, audit: Audit, tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> Any:
    """``make_place(*arguments of run, start=True)``: a context manager of a namespace with an operator."""

    class Counted:
        def __init__(self, *arguments: str, start: bool = True) -> None:
            self._manager = open_place(tmp_path, *arguments, start=start)

        def __enter__(self) -> Place:
            self._place = self._manager.__enter__()
            return self._place

        def __exit__(self, *error: Any) -> None:
            self._manager.__exit__(*error)
            audit.count(request.path.name, self._place.rules, self._place.proxies)

    return Counted


@pytest.fixture
def place(make_place: Any) -> Iterator[Place]:
    """A namespace with an operator that is ready."""
    with make_place() as place:
        yield place
