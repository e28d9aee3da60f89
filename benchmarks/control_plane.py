"""What many jobs cost the control plane: `python benchmarks/control_plane.py` against a cluster with pretended nodes (kwok).

Creates many FineTuneJobs of two nodes at once and tells how long it takes until every child Job exists, until every pod runs,
and from the last pod's end until every status is final; what the operator, a process of this machine, used for it; and, where
Kubeflow Trainer is installed, the same of as many TrainJobs, one after the other on the same cluster. With --finished it also
fills the cluster with finished jobs and tells how long the operator needs to be ready again, and its memory.

Needs KUBECONFIG of an administrator, the CRD, and nodes with the taint kwok.x-k8s.io/node=fake. Everything is made in namespaces
of its own, which are deleted again.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import psutil

ROOT = pathlib.Path(__file__).parents[1]
PROXY, OPERATOR = 8901, 8902
TAINT = {"key": "kwok.x-k8s.io/node", "operator": "Equal", "value": "fake", "effect": "NoSchedule"}
PEER_NAMESPACES = ("kubeflow-system", "jobset-system")
POLL_SECONDS = 0.5
# How long a pretended pod runs: so long that all of them run at the same time. The smaller of the two counts.
LIFE = {f"pod-complete.stage.kwok.x-k8s.io/{name}": os.environ.get("POD_LIFE", "240s") for name in ("delay", "jitter-delay")}
UNFINISHED = "fieldSelector=status.phase!=Succeeded,status.phase!=Failed"
Object = dict[str, Any]


def call(method: str, path: str, body: Object | None = None, kind: str = "application/json") -> Object:
    """A request to the API server through kubectl's proxy; errors of writes are tried again, as a client would."""
    data = json.dumps(body).encode() if body is not None else None
    for pause in (0.5, 1, 2, 4, 8, None):
        request = urllib.request.Request(f"http://127.0.0.1:{PROXY}{path}", data, {"Content-Type": kind}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return dict(json.load(response))
        except urllib.error.HTTPError as error:
            if error.code in (404, 409) or pause is None:
                return {"code": error.code}
        except OSError:
            if pause is None:
                raise
        time.sleep(pause)
    raise AssertionError("not reached")


def count(path: str, query: str = "") -> int:
    """How many objects a list has, without reading them."""
    page = call("GET", f"{path}?limit=1&{query}")
    return len(page["items"]) + int(page["metadata"].get("remainingItemCount", 0))


def is_empty(path: str, query: str) -> bool:
    """Whether nothing matches."""
    return not call("GET", f"{path}?limit=1&{query}")["items"]


def wait(what: str, done: Callable[[], bool], timeout: float) -> float:
    """Seconds since the epoch at which a condition held; ends the program when it does not in time."""
    end = time.time() + timeout
    while not done():
        if time.time() > end:
            sys.exit(f"{what}: not within {timeout:g} s")
        time.sleep(POLL_SECONDS)
    return time.time()


def namespace(name: str) -> str:
    """Make a namespace; its path."""
    call("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return f"namespaces/{name}"


def finetune_job(name: str) -> Object:
    """A FineTuneJob of two pods that pretended nodes take."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "task": "text-classification",
            "model": {"hub": {"name": "a/b"}},
            "datasets": [{"hub": {"name": "c/d"}}],
            "distributed": {"nodes": 2},
            "output": {"claim": {"claimName": "shared", "path": name}},
            "pod": {
                "tolerations": [TAINT],
                "nodeSelector": {"type": "fake"},
                "resources": {"requests": {"cpu": "10m"}},
                "annotations": LIFE,
            },
        },
    }


def train_job(name: str) -> Object:
    """A TrainJob of the same size."""
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name},
        "spec": {"runtimeRef": {"name": "bench-torch"}, "trainer": {"numNodes": 2, "numProcPerNode": 1}},
    }


def training_runtime() -> Object:
    """What all TrainJobs have in common."""
    container = {"name": "node", "image": "none", "resources": {"requests": {"cpu": "10m"}}}
    pod = {"tolerations": [TAINT], "nodeSelector": {"type": "fake"}, "containers": [container]}
    job = {
        "name": "node",
        "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {"template": {"metadata": {"annotations": LIFE}, "spec": pod}},
        },
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "ClusterTrainingRuntime",
        "metadata": {"name": "bench-torch", "labels": {"trainer.kubeflow.org/framework": "torch"}},
        "spec": {"mlPolicy": {"numNodes": 1, "torch": {"numProcPerNode": 1}}, "template": {"spec": {"replicatedJobs": [job]}}},
    }


@dataclasses.dataclass
class Figures:
    """Seconds, CPU seconds and MiB of one run."""

    children: float
    ran: float
    final: float
    cpu: float
    memory: float

    def row(self, name: str) -> str:
        values = (self.children, self.ran, self.final, self.cpu, self.memory)
        return f"{name:<18}" + "".join(f"{value:>12.1f}" for value in values)


def create_all(path: str, build: Callable[[str], Object], number: int) -> None:
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda index: call("POST", path, build(f"job-{index}")), range(number)))


def measure(
    scope: str, path: str, build: Callable[[str], Object], number: int, is_final: Callable[[], bool]
) -> tuple[float, ...]:
    """Create the jobs and wait; seconds until all Jobs exist, until all pods run, from the last pod's end until all is final."""
    jobs, pods = f"/apis/batch/v1/{scope}/jobs", f"/api/v1/{scope}/pods"
    began = time.time()
    create_all(path, build, number)
    print(f"  {number} created after {time.time() - began:.1f} s", flush=True)
    children = wait("every child Job", lambda: count(jobs) >= number, 900) - began
    print(f"  every Job exists after {children:.1f} s", flush=True)
    wait("every pod", lambda: count(pods) >= 2 * number, 1800)
    run = wait("every pod's start", lambda: is_empty(pods, "fieldSelector=status.phase=Pending"), 1800) - began
    print(f"  every pod runs, or has run, after {run:.1f} s", flush=True)
    ended = wait("every pod's end", lambda: is_empty(pods, UNFINISHED), 1800)
    final = wait("every final status", is_final, 1800) - ended
    print(f"  every status is final {final:.1f} s after the last pod's end", flush=True)
    return children, run, final


@contextlib.contextmanager
def operator(scope: str) -> Iterator[psutil.Process]:
    """The operator as a process of this machine, ready."""
    command = [
        sys.executable,
        "-m",
        "finetune_operator",
        "run",
        "--namespace",
        scope,
        "--port",
        str(OPERATOR),
        "--lease",
        "bench",
    ]
    paths = os.pathsep.join(str(ROOT / name) for name in ("crds", "operator"))
    environment = {**os.environ, "PYTHONPATH": paths, "POD_NAMESPACE": scope}
    with pathlib.Path("control-plane.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stderr=log)
    try:
        wait("the operator", is_ready, 120)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def is_ready() -> bool:
    """Whether the operator says so."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{OPERATOR}/readyz", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def usage(process: psutil.Process) -> tuple[float, float]:
    """CPU seconds so far, peak of the resident memory in MiB."""
    times = process.cpu_times()
    lines = pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return times.user + times.system, peak / 1024


def api_requests() -> dict[str, int]:
    """Requests of the operator by verb and kind, without those of the watches and the Lease."""
    with urllib.request.urlopen(f"http://127.0.0.1:{OPERATOR}/metrics", timeout=10) as response:
        text = response.read().decode()
    found: dict[str, int] = {}
    for line in text.splitlines():
        if line.startswith("finetune_operator_api_requests_total{"):
            labels = dict(part.split("=") for part in line[line.index("{") + 1 : line.index("}")].replace('"', "").split(","))
            if labels["kind"] != "Lease":
                name = f"{labels['verb']} {labels['kind']}"
                found[name] = found.get(name, 0) + int(float(line.rsplit(" ", 1)[1]))
    return found


def peer_usage() -> tuple[float, float]:
    """CPU seconds so far and memory in MiB of the peer's controllers, as the kubelets tell."""
    cpu = memory = 0.0
    for node in call("GET", "/api/v1/nodes?labelSelector=type!=fake")["items"]:
        summary = call("GET", f"/api/v1/nodes/{node['metadata']['name']}/proxy/stats/summary")
        for pod in summary.get("pods", ()):
            if pod["podRef"]["namespace"] in PEER_NAMESPACES:
                cpu += pod.get("cpu", {}).get("usageCoreNanoSeconds", 0) / 1e9
                memory += pod.get("memory", {}).get("workingSetBytes", 0) / 2**20
    return cpu, memory


def run_ours(number: int) -> Figures:
    """As many FineTuneJobs."""
    name = f"bench-ours-{int(time.time())}"
    scope = namespace(name)
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "shared"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    call("POST", f"/api/v1/{scope}/persistentvolumeclaims", claim)
    path = f"/apis/finetune.dev/v1alpha1/{scope}/finetunejobs"
    try:
        with operator(name) as process:
            before, _ = usage(process)
            times = measure(scope, path, finetune_job, number, lambda: is_empty(path, UNFINISHED))
            cpu, memory = usage(process)
            requests = api_requests()
            writes = {key: value for key, value in requests.items() if key.split()[0] not in ("get", "list")}
            print(f"  requests: {requests}")
            print(f"  writes per job, without events: {sum(v for k, v in writes.items() if 'Event' not in k) / number:.1f}")
        return Figures(*times, cpu - before, memory)
    finally:
        call("DELETE", f"/api/v1/{scope}")


def run_peer(number: int) -> Figures:
    """As many TrainJobs."""
    scope = namespace(f"bench-peer-{int(time.time())}")
    call("POST", "/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes", training_runtime())
    path = f"/apis/trainer.kubeflow.org/v1alpha1/{scope}/trainjobs"

    def is_final() -> bool:
        items = call("GET", path)["items"]
        done = [item for item in items if any(c["type"] == "Complete" for c in item.get("status", {}).get("conditions", ()))]
        return len(done) == number

    try:
        before, _ = peer_usage()
        times = measure(scope, path, train_job, number, is_final)
        cpu, memory = peer_usage()
        return Figures(*times, cpu - before, memory)
    finally:
        call("DELETE", f"/api/v1/{scope}")


def run_finished(finished: int, running: int) -> None:
    """The operator's start and memory among very many finished jobs and some that run."""
    name = f"bench-finished-{int(time.time())}"
    scope = namespace(name)
    path = f"/apis/finetune.dev/v1alpha1/{scope}/finetunejobs"
    status = {"phase": "Succeeded", "reason": "Completed", "attempt": 1, "startTime": "2026-01-01T00:00:00Z"}
    patch = {"status": {**status, "completionTime": "2026-01-01T01:00:00Z", "message": "trained 100 steps"}}

    def create_finished(index: int) -> None:
        call("POST", path, finetune_job(f"old-{index}"))
        call("PATCH", f"{path}/old-{index}/status", patch, "application/merge-patch+json")

    try:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(create_finished, range(finished)))
        began = time.time()
        with operator(name) as process:
            print(f"  ready {time.time() - began:.1f} s after the start, among {finished} finished jobs")
            create_all(path, finetune_job, running)
            wait("the jobs", lambda: count(f"/apis/batch/v1/{scope}/jobs") >= running, 900)
            time.sleep(60)
            cpu, memory = usage(process)
            print(f"  with {running} more that are not finished: {memory:.0f} MiB at most, {cpu:.0f} s of CPU")
    finally:
        call("DELETE", f"/api/v1/{scope}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--finished", type=int, default=0, help="also: start among so many finished jobs, as 10000")
    parser.add_argument("--no-peer", action="store_true", help="leave Kubeflow Trainer out though it is installed")
    options = parser.parse_args()
    proxy = subprocess.Popen(["kubectl", "proxy", f"--port={PROXY}"], stdout=subprocess.DEVNULL)
    try:
        time.sleep(2)
        print("ours", flush=True)
        ours = run_ours(options.jobs)
        peer = None
        if not options.no_peer and "code" not in call("GET", "/apis/trainer.kubeflow.org/v1alpha1"):
            print("Kubeflow Trainer", flush=True)
            peer = run_peer(options.jobs)
        print(f"\n{options.jobs} jobs of 2 nodes" + " " * 1 + "children s       ran s     final s       CPU s         MiB")
        print(ours.row("ours"))
        if peer is not None:
            print(peer.row("Kubeflow Trainer"))
            ratios = [getattr(peer, field.name) / max(getattr(ours, field.name), 0.1) for field in dataclasses.fields(Figures)]
            print(f"{'ratio':<18}" + "".join(f"{ratio:>11.1f}×" for ratio in ratios))
        if options.finished:
            run_finished(options.finished, options.jobs)
    finally:
        proxy.terminate()


if __name__ == "__main__":
    main()
