"""Measure what many jobs cost the control plane: `python benchmarks/control_plane.py` on a cluster with fake nodes (kwok).

It creates many FineTuneJobs of two nodes at once. It prints the time until every child Job exists, until every pod runs, and from
the end of the last pod until every status is final, and the CPU time and memory of the operator, which runs as a local process.
If Kubeflow Trainer is installed, it then measures the same number of TrainJobs on the same cluster. With --finished, it also
fills the cluster with finished jobs and their children, and prints how long the operator takes to become ready, and its memory.

It needs a KUBECONFIG with administrator rights, the CRD, and nodes with the taint kwok.x-k8s.io/node=fake. It creates everything
in new namespaces and deletes them at the end.
"""

import argparse
import concurrent.futures
import contextlib
import copy
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

from finetune_api.resource import parse_spec
from finetune_operator.manifests import Plan
from finetune_operator.manifests.job import build_job

ROOT = pathlib.Path(__file__).parents[1]
PROXY, OPERATOR = 8901, 8902
TAINT = {"key": "kwok.x-k8s.io/node", "operator": "Equal", "value": "fake", "effect": "NoSchedule"}
PEER_NAMESPACES = ("kubeflow-system", "jobset-system")
POLL_SECONDS = 0.5
# How long a fake pod runs: long enough that all of them run at the same time. kwok uses the smaller of the two.
POD_LIFETIME = {
    f"pod-complete.stage.kwok.x-k8s.io/{name}": os.environ.get("POD_LIFE", "240s") for name in ("delay", "jitter-delay")
}
UNFINISHED = "fieldSelector=status.phase!=Succeeded,status.phase!=Failed"
Object = dict[str, Any]


def call(method: str, path: str, body: Object | None = None, kind: str = "application/json") -> Object:
    """Send a request to the API server through kubectl's proxy, and retry it after an error, as a client does."""
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
    """Return the number of objects in a list, without reading them all."""
    page = call("GET", f"{path}?limit=1&{query}")
    return len(page["items"]) + int(page["metadata"].get("remainingItemCount", 0))


def is_empty(path: str, query: str) -> bool:
    """Return whether no object matches."""
    return not call("GET", f"{path}?limit=1&{query}")["items"]


def wait(what: str, done: Callable[[], bool], timeout: float) -> float:
    """Wait for a condition and return the time in seconds since the epoch; exit after the timeout."""
    end = time.time() + timeout
    while not done():
        if time.time() > end:
            sys.exit(f"{what}: not within {timeout:g} s")
        time.sleep(POLL_SECONDS)
    return time.time()


def namespace(name: str) -> str:
    """Create a namespace and return its path."""
    call("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return f"namespaces/{name}"


def finetune_job(name: str) -> Object:
    """Return a FineTuneJob of two pods that fit on the fake nodes."""
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
                "annotations": POD_LIFETIME,
            },
        },
    }


def train_job(name: str) -> Object:
    """Return a TrainJob of the same size."""
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name},
        "spec": {"runtimeRef": {"name": "bench-torch"}, "trainer": {"numNodes": 2, "numProcPerNode": 1}},
    }


def training_runtime() -> Object:
    """Return the runtime of all TrainJobs."""
    container = {"name": "node", "image": "none", "resources": {"requests": {"cpu": "10m"}}}
    pod = {"tolerations": [TAINT], "nodeSelector": {"type": "fake"}, "containers": [container]}
    job = {
        "name": "node",
        "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {"template": {"metadata": {"annotations": POD_LIFETIME}, "spec": pod}},
        },
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "ClusterTrainingRuntime",
        "metadata": {"name": "bench-torch", "labels": {"trainer.kubeflow.org/framework": "torch"}},
        "spec": {"mlPolicy": {"numNodes": 1, "torch": {"numProcPerNode": 1}}, "template": {"spec": {"replicatedJobs": [job]}}},
    }


@dataclasses.dataclass
class Measurement:
    """Seconds, CPU seconds and MiB of one run."""

    children: float
    running: float
    final: float
    cpu: float
    memory: float

    def row(self, name: str) -> str:
        values = (self.children, self.running, self.final, self.cpu, self.memory)
        return f"{name:<18}" + "".join(f"{value:>12.1f}" for value in values)


def create_all(path: str, build: Callable[[str], Object], number: int) -> None:
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda index: call("POST", path, build(f"job-{index}")), range(number)))


