"""GitOps: applying the same file again changes nothing, whoever applies it."""

import json
import os
import pathlib
import secrets
from collections.abc import Iterator

import pytest

from cluster.kube import Namespace, kubectl

EXAMPLES = sorted((pathlib.Path(__file__).parents[2] / "examples").glob("*.yaml"))
pytestmark = pytest.mark.skipif(not os.environ.get("KUBECONFIG"), reason="needs a cluster: set KUBECONFIG")


@pytest.fixture(scope="module")
def namespace(custom_resource_definition: None) -> Iterator[Namespace]:
    """Return a namespace in which no operator acts."""
    namespace = Namespace(f"apply-{secrets.token_hex(3)}")
    namespace.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace.name}})
    yield namespace
    kubectl("delete", "namespace", namespace.name, "--wait=false", check=False)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_that_is_applied_again_stays_unchanged(namespace: Namespace, example: pathlib.Path) -> None:
    def generations() -> dict[str, int]:
        found = json.loads(namespace.kubectl("get", "finetunejobs", "--output", "json").stdout)["items"]
        return {item["metadata"]["name"]: item["metadata"]["generation"] for item in found}

    namespace.kubectl("apply", "--filename", str(example))
    first = generations()
    again = namespace.kubectl("apply", "--filename", str(example)).stdout
    lines = [line for line in again.splitlines() if line.startswith("finetunejob.")]
    assert lines
    assert all(line.endswith(" unchanged") for line in lines), again
    # Another manager, for example Argo CD, that applies the same fields on the server has no conflict.
    namespace.kubectl("apply", "--server-side", "--field-manager=another", "--filename", str(example))
    assert generations() == first
    namespace.kubectl("delete", "--filename", str(example), "--wait=false")
