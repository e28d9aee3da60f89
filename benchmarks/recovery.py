"""How long a job stands still after a failure: `python benchmarks/recovery.py` against a cluster of two machines.

Trains a tiny model on two pods, and ten times each kills a worker process, deletes a pod, force-deletes one. Tells the median and
the worst of the seconds until the whole gang runs again, from the moment when the last old pod was gone and from the failure, and
until the next optimizer step. Where Kubeflow Trainer is installed, the same of a TrainJob of two pods that only sleep: a process
killed, a pod deleted → the whole gang runs. With --goodput it also lets a job fail every minute for ten minutes.

Needs KUBECONFIG of an administrator, the CRD, and TRAINER_IMAGE on the machines. The operator is a process of this machine.
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
    """What kubectl prints; ends the program with its words when it fails."""
    done = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, timeout=180, check=False)
    if check and done.returncode:
        sys.exit(f"kubectl {' '.join(arguments)}: {done.stderr}")
    return done.stdout


def get(path: str) -> Object:
    """What the API server answers, by way of `kubectl proxy`: a kubectl per look would cost what is measured a processor."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PROXY_PORT}{path}", timeout=10) as answer:
            return dict(json.load(answer))
    except (OSError, ValueError):
        return {"items": []}


def apply(manifest: Object) -> None:
    kubectl("apply", "--server-side", "--filename", "-", stdin=json.dumps(manifest))


def wait(what: str, done: Callable[[], Any], timeout: float = 240) -> Any:
    """Poll until it is so; what it returned."""
    end = time.time() + timeout
    while not (found := done()):
        if time.time() > end:
            sys.exit(f"{what}: not within {timeout:g} s")
        time.sleep(POLL_SECONDS)
    return found


@dataclasses.dataclass(frozen=True)
class Gang:
    """The pods of one job. selector: of its pods."""

    namespace: str
    selector: str

    def pods(self) -> list[Object]:
        items: list[Object] = get(f"/api/v1/namespaces/{self.namespace}/pods?labelSelector={self.selector}")["items"]
        return items

    def running(self) -> list[Object]:
        """Pods that run and are not about to go."""
        return [
            pod
            for pod in self.pods()
            if "deletionTimestamp" not in pod["metadata"]
            and any("running" in status.get("state", {}) for status in pod["status"].get("containerStatuses", ()))
        ]

    def delete(self, pod: Object, *options: str) -> None:
        kubectl("--namespace", self.namespace, "delete", "pod", pod["metadata"]["name"], "--wait=false", *options)

    def kill(self, pod: Object, code: str) -> None:
        kubectl("--namespace", self.namespace, "exec", "--stdin", pod["metadata"]["name"], "--", "python", "-", stdin=code)

    def progress(self, pod: Object) -> Object:
        """What the pod says of itself; empty while it says nothing."""
        return get(f"/api/v1/namespaces/{self.namespace}/pods/{pod['metadata']['name']}:9400/proxy/progress")


@dataclasses.dataclass
class Figures:
    """Seconds of each round."""

    after_gone: list[float] = dataclasses.field(default_factory=list)
    running: list[float] = dataclasses.field(default_factory=list)
    step: list[float] = dataclasses.field(default_factory=list)

    def row(self, name: str) -> str:
        def cell(values: list[float]) -> str:
            return f"{statistics.median(values):>9.1f}{max(values):>8.1f}" if values else f"{'–':>9}{'–':>8}"

        return f"{name:<34}{cell(self.after_gone)}{cell(self.running)}{cell(self.step)}"


def measure(gang: Gang, fail: Callable[[Object], None], figures: Figures, in_place: bool, trains: bool) -> None:
    """One failure of the pod with index 1, and what comes of it."""
    old = wait("two pods that run", lambda: pair if len(pair := gang.running()) == 2 else None)
    victim = max(old, key=lambda pod: index(pod))
    its_life = life(victim)
    before = wait("a step", lambda: stands(gang, old)) if trains else (0, 0)
    began = time.time()
    fail(victim)
    if not in_place:
        uids = {pod["metadata"]["uid"] for pod in old}
        gone: float | None = None
        while len([pod for pod in gang.running() if life(pod) != its_life]) < 2:
            there = {pod["metadata"]["uid"] for pod in gang.pods()}
            if gone is None and not there & uids:
                gone = time.time()
            if time.time() - began > 300:
                sys.exit("the gang does not come back within 300 s")
            time.sleep(POLL_SECONDS)
        figures.running.append(time.time() - began)
        if gone is not None:
            figures.after_gone.append(time.time() - gone)
    if trains:

        def next_step() -> bool:
            now = stands(gang, gang.running())
            return now is not None and now > before

        wait("the next step", next_step)
        figures.step.append(time.time() - began)


