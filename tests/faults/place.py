"""A namespace of its own with an operator in front of it: proxy, rights, replicas."""

import base64
import contextlib
import dataclasses
import json
import os
import pathlib
import secrets
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from cluster.kube import Namespace, Object, kubectl
from faults.calls import Call, Record
from faults.operator_process import Operator
from faults.proxy import Proxy
from faults.rights import grant

ACCOUNT = "operator"
LABEL = "finetune.dev/finetunejob"
POLL_SECONDS = 0.3
STANDIN_IMAGE = os.environ.get("STANDIN_IMAGE", "localhost/finetune-standin:dev")
SMALL = {"requests": {"cpu": "20m", "memory": "32Mi"}}


def job_manifest(name: str, plan: str = "", **spec: Any) -> Object:
    """A FineTuneJob of two pods of the stand-in for a second of steps. plan: see the stand-in."""
    training = {"maxSteps": 10, **spec.pop("training", {})}
    pod = {"image": STANDIN_IMAGE, "resources": SMALL, **spec.pop("pod", {})}
    samples = {"samples": [{"text": f"standin: {plan}"}]} if plan else {}
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "task": "text-classification",
            "model": {"hub": {"name": "nobody/model"}},
            "datasets": [{"hub": {"name": "nobody/data"}}],
            "training": training,
            "distributed": {"nodes": 2},
            "pod": pod,
            **samples,
            **spec,
        },
    }


@dataclasses.dataclass(frozen=True)
class Place(Namespace):
    """The namespace, the proxies and replicas in it. folder: for kubeconfigs and logs."""

    folder: pathlib.Path
    rules: list[Object]
    token: str
    proxies: list[Proxy] = dataclasses.field(default_factory=list)
    operators: list[Operator] = dataclasses.field(default_factory=list)

    @property
    def proxy(self) -> Proxy:
        """Of the first replica."""
        return self.proxies[0]

    @property
    def operator(self) -> Operator:
        """The first replica."""
        return self.operators[0]

    def add_operator(self, *arguments: str) -> tuple[Proxy, Operator]:
        """One more replica behind a proxy of its own, not yet started. arguments: of `run`, beside the usual ones."""
        number = len(self.operators)
        proxy = Proxy(*_upstream())
        proxy.start()
        self.proxies.append(proxy)
        kubeconfig = self.folder / f"kubeconfig-{self.name}-{number}"
        kubeconfig.write_text(json.dumps(_kubeconfig(f"http://127.0.0.1:{proxy.port}", self.token)), encoding="utf-8")
        usual = [f"--namespace={self.name}", f"--trainer-image={STANDIN_IMAGE}"]
        environment = {"KUBECONFIG": str(kubeconfig), "POD_NAMESPACE": self.name, "POD_NAME": f"operator-{number}"}
        operator = Operator([*usual, *arguments], environment, self.folder / f"operator-{self.name}-{number}.log")
        self.operators.append(operator)
        return proxy, operator

    def submit(self, name: str, plan: str = "", **spec: Any) -> str:
        """Create a FineTuneJob of the stand-in; its uid."""
        made = self.kubectl("create", "--filename=-", "--output=json", stdin=json.dumps(job_manifest(name, plan, **spec)))
        return str(json.loads(made.stdout)["metadata"]["uid"])

    def wait(self, what: str, condition: Callable[[], Any], timeout: float, job: str | None = None) -> Any:
        """As wait_for, but with a quick eye."""
        end = time.monotonic() + timeout
        while not (result := condition()):
            assert time.monotonic() < end, f"{what}: not within {timeout:g} s\n{self.describe(job)}"
            time.sleep(POLL_SECONDS)
        return result

    def wait_phase(self, job: str, *phases: str, timeout: float = 60) -> Object:
        """Wait for one of the phases; its status. Another end fails at once."""

        def there() -> Object | None:
            status = self.status(job)
            phase = status.get("phase")
            ended = phase in ("Succeeded", "Failed") and phase not in phases
            assert not ended, f"{job} became {phase}: {status.get('message')}\n{self.describe(job)}"
            return status if phase in phases else None

        found: Object = self.wait(f"{job} in phase {' or '.join(phases)}", there, timeout, job)
        return found

    def created(self, resource: str = "jobs") -> list[str]:
        """Names of the objects that any replica created, in order, one entry for each creation."""
        found: list[Record] = []
        for proxy in self.proxies:
            found += proxy.find(lambda call: call.verb == "create" and call.resource == resource)
        return [record.call.target for record in sorted(found, key=lambda record: record.at) if record.status == 201]

    def writes(self, chosen: Callable[[Call], bool], since: int = 0) -> list[Record]:
        """Writes of the first replica that the API server carried out."""
        found = self.proxy.find(lambda call: call.is_write() and chosen(call), since)
        return [record for record in found if 200 <= record.status < 300]

    def job_events(self, uid: str) -> list[Object]:
        """Events that the operator told of a FineTuneJob."""
        return [event for event in self.objects("events") if event["involvedObject"].get("uid") == uid]

    def close(self) -> None:
        """End everything; print the logs, which pytest shows when a test failed."""
        for operator in self.operators:
            operator.kill()
            if operator.exit_code() is not None or operator.runs():
                operator.wait_end()
            print(f"--- {self.name}, an operator's log:\n{operator.log()}")
        for proxy in self.proxies:
            proxy.stop()


@contextlib.contextmanager
def open_place(folder: pathlib.Path, *arguments: str, start: bool = True) -> Iterator[Place]:
    """A place with one operator in it. arguments: further ones of `run`. Pods must pass Pod Security "restricted"."""
    name = f"faults-{secrets.token_hex(4)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kubectl("create", "-f", "-", stdin=json.dumps(_namespace(name, labels)))
    try:
        rules = grant(Namespace(name), ACCOUNT)
        token = kubectl("create", "token", ACCOUNT, f"--namespace={name}", "--duration=2h").stdout.strip()
        place = Place(name, folder, rules, token)
        try:
            _, operator = place.add_operator(*arguments)
            if start:
                operator.start()
            yield place
        finally:
            place.close()
    finally:
        kubectl("delete", "namespace", name, "--wait=false")


def _namespace(name: str, labels: dict[str, str]) -> Object:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def _upstream() -> tuple[str, ssl.SSLContext]:
    """Address of the API server of KUBECONFIG, and a context that trusts it and shows its client certificate, if any."""
    shown = kubectl("config", "view", "--minify", "--raw", "--flatten").stdout
    cluster = yaml.safe_load(shown)["clusters"][0]["cluster"]
    context = ssl.create_default_context()
    if "certificate-authority-data" in cluster:
        context.load_verify_locations(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return cluster["server"].rstrip("/"), context


def _kubeconfig(server: str, token: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "proxy",
        "clusters": [{"name": "proxy", "cluster": {"server": server}}],
        "users": [{"name": "operator", "user": {"token": token}}],
        "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "operator"}}],
    }
