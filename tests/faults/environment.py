"""A test's environment: a namespace, the permissions that the chart grants, and replicas of the operator, each behind a proxy."""

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
from faults.permissions import grant
from faults.proxy import Proxy

ACCOUNT = "operator"
LABEL = "finetune.dev/finetunejob"
POLL_SECONDS = 0.3
FAKE_TRAINER_IMAGE = os.environ.get("FAKE_TRAINER_IMAGE", "localhost/finetune-fake-trainer:dev")
SMALL_RESOURCES = {"requests": {"cpu": "20m", "memory": "32Mi"}}


def job_manifest(name: str, plan: str = "", **spec: Any) -> Object:
    """Return a FineTuneJob whose two pods run the fake trainer for 10 steps, about a second. plan: see tests/fake_trainer."""
    training = {"maxSteps": 10, **spec.pop("training", {})}
    pod = {"image": FAKE_TRAINER_IMAGE, "resources": SMALL_RESOURCES, **spec.pop("pod", {})}
    samples = {"samples": [{"text": f"fake-trainer: {plan}"}]} if plan else {}
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "task": "text-classification",
            "model": {"hub": {"name": "example/model"}},
            "datasets": [{"hub": {"name": "example/data"}}],
            "training": training,
            "distributed": {"nodes": 2},
            "pod": pod,
            **samples,
            **spec,
        },
    }


@dataclasses.dataclass(frozen=True)
class Environment(Namespace):
    """The namespace of a test.

    folder: directory for kubeconfigs and logs. rules: RBAC rules of the operator. token: of the operator's service account.
    proxies, operators: one of each per replica.
    """

    folder: pathlib.Path
    rules: list[Object]
    token: str
    proxies: list[Proxy] = dataclasses.field(default_factory=list)
    operators: list[Operator] = dataclasses.field(default_factory=list)

    @property
    def proxy(self) -> Proxy:
        """The proxy of the first replica."""
        return self.proxies[0]

    @property
    def operator(self) -> Operator:
        """The first replica."""
        return self.operators[0]

    def add_operator(self, *arguments: str) -> tuple[Proxy, Operator]:
        """Add a replica behind a new proxy, without starting the replica. arguments: further arguments of `run`."""
        number = len(self.operators)
        proxy = Proxy(*_upstream())
        proxy.start()
        self.proxies.append(proxy)
        kubeconfig = self.folder / f"kubeconfig-{self.name}-{number}"
        kubeconfig.write_text(json.dumps(_kubeconfig(f"http://127.0.0.1:{proxy.port}", self.token)), encoding="utf-8")
        site = self.folder / "site.yaml"
        # As in the chart, but the operator is a process outside of the cluster.
        peer = {"ipBlock": {"cidr": "0.0.0.0/0"}}
        defaults = {"networkPolicy": {"enabled": True, "operatorPeer": peer}, "podGroups": False}
        site.write_text(json.dumps(defaults), encoding="utf-8")
        common = [f"--namespace={self.name}", f"--trainer-image={FAKE_TRAINER_IMAGE}", f"--site-file={site}"]
        variables = {"KUBECONFIG": str(kubeconfig), "POD_NAMESPACE": self.name, "POD_NAME": f"operator-{number}"}
        operator = Operator([*common, *arguments], variables, self.folder / f"operator-{self.name}-{number}.log")
        self.operators.append(operator)
        return proxy, operator

    def submit(self, name: str, plan: str = "", **spec: Any) -> str:
        """Create a FineTuneJob that runs the fake trainer, and return its uid."""
        created = self.kubectl("create", "--filename=-", "--output=json", stdin=json.dumps(job_manifest(name, plan, **spec)))
        return str(json.loads(created.stdout)["metadata"]["uid"])

    def wait(self, what: str, condition: Callable[[], Any], timeout: float, job: str | None = None) -> Any:
        """Poll as wait_for does, but at a shorter interval."""
        end = time.monotonic() + timeout
        while not (result := condition()):
            assert time.monotonic() < end, f"{what}: not within {timeout:g} s\n{self.describe(job)}"
            time.sleep(POLL_SECONDS)
        return result

    def wait_phase(self, job: str, *phases: str, timeout: float = 60) -> Object:
        """Wait until a FineTuneJob is in one of the phases, and return its status. Fail at once if it ends in another phase."""

        def reached() -> Object | None:
            status = self.status(job)
            phase = status.get("phase")
            ended = phase in ("Succeeded", "Failed") and phase not in phases
            assert not ended, f"{job} became {phase}: {status.get('message')}\n{self.describe(job)}"
            return status if phase in phases else None

        found: Object = self.wait(f"{job} in phase {' or '.join(phases)}", reached, timeout, job)
        return found

    def created(self, resource: str = "jobs") -> list[str]:
        """Return the names of the objects that the replicas created, in order. Each creation gives one entry."""
        found: list[Record] = []
        for proxy in self.proxies:
            found += proxy.find(lambda call: call.verb == "create" and call.resource == resource)
        return [record.call.target for record in sorted(found, key=lambda record: record.at) if record.status == 201]

    def writes(self, match: Callable[[Call], bool], since: int = 0) -> list[Record]:
        """Return the matching writes of the first replica that succeeded. since: index of the first record."""
        found = self.proxy.find(lambda call: call.is_write() and match(call), since)
        return [record for record in found if 200 <= record.status < 300]

    def job_events(self, uid: str) -> list[Object]:
        """Return the Events of a FineTuneJob."""
        return [event for event in self.objects("events") if event["involvedObject"].get("uid") == uid]

    def close(self) -> None:
        """Stop the replicas and the proxies, and print the logs. Pytest shows the output of a test that failed."""
        for operator in self.operators:
            operator.kill()
            if operator.exit_code() is not None or operator.is_running():
                operator.wait_exit()
            print(f"--- {self.name}, log of an operator:\n{operator.log()}")
        for proxy in self.proxies:
            proxy.stop()


@contextlib.contextmanager
def open_environment(folder: pathlib.Path, *arguments: str, start: bool = True) -> Iterator[Environment]:
    """Create a namespace with one operator. It enforces Pod Security "restricted". arguments: further arguments of `run`."""
    name = f"faults-{secrets.token_hex(4)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kubectl("create", "-f", "-", stdin=json.dumps(_namespace(name, labels)))
    try:
        rules = grant(Namespace(name), ACCOUNT)
        token = kubectl("create", "token", ACCOUNT, f"--namespace={name}", "--duration=2h").stdout.strip()
        env = Environment(name, folder, rules, token)
        try:
            _, operator = env.add_operator(*arguments)
            if start:
                operator.start()
            yield env
        finally:
            env.close()
    finally:
        kubectl("delete", "namespace", name, "--wait=false")


def _namespace(name: str, labels: dict[str, str]) -> Object:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def _upstream() -> tuple[str, ssl.SSLContext]:
    """Return the address of the API server in KUBECONFIG, and an SSL context that trusts its certificate."""
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
