"""What all tests share: options, how they run side by side, and the table of seconds at the end."""

import os

# Before torch is imported: the tests of several processes share the machine, and threads that wait must not spin meanwhile.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

from cluster.kube import delete_crd, ensure_crd, has_crd
from lanes import Lanes
from timings import Timings

_LANES = pytest.StashKey[Lanes]()
_BROUGHT_CRD = "brought-crd"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the expected results anew instead of comparing them")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LANES] = Lanes(config)
    config.pluginmanager.register(config.stash[_LANES], "lanes")
    config.pluginmanager.register(Timings(), "timings")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove the CRD if a test brought it. Only the process that outlives all the others does so."""
    lanes = session.config.stash[_LANES]
    if not lanes.is_worker and (lanes.directory / _BROUGHT_CRD).exists():
        delete_crd()


@pytest.fixture(scope="session")
def lanes(request: pytest.FixtureRequest) -> Lanes:
    """What the processes of this run of pytest share."""
    return request.config.stash[_LANES]


@pytest.fixture(scope="module")
def without_crd(lanes: Lanes) -> None:
    """Take back the CRD that an earlier test of this run brought: the next test installs it its own way."""
    if (lanes.directory / _BROUGHT_CRD).exists():
        delete_crd()


@pytest.fixture(scope="session")
def crd_of_the_chart(lanes: Lanes) -> None:
    """For a test that installs the chart with its CRD: it goes at the end of the run if the cluster lacks it now."""
    if os.environ.get("KUBECONFIG") and not has_crd():
        (lanes.directory / _BROUGHT_CRD).touch()


@pytest.fixture(scope="module")
def custom_resource_definition(lanes: Lanes) -> None:
    """The CustomResourceDefinition is served. Tests bring it where the cluster lacks it; it goes at the end of the run."""
    if ensure_crd():
        (lanes.directory / _BROUGHT_CRD).touch()
