"""What breaks on a cluster, done on purpose: processes, pods, machines, the operator, the API server.

Machines and API server are not for kubectl to break: that is done by commands from the environment, each run with the name of the
machine behind it (the last without): NODE_KILL, NODE_START, NODE_CUT, NODE_HEAL, API_SERVER_RESTART. On kind:
NODE_KILL="docker kill", NODE_START="docker start", NODE_CUT="docker network disconnect kind", NODE_HEAL="docker network connect
kind".
"""

import contextlib
import dataclasses
import json
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from typing import Literal

import pytest

from cluster.kube import Namespace, Object, kubectl

Command = Literal["NODE_KILL", "NODE_START", "NODE_CUT", "NODE_HEAL", "API_SERVER_RESTART"]
# Runs in a pod: sends a signal to its training processes, not to launcher and torchrun, and prints how many there were.
_SIGNAL = """
import json, os, pathlib
rounds = [json.loads(path.read_text()) for path in pathlib.Path("/tmp").glob("finetune-*/round.json")]
found = [pid for started in rounds for pid in started["pids"].values()]
for pid in found:
    os.kill(pid, SIGNAL)
print(len(found))
"""


def needs(*commands: Command) -> None:
    """Skip the test where the environment does not say how machines are broken here."""
    missing = [name for name in commands if not os.environ.get(name)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: commands that break a machine of the cluster (tests/cluster/trouble.py)")


def do(command: Command, *arguments: str) -> None:
    """Run one of the commands of the environment."""
    done = subprocess.run(
        [*shlex.split(os.environ[command]), *arguments], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, f"{command} {' '.join(arguments)}: {done.stdout}{done.stderr}"


@contextlib.contextmanager
def node_down(node: str, down: Command = "NODE_KILL", up: Command = "NODE_START") -> Iterator[None]:
    """A machine that is dead, or cut off, for the time of the block; ready again afterwards."""
    do(down, node)
    try:
        yield
    finally:
        do(up, node)
        kubectl("wait", "--for=condition=Ready", f"node/{node}", "--timeout=120s", timeout=150)


@contextlib.contextmanager
def kueue_on_two_machines() -> Iterator[None]:
    """Kueue, where it is installed, with a second pod: all pods and Jobs need its webhook, also those that replace lost ones."""
    kueue = ("--namespace", "kueue-system", "deployment/kueue-controller-manager")
    replicas = kubectl("get", *kueue, "--ignore-not-found", "--output=jsonpath={.spec.replicas}", check=False).stdout
    if replicas != "1":
        yield
        return
    kubectl("scale", *kueue, "--replicas=2")
    try:
        rollout = kubectl("rollout", "status", *kueue, "--timeout=90s", check=False)
        if rollout.returncode:  # one pod does, too, where it is not on the machine that breaks
            pods = kubectl("describe", "pods", "--namespace", "kueue-system", check=False).stdout
            print(f"Kueue has no second pod: {rollout.stderr.strip()}\n{pods}")
        yield
    finally:
        kubectl("scale", *kueue, "--replicas=1")


@dataclasses.dataclass(frozen=True)
class Trouble:
    """What can happen to one running job. system: the operator's namespace."""

    system: Namespace
    jobs: Namespace
    job: str

    def pod(self, index: int) -> Object:
        """The running pod with that completion index, of the newest attempt."""
        of_index = [pod for pod in self.jobs.pods(self.job) if self._index(pod) == index and self._runs(pod)]
        assert of_index, f"no pod with index {index} runs\n{self.jobs.describe(self.job)}"
        return max(of_index, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def node(self, index: int) -> str:
        """The machine that it runs on."""
        return str(self.pod(index)["spec"]["nodeName"])

    def signal_workers(self, index: int, number: int) -> None:
        """Send a signal to the training processes of a pod."""
        name = self.pod(index)["metadata"]["name"]
        code = _SIGNAL.replace("SIGNAL", str(number))
        done = self.jobs.kubectl("exec", "--stdin", name, "--", "python", "-", stdin=code)
        assert int(done.stdout) >= 1, f"no training process in {name}"

    def kill_process(self, index: int) -> None:
        self.signal_workers(index, 9)

    def delete_pod(self, index: int) -> None:
        self.jobs.kubectl("delete", "pod", self.pod(index)["metadata"]["name"], "--wait=false")

    def force_delete_pod(self, index: int) -> None:
        self.jobs.kubectl("delete", "pod", self.pod(index)["metadata"]["name"], "--wait=false", "--force", "--grace-period=0")

    def evict(self, name: str) -> None:
        """A pod, through the API, as `kubectl drain` does it."""
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": self.jobs.name}}
        path = f"/api/v1/namespaces/{self.jobs.name}/pods/{name}/eviction"
        self.jobs.kubectl("create", "--raw", path, "--filename", "-", stdin=json.dumps(eviction))

    def kill_operator(self) -> None:
        """The operator's pods, without a word."""
        self.system.kubectl("delete", "pods", "--all", "--wait=false", "--force", "--grace-period=0")

    def restart_api_server(self) -> None:
        for seconds in (20, 60, 60):  # one that does not get ready in time ends itself, and nobody else would start it again
            do("API_SERVER_RESTART")
            if api_server_answers(within_seconds=seconds):
                return
            print(f"the API server did not come back within {seconds} s")
        raise AssertionError("the API server does not come back")

    def kill_node(self, index: int) -> None:
        """The machine falls and boots again at once."""
        with node_down(self.node(index)):
            pass

    def cut_node(self, index: int) -> None:
        """The machine loses its network for so long that it is given up, then comes back."""
        node, attempt = self.node(index), self.jobs.status(self.job)["attempt"]
        with node_down(node, "NODE_CUT", "NODE_HEAL"):
            self.jobs.wait_for(
                "an attempt after the one of the machine that is cut off",
                lambda: self.jobs.status(self.job).get("attempt", 0) > attempt,
                240,
                self.job,
            )

    @staticmethod
    def _index(pod: Object) -> int:
        return int(pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"])

    @staticmethod
    def _runs(pod: Object) -> bool:
        return pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]


def api_server_answers(within_seconds: float) -> bool:
    """Wait until it answers again, and means it; whether it does."""
    deadline = time.monotonic() + within_seconds
    while kubectl("get", "--raw", "/readyz", check=False).stdout != "ok":
        if time.monotonic() > deadline:
            return False
        time.sleep(1)
    return True
