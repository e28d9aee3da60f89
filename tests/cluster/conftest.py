"""Fixtures: a cluster with the operator, and a Hub with a model and a data set. They remove everything that they create.

Environment variables: KUBECONFIG, HF_ENDPOINT (an address that pods reach too), HF_TOKEN (may write), and the images
OPERATOR_IMAGE and TRAINER_IMAGE, which the nodes of the cluster must have or be able to pull.
"""

import os
import pathlib
import secrets
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from cluster import hub as hubs
from cluster.kube import Namespace, Object, kubectl
from cluster.reader import Reader, start_reader

CHART = pathlib.Path(__file__).parents[2] / "charts/finetune-operator"
RELEASE = "finetune-operator"
REQUIRED = ("KUBECONFIG", "HF_ENDPOINT", "HF_TOKEN")
SECRET = "hub-token"  # as in the example
# Nodes may share the cores of one machine. Threads of two pods on one core would wait for each other.
POD = {"resources": {"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"cpu": "1"}}}


def pytest_runtest_setup() -> None:
    """Skip the tests if there is no cluster. This is a hook, not a fixture, so that pytest sums up the skips in one line."""
    missing = [name for name in REQUIRED if not os.environ.get(name)]
    if missing:
        pytest.skip(
            f"the tests on a cluster need {', '.join(missing)}: set KUBECONFIG to a cluster of two nodes that has the images of "
            "`make images`, HF_ENDPOINT to a Hub that its pods reach and HF_TOKEN to a token that may write there"
        )


@pytest.fixture(scope="session")
def run() -> str:
    """Return the part of names that identifies this test run."""
    return secrets.token_hex(3)


@pytest.fixture(scope="session")
def trainer_image() -> str:
    return os.environ.get("TRAINER_IMAGE", "localhost/finetune-trainer:dev")


@pytest.fixture(scope="session")
def operator_image() -> str:
    return os.environ.get("OPERATOR_IMAGE", "localhost/finetune-operator:dev")


def make_namespace(name: str) -> Namespace:
    """Create a namespace that accepts only pods that pass Pod Security "restricted"."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = Namespace(name)
    namespace.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    namespace.wait_for("its service account", lambda: namespace.get("serviceaccount", "default"), 30)
    return namespace


@pytest.fixture(scope="session")
def system(crd_of_the_chart: None, run: str, operator_image: str, trainer_image: str) -> Iterator[Namespace]:
    """Install the chart, and return the namespace of the operator."""
    namespace = make_namespace(f"finetune-system-{run}")
    values = {}
    for key, image in (("image", operator_image), ("trainerImage", trainer_image)):
        values[f"{key}.repository"], _, values[f"{key}.tag"] = image.rpartition(":")
    # This release takes over a CRD that already exists, from an earlier release or applied by hand.
    options = ["--namespace", namespace.name, "--wait", "--timeout=120s", "--take-ownership"]
    options += [f"--set={key}={value}" for key, value in values.items()]
    installed = subprocess.run(["helm", "install", RELEASE, str(CHART), *options], capture_output=True, text=True, check=False)
    try:
        assert installed.returncode == 0, f"helm install: {installed.stdout}{installed.stderr}\n{namespace.describe(None)}"
        yield namespace
    finally:
        subprocess.run(["helm", "uninstall", RELEASE, "--namespace", namespace.name, "--wait"], capture_output=True, check=False)
        kubectl("delete", "namespace", namespace.name, "--wait=false")


@pytest.fixture(scope="session")
def hub(run: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[hubs.Hub]:
    """Return the Hub, with the model and the data set on it."""
    hub = hubs.connect(run)
    try:
        hub.seed(tmp_path_factory.mktemp("hub"))
        yield hub
    finally:
        hub.remove()


@pytest.fixture(scope="session")
def jobs(system: Namespace, run: str) -> Iterator[Namespace]:
    """Create the namespace of the FineTuneJobs, with a Secret that holds the token of the Hub."""
    namespace = make_namespace(f"finetune-jobs-{run}")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": {"token": os.environ["HF_TOKEN"]}}
    try:
        namespace.apply(secret)
        yield namespace
    finally:
        kubectl("delete", "namespace", namespace.name, "--wait=false")


@pytest.fixture(scope="session")
def hub_access() -> Object:
    """Return spec.hub of a job that may read and write on the Hub."""
    return {"endpoint": os.environ["HF_ENDPOINT"], "tokenSecretRef": {"name": SECRET, "key": "token"}}


@pytest.fixture(scope="session")
def small_pod() -> Object:
    """Return spec.pod for nodes with few resources."""
    return POD


@pytest.fixture(scope="session")
def hub_environment() -> dict[str, Object]:
    """Return the environment that gives a pod of the tests the same access to the Hub."""
    return {
        "HF_ENDPOINT": {"value": os.environ["HF_ENDPOINT"]},
        "HF_TOKEN": {"valueFrom": {"secretKeyRef": {"name": SECRET, "key": "token"}}},
        "HF_HOME": {"value": "/tmp/hub"},
    }


@pytest.fixture
def reader(jobs: Namespace, trainer_image: str, hub_environment: dict[str, Object]) -> Iterator[Any]:
    """Return ``reader(claims)``, which starts a pod that reads volumes."""
    started: list[Reader] = []

    def start(*claims: str) -> Reader:
        started.append(start_reader(jobs, f"reader-{secrets.token_hex(3)}", trainer_image, list(claims), hub_environment))
        return started[-1]

    yield start
    for pod in started:
        jobs.kubectl("delete", "pod", pod.name, "--wait=false")


@pytest.fixture(scope="session")
def make_job(hub: hubs.Hub, hub_access: Object) -> Any:
    """Return ``make_job(name, **fields of spec)``: a FineTuneJob with few articles and a small batch, quick on two cores."""

    def make(name: str, **spec: Any) -> Object:
        data = {"hub": {"name": hub.articles}, "columns": {"label": "label_text"}, "maxTrainSamples": 64, "maxEvalSamples": 16}
        return {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": name},
            "spec": {
                "task": "text-classification",
                "model": {"hub": {"name": hub.model}},
                "datasets": [data],
                "training": {"maxSteps": 4, "globalBatchSize": 8, "maxTokens": 32},
                "hub": hub_access,
                "pod": POD,
                **spec,
            },
        }

    return make
