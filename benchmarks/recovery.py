"""Measure how long a job takes to recover from a failure: `python benchmarks/recovery.py` on a cluster of two nodes.

It trains a tiny model on two pods. Ten times each, it kills a worker process, deletes a pod, and force-deletes a pod. It prints
the median and the maximum of the seconds from the failure, and from the deletion of the last old pod, until both pods run again,
and from the failure until the next optimizer step. If Kubeflow Trainer is installed, it also measures a TrainJob of two pods that
only sleep: the time from a killed process, or a deleted pod, until both pods run again. With --goodput MINUTES, it also makes a
job fail every minute.

It needs a KUBECONFIG with administrator rights, the CRD, and TRAINER_IMAGE on the nodes. The operator runs as a local process.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
OPERATOR_PORT, PROXY_PORT = 8903, 8904
IMAGE = os.environ.get("TRAINER_IMAGE", "localhost/finetune-trainer:dev")
POLL_SECONDS = 0.1
Object = dict[str, Any]

MODEL = """
import csv, random, transformers
from tokenizers import Tokenizer, models, pre_tokenizers
words = ["good", "bad", "fine", "film", "very", "not", "a", "the", "it", "was"]
vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
special = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained("/data/model")
config = transformers.BertConfig(vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=64, max_position_embeddings=64)
transformers.BertForMaskedLM(config).save_pretrained("/data/model")
random.seed(0)
with open("/data/rows.csv", "w", newline="") as stream:
    writer = csv.writer(stream)
    writer.writerow(["text", "label"])
    for _ in range(2000):
        label = random.choice(["yes", "no"])
        writer.writerow([" ".join(random.choices(words, k=20)) + (" good" if label == "yes" else " bad"), label])
"""
KILL = """
import json, os, pathlib
for path in pathlib.Path("/tmp").glob("finetune-*/round.json"):
    for pid in json.loads(path.read_text())["pids"].values():
        os.kill(pid, 9)
"""


def kubectl(*arguments: str, stdin: str | None = None, check: bool = True) -> str:
    """Run kubectl and return its output; exit with its error message if it fails."""
    done = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, timeout=180, check=False)
    if check and done.returncode:
        sys.exit(f"kubectl {' '.join(arguments)}: {done.stderr}")
    return done.stdout


def get(path: str) -> Object:
    """Send a GET request through `kubectl proxy`. A kubectl process per poll would take CPU time from the training."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PROXY_PORT}{path}", timeout=10) as answer:
            return dict(json.load(answer))
    except (OSError, ValueError):
        return {"items": []}


def apply(manifest: Object) -> None:
    kubectl("apply", "--server-side", "--filename", "-", stdin=json.dumps(manifest))


def wait(what: str, done: Callable[[], Any], timeout: float = 240) -> Any:
    """Poll until the result is true, and return it; exit after the timeout."""
    end = time.time() + timeout
    while not (result := done()):
        if time.time() > end:
            sys.exit(f"{what}: not within {timeout:g} s")
        time.sleep(POLL_SECONDS)
    return result


@dataclasses.dataclass(frozen=True)
class JobPods:
    """The pods of one job. selector: their label selector."""

    namespace: str
    selector: str

    def list_all(self) -> list[Object]:
        items: list[Object] = get(f"/api/v1/namespaces/{self.namespace}/pods?labelSelector={self.selector}")["items"]
        return items

    def running(self) -> list[Object]:
        """Return the pods that run and are not being deleted."""
        return [
            pod
            for pod in self.list_all()
            if "deletionTimestamp" not in pod["metadata"]
            and any("running" in status.get("state", {}) for status in pod["status"].get("containerStatuses", ()))
        ]

    def delete(self, pod: Object, *options: str) -> None:
        kubectl("--namespace", self.namespace, "delete", "pod", pod["metadata"]["name"], "--wait=false", *options)

    def kill(self, pod: Object, code: str) -> None:
        kubectl("--namespace", self.namespace, "exec", "--stdin", pod["metadata"]["name"], "--", "python", "-", stdin=code)

    def progress(self, pod: Object) -> Object:
        """Return the pod's /progress. It has no phase while the pod does not answer."""
        return get(f"/api/v1/namespaces/{self.namespace}/pods/{pod['metadata']['name']}:9400/proxy/progress")


@dataclasses.dataclass
class Measurements:
    """The seconds of each round, by the event that the time ends with."""

    after_deletion: list[float] = dataclasses.field(default_factory=list)
    running: list[float] = dataclasses.field(default_factory=list)
    step: list[float] = dataclasses.field(default_factory=list)

    def row(self, name: str) -> str:
        def cell(values: list[float]) -> str:
            return f"{statistics.median(values):>9.1f}{max(values):>8.1f}" if values else f"{'–':>9}{'–':>8}"

        return f"{name:<34}{cell(self.after_deletion)}{cell(self.running)}{cell(self.step)}"


