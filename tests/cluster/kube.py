"""Access to the cluster as users have it: kubectl, in a subprocess.

Objects are read with the client of Kubernetes instead: tests read them again and again while they wait, and a process of kubectl
takes a tenth of a second of a processor.
"""

import dataclasses
import functools
import json
import pathlib
import subprocess
import time
from collections.abc import Callable
from typing import Any

import kubernetes

Object = dict[str, Any]
POLL_SECONDS = 1.5
# Timeouts are for a machine that does nothing else. A busy one gets more time.
PATIENCE = 3
CRD_NAME = "finetunejobs.finetune.dev"
CRD_FILE = pathlib.Path(__file__).parents[2] / "crds/finetune.dev_finetunejobs.yaml"


def kubectl(
    *arguments: str, stdin: str | None = None, check: bool = True, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run kubectl. With check, raise an error with its output if it fails."""
    done = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode:
        raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
    return done


# Where the API server has the kinds that tests read, by their names in the plural.
_CORE = ("configmaps", "events", "persistentvolumeclaims", "pods", "resourcequotas", "serviceaccounts", "services")
_GROUPS = {
    **dict.fromkeys(_CORE, "/api/v1"),
    "deployments": "/apis/apps/v1",
    "finetunejobs": "/apis/finetune.dev/v1alpha1",
    "jobs": "/apis/batch/v1",
    "leases": "/apis/coordination.k8s.io/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
    "workloads": "/apis/kueue.x-k8s.io/v1beta1",
    "poddisruptionbudgets": "/apis/policy/v1",
    **dict.fromkeys(("roles", "rolebindings"), "/apis/rbac.authorization.k8s.io/v1"),
}


@functools.cache
def _client() -> kubernetes.client.ApiClient:
    return kubernetes.config.new_client_from_config()


def _read(namespace: str, kind: str, name: str = "", selector: str = "") -> Object:
    """Return an object, empty if it does not exist, or, without a name, a list."""
    plural = kind if kind.endswith("s") else f"{kind}s"
    path = f"{_GROUPS[plural]}/namespaces/{namespace}/{plural}" + (f"/{name}" if name else "")
    query = [("labelSelector", selector)] if selector else []
    client = _client()
    request = client.param_serialize("GET", path, query_params=query, auth_settings=["BearerToken"])
    answer = client.call_api(*request, _request_timeout=60)
    content = answer.read()
    if answer.status == 404 and name:
        return {}
    assert answer.status == 200, f"GET {path}: {answer.status} {content.decode(errors='replace')[:1000]}"
    return dict(json.loads(content))


def has_crd() -> bool:
    """Return whether the cluster has the CustomResourceDefinition."""
    return bool(_definition())


def ensure_crd() -> bool:
    """Apply the CustomResourceDefinition if the cluster lacks it, wait until it is served, and return whether it was missing.

    Safe to call from several processes at the same time.
    """
    found = _definition()
    if found and "deletionTimestamp" in found["metadata"]:
        kubectl("wait", "--for=delete", f"crd/{CRD_NAME}", "--timeout=60s")
        found = {}
    if not found:
        kubectl("apply", "--server-side", "--force-conflicts", "--filename", str(CRD_FILE))
    # `kubectl wait` would fail on a new definition that has no conditions yet.
    end = time.monotonic() + 30
    while not _is_established(_definition()):
        assert time.monotonic() < end, f"{CRD_NAME} is not served within 30 s"
        time.sleep(0.2)
    return not found


def delete_crd() -> None:
    """Delete the CustomResourceDefinition, and with it all FineTuneJobs; wait until it is gone."""
    kubectl("delete", f"crd/{CRD_NAME}", "--ignore-not-found", "--timeout=60s", check=False)


def _definition() -> Object:
    shown = kubectl("get", "crd", CRD_NAME, "--ignore-not-found", "--output=json").stdout
    return dict(json.loads(shown)) if shown.strip() else {}


def _is_established(definition: Object) -> bool:
    conditions = definition.get("status", {}).get("conditions") or []
    return any(condition["type"] == "Established" and condition["status"] == "True" for condition in conditions)


def column(table: str, name: str) -> str:
    """Return the cell of a column in the only row of a table of `kubectl get`; may be empty."""
    header, row = table.splitlines()[:2]
    start = header.index(name)
    after = header[start + len(name) :]
    end = start + len(name) + len(after) - len(after.lstrip()) if after.strip() else None
    return row[start:end].strip()


@dataclasses.dataclass(frozen=True)
class Namespace:
    """A namespace, and the operations on it that the tests need."""

    name: str

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        return kubectl("--namespace", self.name, *arguments, stdin=stdin, check=check)

    def apply(self, manifest: Object) -> None:
        self.kubectl("apply", "--filename", "-", stdin=json.dumps(manifest))

    def get(self, kind: str, name: str) -> Object | None:
        """Return the object, or None if it does not exist."""
        return _read(self.name, kind, name) or None

    def objects(self, kinds: str, selector: str = "") -> list[Object]:
        """Return the objects of one or several kinds, which are separated by commas."""
        found = []
        for kind in kinds.split(","):
            answer = _read(self.name, kind, selector=selector)
            # Only single objects say what they are.
            common = {"apiVersion": answer["apiVersion"], "kind": answer["kind"].removesuffix("List")}
            found += [{**common, **item} for item in answer["items"]]
        return found

    def status(self, job: str) -> Object:
        """Return the status of a FineTuneJob; empty if it has none yet."""
        found = self.get("finetunejob", job)
        assert found is not None, f"the FineTuneJob {job} is gone"
        return dict(found.get("status") or {})

    def pods(self, job: str) -> list[Object]:
        """Return the pods of a FineTuneJob, ordered by name."""
        return sorted(self.objects("pods", f"finetune.dev/finetunejob={job}"), key=lambda pod: str(pod["metadata"]["name"]))

    def children(self, job: str) -> list[str]:
        """Return kind/name of each object that belongs to a FineTuneJob."""
        kinds = "jobs,pods,services,configmaps,persistentvolumeclaims"
        found = self.kubectl("get", kinds, "--selector", f"finetune.dev/finetunejob={job}", "--output", "name")
        return sorted(found.stdout.split())

    def logs(self) -> str:
        """Return the logs of all pods of the namespace, including terminated pods."""
        pods = [str(pod["metadata"]["name"]) for pod in self.objects("pods")]
        return "\n".join(self.kubectl("logs", pod, "--all-containers", check=False).stdout for pod in pods)

    def pod_http(self, pod: str, port: int, path: str) -> str:
        """Send GET to a pod through the API server, and return its answer; empty if it does not answer."""
        address = f"/api/v1/namespaces/{self.name}/pods/{pod}:{port}/proxy{path}"
        return kubectl("get", "--raw", address, check=False).stdout

    def wait_for(self, what: str, condition: Callable[[], Any], timeout: float, job: str | None = None) -> Any:
        """Poll until a condition holds, and return its result. After the timeout, fail with a description of the state."""
        end = time.monotonic() + PATIENCE * timeout
        while not (result := condition()):
            if time.monotonic() > end:
                raise AssertionError(f"{what}: not within {PATIENCE * timeout:g} s\n{self.describe(job)}")
            time.sleep(POLL_SECONDS)
        return result

    def wait_for_phase(self, job: str, *phases: str, timeout: float) -> Object:
        """Wait until a FineTuneJob is in one of the phases, and return its status. Fail at once if it ends in another phase."""

        def there() -> Object | None:
            status = self.status(job)
            if status.get("phase") in {"Succeeded", "Failed"} - set(phases):
                raise AssertionError(f"{job} ended instead of becoming {' or '.join(phases)}\n{self.describe(job)}")
            return status if status.get("phase") in phases else None

        found: Object = self.wait_for(f"{job} in phase {' or '.join(phases)}", there, timeout, job)
        return found

    def describe(self, job: str | None) -> str:
        """Describe the state for a test that fails. The most important part comes first, because a report may be cut off."""
        parts = [self.kubectl("get", "finetunejobs,jobs,pods,persistentvolumeclaims", "--output", "wide", check=False).stdout]
        for pod in self.pods(job) if job else self.objects("pods"):
            name = str(pod["metadata"]["name"])
            parts.append(f"--- log of {name}\n" + self.kubectl("logs", name, "--tail", "40", check=False).stdout)
        parts.append(self.kubectl("get", "events", "--sort-by", ".lastTimestamp", check=False).stdout[-6000:])
        parts.append(kubectl("get", "pods", "--all-namespaces", "--output", "wide", check=False).stdout)
        if job:
            parts.append(self.kubectl("get", "finetunejob", job, "--output", "yaml", check=False).stdout)
        return "\n".join(parts)