def measure(
    scope: str, path: str, build: Callable[[str], Object], number: int, is_final: Callable[[], bool]
) -> tuple[float, ...]:
    """Create the jobs, and wait until they end.

    Returns the seconds until all Jobs exist, until all pods run, and from the end of the last pod to the last final status.
    """
    jobs, pods = f"/apis/batch/v1/{scope}/jobs", f"/api/v1/{scope}/pods"
    started = time.time()
    create_all(path, build, number)
    print(f"  {number} created after {time.time() - started:.1f} s", flush=True)
    children = wait("every child Job", lambda: count(jobs) >= number, 900) - started
    print(f"  every Job exists after {children:.1f} s", flush=True)
    wait("every pod", lambda: count(pods) >= 2 * number, 1800)
    running = wait("every pod's start", lambda: is_empty(pods, "fieldSelector=status.phase=Pending"), 1800) - started
    print(f"  every pod has started after {running:.1f} s", flush=True)
    ended = wait("every pod's end", lambda: is_empty(pods, UNFINISHED), 1800)
    final = wait("every final status", is_final, 1800) - ended
    print(f"  every status is final {final:.1f} s after the last pod's end", flush=True)
    return children, running, final


@contextlib.contextmanager
def operator(scope: str) -> Iterator[psutil.Process]:
    """Run the operator as a local process; yield it when it is ready."""
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
    """Return whether the operator reports that it is ready."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{OPERATOR}/readyz", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def usage(process: psutil.Process) -> tuple[float, float]:
    """Return the CPU seconds so far, and the peak of the resident memory in MiB."""
    times = process.cpu_times()
    lines = pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return times.user + times.system, peak / 1024


def samples(metric: str) -> Iterator[tuple[dict[str, str], float]]:
    """Yield labels and value of each series of one of the operator's metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{OPERATOR}/metrics", timeout=10) as response:
        for line in response.read().decode().splitlines():
            if line.startswith(f"{metric}{{"):
                labels = line[line.index("{") + 1 : line.index("}")].replace('"', "")
                yield dict(part.split("=") for part in labels.split(",")), float(line.rsplit(" ", 1)[1])


def api_requests() -> dict[str, int]:
    """Return the number of the operator's requests by verb and kind, without the watches and the Lease."""
    found: dict[str, int] = {}
    for labels, value in samples("finetune_operator_api_requests_total"):
        if labels["kind"] != "Lease" and labels["verb"] != "watch":
            name = f"{labels['verb']} {labels['kind']}"
            found[name] = found.get(name, 0) + int(value)
    return found


def reconcile_p99() -> str:
    """Return the bucket that holds the 99th percentile of the reconciles from the cache."""
    buckets = [
        (float(labels["le"]), value)
        for labels, value in samples("finetune_operator_reconcile_duration_seconds_bucket")
        if labels["read"] == "cache"
    ]
    total = max((value for _, value in buckets), default=0.0)
    limit = min((le for le, value in buckets if value >= 0.99 * total), default=0.0)
    return f"at most {1000 * limit:g} ms ({total:.0f} reconciles from the cache)"


def peer_usage() -> tuple[float, float]:
    """Return the CPU seconds so far and the memory in MiB of Kubeflow Trainer's controllers, from the kubelets."""
    cpu = memory = 0.0
    for node in call("GET", "/api/v1/nodes?labelSelector=type!=fake")["items"]:
        summary = call("GET", f"/api/v1/nodes/{node['metadata']['name']}/proxy/stats/summary")
        for pod in summary.get("pods", ()):
            if pod["podRef"]["namespace"] in PEER_NAMESPACES:
                cpu += pod.get("cpu", {}).get("usageCoreNanoSeconds", 0) / 1e9
                memory += pod.get("memory", {}).get("workingSetBytes", 0) / 2**20
    return cpu, memory


def run_ours(number: int) -> Measurement:
    """Measure the FineTuneJobs."""
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
            print(f"  99th percentile of a reconcile: {reconcile_p99()}")
        return Measurement(*times, cpu - before, memory)
    finally:
        call("DELETE", f"/api/v1/{scope}")


def run_peer(number: int) -> Measurement:
    """Measure the TrainJobs."""
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
        return Measurement(*times, cpu - before, memory)
    finally:
        call("DELETE", f"/api/v1/{scope}")


