"""The cluster as its users reach it: kubectl, in a subprocess."""

import contextlib
import dataclasses
import json
import pathlib
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

Object = dict[str, Any]
POLL_SECONDS = 1.5
CRD_NAME = "finetunejobs.finetune.dev"
CRD_FILE = pathlib.Path(__file__).parents[2] / "crds/finetune.dev_finetunejobs.yaml"


def kubectl(
    *arguments: str, stdin: str | None = None, check: bool = True, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run kubectl; with check, raise with its own words when it fails."""
    done = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode:
        raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
    return done


@contextlib.contextmanager
def custom_resource_definition() -> Iterator[None]:
    """The CustomResourceDefinition, served; brought along, and taken away again, where it is not there yet."""
    found = _definition()
    if found and "deletionTimestamp" not in found["metadata"]:
        yield
        return
    kubectl("wait", "--for=delete", f"crd/{CRD_NAME}", "--timeout=60s")
    kubectl("apply", "--server-side", "--filename", str(CRD_FILE))
    try:
        # Not `kubectl wait`: it fails on a definition that is so new that it has no conditions yet.
        end = time.monotonic() + 30
        while not _is_established(_definition()):
            assert time.monotonic() < end, f"{CRD_NAME} is not served within 30 s"
            time.sleep(0.2)
        yield
    finally:
        kubectl("delete", f"crd/{CRD_NAME}", "--wait=false")


def _definition() -> Object:
    shown = kubectl("get", "crd", CRD_NAME, "--ignore-not-found", "--output=json").stdout
    return dict(json.loads(shown)) if shown.strip() else {}


def _is_established(definition: Object) -> bool:
    conditions = definition.get("status", {}).get("conditions") or []
    return any(condition["type"] == "Established" and condition["status"] == "True" for condition in conditions)


def column(table: str, name: str) -> str:
    """The cell of the only row below a column's title in a table of `kubectl get`; empty where it is."""
    header, row = table.splitlines()[:2]
    start = header.index(name)
    after = header[start + len(name) :]
    end = start + len(name) + len(after) - len(after.lstrip()) if after.strip() else None
    return row[start:end].strip()


@dataclasses.dataclass(frozen=True)
class Namespace:
    """One namespace, and what the tests ask of it."""

    name: str

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        return kubectl("--namespace", self.name, *arguments, stdin=stdin, check=check)

    def apply(self, manifest: Object) -> None:
        self.kubectl("apply", "--filename", "-", stdin=json.dumps(manifest))

    def get(self, kind: str, name: str) -> Object | None:
        """The object, None when it is not there."""
        found = self.kubectl("get", kind, name, "--output", "json", "--ignore-not-found")
        return json.loads(found.stdout) if found.stdout.strip() else None

    def objects(self, kind: str, selector: str = "") -> list[Object]:
        found = self.kubectl("get", kind, "--selector", selector, "--output", "json")
        items: list[Object] = json.loads(found.stdout)["items"]
        return items

    def status(self, job: str) -> Object:
        """status of a FineTuneJob, empty as long as there is none."""
        found = self.get("finetunejob", job)
        assert found is not None, f"the FineTuneJob {job} is gone"
        return dict(found.get("status") or {})

    def pods(self, job: str) -> list[Object]:
        """Pods of a FineTuneJob, by name."""
        return sorted(self.objects("pods", f"finetune.dev/finetunejob={job}"), key=lambda pod: str(pod["metadata"]["name"]))

    def children(self, job: str) -> list[str]:
        """kind/name of everything that belongs to a FineTuneJob."""
        kinds = "jobs,pods,services,configmaps,persistentvolumeclaims"
        found = self.kubectl("get", kinds, "--selector", f"finetune.dev/finetunejob={job}", "--output", "name")
        return sorted(found.stdout.split())

    def logs(self) -> str:
        """Logs of every pod of the namespace, those that ended included."""
        pods = [str(pod["metadata"]["name"]) for pod in self.objects("pods")]
        return "\n".join(self.kubectl("logs", pod, "--all-containers", check=False).stdout for pod in pods)

    def pod_http(self, pod: str, port: int, path: str) -> str:
        """What a pod answers to GET, through the API server; empty while it doesn't."""
        address = f"/api/v1/namespaces/{self.name}/pods/{pod}:{port}/proxy{path}"
        return kubectl("get", "--raw", address, check=False).stdout

    def wait_for(self, what: str, condition: Callable[[], Any], timeout: float, job: str | None = None) -> Any:
        """Poll until a condition holds, and return what it returned; after timeout seconds fail and say how things are."""
        end = time.monotonic() + timeout
        while not (result := condition()):
            if time.monotonic() > end:
                raise AssertionError(f"{what}: not within {timeout:g} s\n{self.describe(job)}")
            time.sleep(POLL_SECONDS)
        return result

    def wait_for_phase(self, job: str, *phases: str, timeout: float) -> Object:
        """Wait until a FineTuneJob is in one of some phases; fail at once when it ends in another one. Returns its status."""

        def there() -> Object | None:
            status = self.status(job)
            if status.get("phase") in {"Succeeded", "Failed"} - set(phases):
                raise AssertionError(f"{job} ended instead of becoming {' or '.join(phases)}\n{self.describe(job)}")
            return status if status.get("phase") in phases else None

        found: Object = self.wait_for(f"{job} in phase {' or '.join(phases)}", there, timeout, job)
        return found

    def describe(self, job: str | None) -> str:
        """What one wants to see when a test fails, the most telling first: a report may be cut off."""
        parts = [self.kubectl("get", "finetunejobs,jobs,pods,persistentvolumeclaims", "--output", "wide", check=False).stdout]
        for pod in self.pods(job) if job else self.objects("pods"):
            name = str(pod["metadata"]["name"])
            parts.append(f"--- log of {name}\n" + self.kubectl("logs", name, "--tail", "40", check=False).stdout)
        parts.append(self.kubectl("get", "events", "--sort-by", ".lastTimestamp", check=False).stdout[-6000:])
        parts.append(kubectl("get", "pods", "--all-namespaces", "--output", "wide", check=False).stdout)
        if job:
            parts.append(self.kubectl("get", "finetunejob", job, "--output", "yaml", check=False).stdout)
        return "\n".join(parts)