def measure(pods: JobPods, fail: Callable[[Object], None], measured: Measurements, in_place: bool, trains: bool) -> None:
    """Make the pod with index 1 fail once, and measure the recovery."""
    old = wait("two running pods", lambda: pair if len(pair := pods.running()) == 2 else None)
    victim = max(old, key=lambda pod: index(pod))
    old_container = container_id(victim)
    before = wait("a step", lambda: restarts_so_far(pods, old)) if trains else (0, 0)
    started = time.time()
    fail(victim)
    if not in_place:
        uids = {pod["metadata"]["uid"] for pod in old}
        deleted: float | None = None
        while len([pod for pod in pods.running() if container_id(pod) != old_container]) < 2:
            existing = {pod["metadata"]["uid"] for pod in pods.list_all()}
            if deleted is None and not existing & uids:
                deleted = time.time()
            if time.time() - started > 300:
                sys.exit("the two pods do not run again within 300 s")
            time.sleep(POLL_SECONDS)
        measured.running.append(time.time() - started)
        if deleted is not None:
            measured.after_deletion.append(time.time() - deleted)
    if trains:

        def next_step() -> bool:
            now = restarts_so_far(pods, pods.running())
            return now is not None and now > before

        wait("the next step", next_step)
        measured.step.append(time.time() - started)


def container_id(pod: Object) -> tuple[str, int]:
    """Identify the running container. The kubelet may restart a container in the same pod."""
    [status] = pod["status"]["containerStatuses"]
    return pod["metadata"]["uid"], status["restartCount"]


def index(pod: Object) -> int:
    return int(pod["metadata"].get("annotations", {}).get("batch.kubernetes.io/job-completion-index", 0))


def restarts_so_far(pods: JobPods, candidates: list[Object]) -> tuple[int, int] | None:
    """Return the attempt and the in-place restarts of all pods; None while the job does not train."""
    first = [pod for pod in candidates if index(pod) == 0]
    progress = pods.progress(first[0]) if first else {}
    if progress.get("phase") != "Running":
        return None
    return progress["attempt"], progress.get("inPlace", 0) + progress.get("inPlaceElsewhere", 0)