def finished_children(name: str, uid: str) -> Iterator[tuple[str, Object]]:
    """Yield path and manifest of a finished Job and its two pods, as the operator creates them, and as they end."""
    plan = Plan("default", name, uid, 1, parse_spec(finetune_job(name)["spec"]), nodes=2, image="none", restarts_left=3)
    job = build_job(plan)
    job["metadata"].pop("namespace")
    job["spec"]["managedBy"] = "finetune.dev/benchmark"  # so the Job controller leaves it alone
    start, end = "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"
    complete = [{"type": kind, "status": "True", "lastTransitionTime": end} for kind in ("SuccessCriteriaMet", "Complete")]
    times = {"startTime": start, "completionTime": end}
    yield "jobs", {**job, "status": {**times, "succeeded": 2, "completedIndexes": "0-1", "conditions": complete}}
    report = json.dumps({"attempt": 1, "phase": "Succeeded", "step": 100, "totalSteps": 100, "message": "x" * 1000})
    ended = {"exitCode": 0, "reason": "Completed", "startedAt": start, "finishedAt": end, "message": report}
    for index in range(2):
        template = copy.deepcopy(job["spec"]["template"])
        template["metadata"]["name"] = f"{name}-1-{index}"
        template["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] = str(index)
        template["spec"]["schedulerName"] = "none"
        trainer = {"name": "trainer", "image": "none", "imageID": "none", "ready": False, "restartCount": 0}
        status = {"phase": "Succeeded", "containerStatuses": [{**trainer, "state": {"terminated": ended}}]}
        yield "pods", {"apiVersion": "v1", "kind": "Pod", **template, "status": status}


def create_finished(scope: str, name: str) -> None:
    """Create a finished FineTuneJob with its children."""
    path = f"/apis/finetune.dev/v1alpha1/{scope}/finetunejobs"
    status = {"observedGeneration": 1, "phase": "Succeeded", "reason": "Completed", "message": "trained 100 steps", "attempt": 1}
    patch = {"status": {**status, "startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T01:00:00Z"}}
    uid = call("POST", path, finetune_job(name))["metadata"]["uid"]
    call("PATCH", f"{path}/{name}/status", patch, "application/merge-patch+json")
    job_uid = ""
    for plural, manifest in finished_children(name, uid):
        path = f"/apis/batch/v1/{scope}/jobs" if plural == "jobs" else f"/api/v1/{scope}/pods"
        if plural == "pods":
            owner = {"apiVersion": "batch/v1", "kind": "Job", "name": f"{name}-1", "uid": job_uid, "controller": True}
            manifest["metadata"]["ownerReferences"] = [owner]
        created = call("POST", path, manifest)
        job_uid = job_uid or created["metadata"]["uid"]
        status_path = f"{path}/{created['metadata']['name']}/status"
        call("PATCH", status_path, {"status": manifest["status"]}, "application/merge-patch+json")


def run_finished(finished: int, running: int) -> None:
    """Print the start time and the memory of the operator with very many finished jobs and some running ones."""
    name = f"bench-finished-{int(time.time())}"
    scope = namespace(name)
    try:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda index: create_finished(scope, f"old-{index}"), range(finished)))
        pods = count(f"/api/v1/{scope}/pods")
        with operator(name) as process:
            create_all(f"/apis/finetune.dev/v1alpha1/{scope}/finetunejobs", finetune_job, running)
            wait("the jobs", lambda: count(f"/apis/batch/v1/{scope}/jobs") >= finished + running, 900)
        # A second operator finds finished and running jobs.
        started = time.time()
        with operator(name) as process:
            found = f"{finished} finished jobs, their {pods} pods, and {running} unfinished jobs"
            print(f"  ready {time.time() - started:.1f} s after the start, with {found}", flush=True)
            time.sleep(60)
            cpu, memory = usage(process)
            print(f"  after a minute: {memory:.0f} MiB at most, {cpu:.0f} s of CPU")
            print(f"  99th percentile of a reconcile: {reconcile_p99()}")
    finally:
        call("DELETE", f"/api/v1/{scope}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument(
        "--finished", type=int, default=0, help="also measure the start with this many finished jobs, such as 10000"
    )
    parser.add_argument("--no-peer", action="store_true", help="skip Kubeflow Trainer even if it is installed")
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
        print(f"\n{options.jobs} jobs of 2 nodes" + " " * 1 + "children s   running s     final s       CPU s         MiB")
        print(ours.row("ours"))
        if peer is not None:
            print(peer.row("Kubeflow Trainer"))
            ratios = [
                getattr(peer, field.name) / max(getattr(ours, field.name), 0.1) for field in dataclasses.fields(Measurement)
            ]
            print(f"{'ratio':<18}" + "".join(f"{ratio:>11.1f}×" for ratio in ratios))
        if options.finished:
            run_finished(options.finished, options.jobs)
    finally:
        proxy.terminate()


if __name__ == "__main__":
    main()
