"""Measure what many jobs cost the control plane: `python benchmarks/control_plane.py` on a cluster with fake nodes (kwok).

It creates many FineTuneJobs of two nodes at once. It prints how long it takes until every child Job exists, for each job from its
creation to that of its child Job (median and 99th percentile), until every pod runs, and from the end of the last pod until every
status is final, and the CPU time and memory of the operator, which runs as a local process. If Kubeflow Trainer is installed, it
then measures the same number of TrainJobs on the same cluster. With --rounds, both take turns; with --children-only, a round ends
when every child Job exists. With --finished, it also fills the cluster with finished jobs and their children, and prints how long
the operator takes to become ready, and its memory.

It needs a KUBECONFIG with administrator rights, the CRD, and nodes with the taint kwok.x-k8s.io/node=fake. It creates everything
in new namespaces and deletes them at the end.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator

import psutil
from api_server import FirstSeen, call, count, for_each, is_empty, namespace, proxy, wait
from fake_jobs import Object, finetune_job, finished_children, output_claim, train_job, training_runtime

ROOT = pathlib.Path(__file__).parents[1]
OPERATOR = 8902
WARM_UP_SECONDS = 8  # until it leads and watches: the jobs of the first seconds cost more reads
PEER_NAMESPACES = ("kubeflow-system", "jobset-system")
UNFINISHED = "fieldSelector=status.phase!=Succeeded,status.phase!=Failed"


@dataclasses.dataclass
class Measurement:
    """One run, in seconds, and MiB of memory.

    created: until all jobs were created. children: until every child Job exists. median, p99: from the creation of a job to its
    child Job. running: until every pod runs. final: from the end of the last pod to the last final status.
    """

    created: float
    children: float
    median: float
    p99: float
    running: float
    final: float
    cpu: float = 0.0
    memory: float = 0.0

    def row(self, name: str, unit: str = "") -> str:
        return f"{name:<18}" + "".join(f"{f'{value:.2f}{unit}':>11}" for value in dataclasses.astuple(self))


HEADER = "".join(f"{field.name:>11}" for field in dataclasses.fields(Measurement))


def measure(
    scope: str, path: str, build: Callable[[str], Object], number: int, is_final: Callable[[], bool] | None
) -> Measurement:
    """Create the jobs, and wait until they end, or, without is_final, until all Jobs exist."""
    jobs, pods = f"/apis/batch/v1/{scope}/jobs", f"/api/v1/{scope}/pods"
    seen, created = FirstSeen(jobs), dict[str, float]()

    def create(index: int) -> None:
        call("POST", path, build(f"job-{index}"))
        created[f"job-{index}"] = time.time()

    started = time.time()
    for_each(number, create)
    creation = time.time() - started
    wait("every child Job", lambda: len(seen.times) >= number, 900)
    exist = {"-".join(name.split("-")[:2]): at for name, at in seen.times.items()}  # job-<index>-1 and job-<index>-node-0
    waited = sorted(max(0.0, exist[name] - at) for name, at in created.items())
    children = max(exist.values()) - started
    result = Measurement(creation, children, statistics.median(waited), waited[int(0.99 * (number - 1))], 0, 0)
    print(f"  {number} created after {creation:.1f} s, every Job exists after {children:.1f} s", flush=True)
    if is_final is None:
        return result
    wait("every pod", lambda: count(pods) >= 2 * number, 1800)
    result.running = wait("every pod's start", lambda: is_empty(pods, "fieldSelector=status.phase=Pending"), 1800) - started
    ended = wait("every pod's end", lambda: is_empty(pods, UNFINISHED), 1800)
    result.final = wait("every final status", is_final, 1800) - ended
    return result


@contextlib.contextmanager
def operator(scope: str) -> Iterator[psutil.Process]:
    """Run the operator as a local process; yield it when it is ready."""
    arguments = ["run", "--namespace", scope, "--port", str(OPERATOR), "--lease", "bench"]
    command = [sys.executable, "-m", "finetune_operator", *arguments]
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
    """Return the buckets that hold the 99th percentile of the reconciles from the cache, with and without waiting."""
    limits = []
    for name in ("duration", "work"):
        buckets = [
            (float(labels["le"]), value)
            for labels, value in samples(f"finetune_operator_reconcile_{name}_seconds_bucket")
            if labels["read"] == "cache"
        ]
        total = max((value for _, value in buckets), default=0.0)
        limits.append(1000 * min((le for le, value in buckets if value >= 0.99 * total), default=0.0))
    return f"at most {limits[0]:g} ms, without waiting {limits[1]:g} ms ({total:.0f} reconciles from the cache)"


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


def run_ours(number: int, children_only: bool) -> Measurement:
    """Measure the FineTuneJobs."""
    name = f"bench-ours-{int(time.time())}"
    with namespace(name) as scope:
        call("POST", f"/api/v1/{scope}/persistentvolumeclaims", output_claim())
        path = f"/apis/finetune.dev/v1alpha1/{scope}/finetunejobs"
        with operator(name) as process:
            time.sleep(WARM_UP_SECONDS)
            before, _ = usage(process)
            is_final = None if children_only else lambda: is_empty(path, UNFINISHED)
            result = measure(scope, path, finetune_job, number, is_final)
            cpu, result.memory = usage(process)
            result.cpu = cpu - before
            requests = api_requests()
            writes = {key: value for key, value in requests.items() if key.split()[0] not in ("get", "list")}
            print(f"  requests: {requests}")
            print(f"  writes per job, without events: {sum(v for k, v in writes.items() if 'Event' not in k) / number:.1f}")
            print(f"  99th percentile of a reconcile: {reconcile_p99()}", flush=True)
    return result


def run_peer(number: int, children_only: bool) -> Measurement:
    """Measure the TrainJobs."""
    call("POST", "/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes", training_runtime())
    with namespace(f"bench-peer-{int(time.time())}") as scope:
        path = f"/apis/trainer.kubeflow.org/v1alpha1/{scope}/trainjobs"

        def is_final() -> bool:
            items = call("GET", path)["items"]
            done = [item for item in items if any(c["type"] == "Complete" for c in item.get("status", {}).get("conditions", ()))]
            return len(done) == number

        before, _ = peer_usage()
        result = measure(scope, path, train_job, number, None if children_only else is_final)
        cpu, result.memory = peer_usage()
        result.cpu = cpu - before
    return result


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
    with namespace(name) as scope:
        call("POST", f"/api/v1/{scope}/persistentvolumeclaims", output_claim())
        for_each(finished, lambda index: create_finished(scope, f"old-{index}"))
        pods = count(f"/api/v1/{scope}/pods")
        with operator(name) as process:
            path = f"/apis/finetune.dev/v1alpha1/{scope}/finetunejobs"
            for_each(running, lambda index: call("POST", path, finetune_job(f"job-{index}")))
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


def compare(number: int, rounds: int, children_only: bool, with_peer: bool) -> None:
    """Measure both in turn, and print every round and the medians."""
    all_ours, all_peers = list[Measurement](), list[Measurement]()
    for _ in range(rounds):
        print("ours", flush=True)
        all_ours.append(run_ours(number, children_only))
        if with_peer:
            print("Kubeflow Trainer", flush=True)
            all_peers.append(run_peer(number, children_only))
    print(f"\n{f'{number} jobs':<18}{HEADER}")
    for name, runs in (("ours", all_ours), ("Kubeflow Trainer", all_peers)):
        for run in runs:
            print(run.row(name))
    if all_peers:
        ours, peer = median(all_ours), median(all_peers)
        ratios = [theirs / max(own, 0.01) for own, theirs in zip(ours, peer, strict=True)]
        print(Measurement(*ratios).row("ratio of medians", "×"))


def median(runs: list[Measurement]) -> list[float]:
    """Return the median of each column."""
    return [statistics.median(column) for column in zip(*map(dataclasses.astuple, runs), strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1, help="how often to measure both, in turn; 0: only --finished")
    parser.add_argument("--children-only", action="store_true", help="end each round when every child Job exists")
    parser.add_argument(
        "--finished", type=int, default=0, help="also measure the start with this many finished jobs, such as 10000"
    )
    parser.add_argument("--no-peer", action="store_true", help="skip Kubeflow Trainer even if it is installed")
    options = parser.parse_args()
    with proxy():
        with_peer = not options.no_peer and "code" not in call("GET", "/apis/trainer.kubeflow.org/v1alpha1")
        if options.rounds:
            compare(options.jobs, options.rounds, options.children_only, with_peer)
        if options.finished:
            run_finished(options.finished, options.jobs)


if __name__ == "__main__":
    main()
