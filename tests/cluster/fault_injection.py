"""Fault injection on a cluster: faults of processes, pods, nodes, the operator and the API server.

kubectl cannot break nodes and the API server. Commands in environment variables do that: NODE_KILL, NODE_START, NODE_CUT,
NODE_HEAL and API_SERVER_RESTART. All but the last get the name of the node as their last argument. On kind:
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
# Runs in a pod. Sends a signal to its training processes, but not to launcher and torchrun, and prints their number.
_SIGNAL = """
import json, os, pathlib
generations = [json.loads(path.read_text()) for path in pathlib.Path("/tmp").glob("finetune-*/round.json")]
found = [pid for generation in generations for pid in generation["pids"].values()]
for pid in found:
    os.kill(pid, SIGNAL)
print(len(found))
"""


def require_commands(*commands: Command) -> None:
    """Skip the test if the environment lacks one of these commands."""
    missing = [name for name in commands if not os.environ.get(name)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: commands that break a node of the cluster (tests/cluster/fault_injection.py)")


def run_command(command: Command, *arguments: str) -> None:
    """Run a command of the environment."""
    done = subprocess.run(
        [*shlex.split(os.environ[command]), *arguments], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, f"{command} {' '.join(arguments)}: {done.stdout}{done.stderr}"


@contextlib.contextmanager
def node_down(node: str, down: Command = "NODE_KILL", up: Command = "NODE_START") -> Iterator[None]:
    """Kill or disconnect a node for the duration of the block. Afterwards wait until it is ready again."""
    run_command(down, node)
    try:
        yield
    finally:
        run_command(up, node)
        kubectl("wait", "--for=condition=Ready", f"node/{node}", "--timeout=120s", timeout=150)


@contextlib.contextmanager
def kueue_with_two_replicas() -> Iterator[None]:
    """Run a second pod of Kueue, if Kueue is installed. Pods and Jobs that replace lost ones need its webhook, too."""
    kueue = ("--namespace", "kueue-system", "deployment/kueue-controller-manager")
    replicas = kubectl("get", *kueue, "--ignore-not-found", "--output=jsonpath={.spec.replicas}", check=False).stdout
    if replicas != "1":
        yield
        return
    kubectl("scale", *kueue, "--replicas=2")
    try:
        rollout = kubectl("rollout", "status", *kueue, "--timeout=90s", check=False)
        if rollout.returncode:  # one pod is enough if it does not run on the node that fails
            pods = kubectl("describe", "pods", "--namespace", "kueue-system", check=False).stdout
            print(f"Kueue has no second pod: {rollout.stderr.strip()}\n{pods}")
        yield
    finally:
        kubectl("scale", *kueue, "--replicas=1")


@dataclasses.dataclass(frozen=True)
class FaultInjector:
    """Injects faults into one running job. system: namespace of the operator."""

    system: Namespace
    jobs: Namespace
    job: str

    def pod(self, index: int) -> Object:
        """Return the running pod with that completion index, of the newest attempt."""
        of_index = [pod for pod in self.jobs.pods(self.job) if self._index(pod) == index and self._runs(pod)]
        assert of_index, f"no pod with index {index} runs\n{self.jobs.describe(self.job)}"
        return max(of_index, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def node(self, index: int) -> str:
        """Return the node of that pod."""
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
        """Evict a pod through the API, as `kubectl drain` does."""
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": self.jobs.name}}
        path = f"/api/v1/namespaces/{self.jobs.name}/pods/{name}/eviction"
        self.jobs.kubectl("create", "--raw", path, "--filename", "-", stdin=json.dumps(eviction))

    def kill_operator(self) -> None:
        """Delete the pods of the operator by force."""
        self.system.kubectl("delete", "pods", "--all", "--wait=false", "--force", "--grace-period=0")

    def restart_api_server(self) -> None:
        for seconds in (20, 60, 60):  # an API server that is not ready in time exits, and nothing else restarts it
            run_command("API_SERVER_RESTART")
            if api_server_answers(within_seconds=seconds):
                return
            print(f"the API server was not ready within {seconds} s")
        raise AssertionError("the API server does not become ready")

    def kill_node(self, index: int) -> None:
        """Kill the node and start it again at once."""
        with node_down(self.node(index)):
            pass

    def cut_node(self, index: int) -> None:
        """Disconnect the node until the job has started another attempt, then reconnect it."""
        node, attempt = self.node(index), self.jobs.status(self.job)["attempt"]
        with node_down(node, "NODE_CUT", "NODE_HEAL"):
            self.jobs.wait_for(
                "an attempt after the one on the disconnected node",
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
    """Wait until the API server is ready. Return whether it is."""
    deadline = time.monotonic() + within_seconds
    while kubectl("get", "--raw", "/readyz", check=False).stdout != "ok":
        if time.monotonic() > deadline:
            return False
        time.sleep(1)
    return True