def life(pod: Object) -> tuple[str, int]:
    """The container of a pod between two starts: one may be started anew in the same pod."""
    [status] = pod["status"]["containerStatuses"]
    return pod["metadata"]["uid"], status["restartCount"]


def index(pod: Object) -> int:
    return int(pod["metadata"].get("annotations", {}).get("batch.kubernetes.io/job-completion-index", 0))


def stands(gang: Gang, pods: list[Object]) -> tuple[int, int] | None:
    """Attempt and restarts in place, of all pods, of a training that takes steps; None while it takes none."""
    first = [pod for pod in pods if index(pod) == 0]
    said = gang.progress(first[0]) if first else {}
    if said.get("phase") != "Running":
        return None
    return said["attempt"], said.get("inPlace", 0) + said.get("inPlaceElsewhere", 0)


@contextlib.contextmanager
def operator(namespace: str) -> Iterator[None]:
    """The operator as a process of this machine."""
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
    """A claim with a tiny model and some rows."""
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
    """A training of two pods that goes on for as long as one looks."""
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
    """A TrainJob of two pods that only sleep, and its runtime."""
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


def run_ours(namespace: str, rounds: int) -> dict[str, Figures]:
    gang = Gang(namespace, "finetune.dev/finetunejob=ours")
    apply(finetune_job(namespace, "ours"))
    found: dict[str, Figures] = {}
    for name, in_place, fail in (
        ("worker process killed, in place", True, lambda pod: gang.kill(pod, KILL)),
        ("pod deleted", False, gang.delete),
        ("pod force-deleted", False, lambda pod: gang.delete(pod, "--force", "--grace-period=0")),
    ):
        figures = found[f"ours: {name}"] = Figures()
        for number in range(rounds):
            measure(gang, fail, figures, in_place, trains=True)
            print(f"  {name} {number + 1}: next step after {figures.step[-1]:.1f} s", flush=True)
            time.sleep(2)
    kubectl("-n", namespace, "delete", "finetunejob", "ours", "--wait=false")
    return found


def run_peer(namespace: str, rounds: int) -> dict[str, Figures]:
    for manifest in train_job(namespace):
        apply(manifest)
    gang = Gang(namespace, "jobset.sigs.k8s.io/jobset-name=peer")
    kill = "import os, signal; os.kill(1, signal.SIGTERM)"
    found: dict[str, Figures] = {}
    for name, fail in (("process killed", lambda pod: gang.kill(pod, kill)), ("pod deleted", gang.delete)):
        figures = found[f"Kubeflow Trainer: {name}"] = Figures()
        for number in range(rounds):
            measure(gang, fail, figures, in_place=False, trains=False)
            print(f"  {name} {number + 1}: the gang runs after {figures.running[-1]:.1f} s", flush=True)
            time.sleep(2)
    kubectl("-n", namespace, "delete", "trainjob", "peer", "--wait=false")
    return found


def run_goodput(namespace: str, minutes: int) -> str:
    """A failure every minute: by turns a process killed and a pod deleted."""
    gang = Gang(namespace, "finetune.dev/finetunejob=goodput")
    apply(finetune_job(namespace, "goodput"))
    wait("a step", lambda: stands(gang, gang.running()))
    for minute in range(minutes):
        time.sleep(60)
        victim = wait("two pods", lambda: pair if len(pair := gang.running()) == 2 else None)[minute % 2]
        gang.kill(victim, KILL) if minute % 2 else gang.delete(victim)
    time.sleep(60)
    shown = kubectl("-n", namespace, "get", "finetunejob", "goodput", "--output", "jsonpath={.status.goodput}")
    kubectl("-n", namespace, "delete", "finetunejob", "goodput", "--wait=false")
    print(f"  a failure every minute for {minutes} minutes: {shown}", flush=True)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--goodput", type=int, metavar="MINUTES", default=0, help="let a job fail every minute for so long")
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
    heads = ("gang runs, after last is gone", "gang runs, after failure", "next step")
    print(f"\n{'seconds, median and worst':<34}" + "".join(f"{head[:16]:>17}" for head in heads))
    for name, figures in found.items():
        print(figures.row(name))
    if goodput:
        print(f"a failure every minute for {options.goodput} minutes: {goodput}")


if __name__ == "__main__":
    main()