@contextlib.contextmanager
def operator(namespace: str) -> Iterator[None]:
    """Run the operator as a local process."""
    paths = os.pathsep.join(str(ROOT / name) for name in ("crds", "operator"))
    command = [sys.executable, "-m", "finetune_operator", "run", "--namespace", namespace, "--port", str(OPERATOR_PORT)]
    with pathlib.Path(tempfile.gettempdir(), f"{namespace}.log").open("wb") as log:
        process = subprocess.Popen([*command, "--trainer-image", IMAGE], env={**os.environ, "PYTHONPATH": paths}, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def prepare(namespace: str) -> None:
    """Create a claim, and write a tiny model and some rows to it."""
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    meta = {"namespace": namespace}
    apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {**meta, "name": "data"}, "spec": claim})
    container = {
        "name": "make",
        "image": IMAGE,
        "command": ["python", "-c", MODEL],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    wait("the namespace's service account", lambda: kubectl("-n", namespace, "get", "sa", "default", "--ignore-not-found"))
    spec = {"restartPolicy": "Never", "containers": [container], "volumes": volumes}
    apply({"apiVersion": "v1", "kind": "Pod", "metadata": {**meta, "name": "make"}, "spec": spec})
    wait("model and rows", lambda: phase(namespace, "make") in ("Succeeded", "Failed"))
    if phase(namespace, "make") == "Failed":
        sys.exit(kubectl("-n", namespace, "logs", "make"))


def phase(namespace: str, pod: str) -> str:
    return kubectl("-n", namespace, "get", "pod", pod, "--output", "jsonpath={.status.phase}")


def finetune_job(namespace: str, name: str) -> Object:
    """Return a job of two pods that trains longer than the benchmark takes."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "task": "text-classification",
            "model": {"claim": {"claimName": "data", "path": "model"}},
            "datasets": [{"claim": {"claimName": "data", "path": "rows.csv"}}],
            "training": {"maxSteps": 1_000_000, "globalBatchSize": 16, "maxTokens": 32},
            "evaluation": {"everySteps": 1_000_000},
            "checkpoint": {"everySteps": 50},
            "distributed": {"nodes": 2},
            "recovery": {"maxRestarts": 1000, "maxPreemptions": 1000},
            "output": {"volume": {"size": "1Gi"}, "retention": {"whenDeleted": "Delete"}},
            "pod": {"resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "1"}}},
        },
    }


def train_job(namespace: str) -> list[Object]:
    """Return a TrainJob of two pods that only sleep, and its runtime."""
    sleep = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(1)); time.sleep(100000)"
    container = {"name": "node", "image": IMAGE, "command": ["tini", "--", "python", "-c", sleep]}
    job = {
        "name": "node",
        "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {"template": {"spec": {"containers": [container]}}},
        },
    }
    spec = {"failurePolicy": {"maxRestarts": 1000}, "replicatedJobs": [job]}
    return [
        {
            "apiVersion": "trainer.kubeflow.org/v1alpha1",
            "kind": "ClusterTrainingRuntime",
            "metadata": {"name": "bench-recovery", "labels": {"trainer.kubeflow.org/framework": "torch"}},
            "spec": {"mlPolicy": {"numNodes": 2, "torch": {}}, "template": {"spec": spec}},
        },
        {
            "apiVersion": "trainer.kubeflow.org/v1alpha1",
            "kind": "TrainJob",
            "metadata": {"namespace": namespace, "name": "peer"},
            "spec": {"runtimeRef": {"name": "bench-recovery"}, "trainer": {"numNodes": 2, "numProcPerNode": 1}},
        },
    ]


def run_ours(namespace: str, rounds: int) -> dict[str, Measurements]:
    pods = JobPods(namespace, "finetune.dev/finetunejob=ours")
    apply(finetune_job(namespace, "ours"))
    found: dict[str, Measurements] = {}
    for name, in_place, fail in (
        ("worker process killed, in place", True, lambda pod: pods.kill(pod, KILL)),
        ("pod deleted", False, pods.delete),
        ("pod force-deleted", False, lambda pod: pods.delete(pod, "--force", "--grace-period=0")),
    ):
        measured = found[f"ours: {name}"] = Measurements()
        for number in range(rounds):
            measure(pods, fail, measured, in_place, trains=True)
            print(f"  {name} {number + 1}: next step after {measured.step[-1]:.1f} s", flush=True)
            time.sleep(2)
    kubectl("-n", namespace, "delete", "finetunejob", "ours", "--wait=false")
    return found


def run_peer(namespace: str, rounds: int) -> dict[str, Measurements]:
    for manifest in train_job(namespace):
        apply(manifest)
    pods = JobPods(namespace, "jobset.sigs.k8s.io/jobset-name=peer")
    kill = "import os, signal; os.kill(1, signal.SIGTERM)"
    found: dict[str, Measurements] = {}
    for name, fail in (("process killed", lambda pod: pods.kill(pod, kill)), ("pod deleted", pods.delete)):
        measured = found[f"Kubeflow Trainer: {name}"] = Measurements()
        for number in range(rounds):
            measure(pods, fail, measured, in_place=False, trains=False)
            print(f"  {name} {number + 1}: both pods run after {measured.running[-1]:.1f} s", flush=True)
            time.sleep(2)
    kubectl("-n", namespace, "delete", "trainjob", "peer", "--wait=false")
    return found


def run_goodput(namespace: str, minutes: int) -> str:
    """Run a job with a failure every minute, alternately a deleted pod and a killed process; return its goodput."""
    pods = JobPods(namespace, "finetune.dev/finetunejob=goodput")
    apply(finetune_job(namespace, "goodput"))
    wait("a step", lambda: restarts_so_far(pods, pods.running()))
    for minute in range(minutes):
        time.sleep(60)
        victim = wait("two pods", lambda: pair if len(pair := pods.running()) == 2 else None)[minute % 2]
        pods.kill(victim, KILL) if minute % 2 else pods.delete(victim)
    time.sleep(60)
    shown = kubectl("-n", namespace, "get", "finetunejob", "goodput", "--output", "jsonpath={.status.goodput}")
    kubectl("-n", namespace, "delete", "finetunejob", "goodput", "--wait=false")
    print(f"  a failure every minute for {minutes} minutes: {shown}", flush=True)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument(
        "--goodput", type=int, metavar="MINUTES", default=0, help="also make a job fail every minute, for this time"
    )
    options = parser.parse_args()
    namespace = f"bench-recovery-{int(time.time())}"
    proxy = subprocess.Popen(["kubectl", "proxy", f"--port={PROXY_PORT}"], stdout=subprocess.DEVNULL)
    try:
        prepare(namespace)
        with operator(namespace):
            found = run_ours(namespace, options.rounds) if options.rounds else {}
            goodput = run_goodput(namespace, options.goodput) if options.goodput else None
        if not options.no_peer and kubectl("get", "crd", "trainjobs.trainer.kubeflow.org", "--ignore-not-found"):
            found |= run_peer(namespace, options.rounds)
    finally:
        kubectl("delete", "namespace", namespace, "--ignore-not-found", "--wait=false")
        proxy.terminate()
    heads = ("from deletion", "from failure", "to next step")
    print(f"\n{'seconds, median and maximum':<34}" + "".join(f"{head:>17}" for head in heads))
    for name, measured in found.items():
        print(measured.row(name))
    if goodput:
        print(f"a failure every minute for {options.goodput} minutes: {goodput}")


if __name__ == "__main__":
    main()
