"""The whole path: helm install, kubectl apply, distributed training by two pods on two nodes, and the model on the Hub."""

import datetime
import json
import pathlib
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.hub import Hub
from cluster.kube import Namespace, Object, column
from finetune_api import manifest, metrics, names

pytestmark = pytest.mark.cluster
EXAMPLE = pathlib.Path(__file__).parents[2] / "examples/news-cluster.yaml"
JOB = "news-two-nodes"
COLUMNS = ("PHASE", "PROGRESS", "STEP", "LOSS", "LEFT", "RESTARTS", "AGE")
POLL_EVERY_SECONDS = 3.0  # each poll runs kubectl four times, which costs more than the work of the cluster for it

# Metrics that every pod serves while it trains, and metrics that only the pod with rank 0 serves.
EVERY_RANK = {metrics.STEP_DURATION, metrics.LAST_STEP, metrics.TRAINING_TOKENS}
RANK_0 = {
    metrics.TRAINING_LOSS, metrics.TRAINING_LEARNING_RATE, metrics.TRAINING_GRADIENT_NORM,
    metrics.TRAINING_STEP, metrics.TRAINING_MAX_STEPS, metrics.TRAINING_INFO,
}  # fmt: skip

LOGITS = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
texts = ["The striker scored twice in the last ten minutes.", "Shares fell by 4% after the forecast was cut.", "A new console"]
answers = []
for source in ("REPOSITORY", "/claims/CLAIM/model"):
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForSequenceClassification.from_pretrained(source).eval()
    with torch.inference_mode():
        answers.append(model(**tokenizer(texts, return_tensors="pt", padding=True, truncation=True)).logits)
labels = sorted(model.config.id2label.values())
difference, largest = ((answers[0] - answers[1]).abs().max(), answers[0].abs().max())
print(json.dumps({"difference": float(difference), "largest": float(largest), "labels": labels}))
"""


class Watcher:
    """Polls a running job as a user does, and keeps what it observes."""

    def __init__(self, jobs: Namespace) -> None:
        self.jobs = jobs
        self.rows: list[dict[str, str]] = []
        self.metrics: dict[str, str] = {}  # last /metrics by pod
        self.nodes: dict[str, str] = {}
        self.first_step: str | None = None  # end of the first observed step
        self.processes: dict[str, str] = {}  # name and user of PID 1, by pod
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(POLL_EVERY_SECONDS):
            table = self.jobs.kubectl("get", "ftj", JOB, check=False).stdout
            if table:
                self.rows.append({name: column(table, name) for name in COLUMNS})
            for pod in self.jobs.pods(JOB):
                self._observe(pod)

    def _observe(self, pod: Object) -> None:
        name = pod["metadata"]["name"]
        self.nodes[name] = pod["spec"].get("nodeName", "")
        if pod["status"]["phase"] != "Running":
            return
        self.metrics[name] = self.jobs.pod_http(name, names.PORT_TELEMETRY, "/metrics") or self.metrics.get(name, "")
        if self.first_step is None and name.startswith(names.pod_host_name(JOB, 1, 0)):
            report = json.loads(self.jobs.pod_http(name, names.PORT_TELEMETRY, "/progress") or "{}")
            self.first_step = report.get("lastStepTime")
        if name not in self.processes:
            probe = "cat /proc/1/comm; id -u; touch /opt/x 2>&1 | grep -o 'Read-only file system'"
            self.processes[name] = self.jobs.kubectl("exec", name, "--", "sh", "-c", probe, check=False).stdout


@pytest.fixture(scope="module")
def trained(jobs: Namespace, system: Namespace, hub: Hub, hub_access: Object, small_pod: Object) -> Iterator[Watcher]:
    """Train the example on two nodes, and return what was observed while it ran."""
    [job] = manifest.read_manifests(EXAMPLE)
    assert job["spec"]["distributed"]["nodes"] == 2
    job["metadata"]["name"] = JOB
    spec = job["spec"]
    assert spec["hub"]["tokenSecretRef"] == hub_access["tokenSecretRef"], "the tests create a Secret with this name"
    spec["hub"] = hub_access
    spec["model"]["hub"] = {"name": hub.model}
    spec["datasets"][0]["hub"] = {"name": hub.articles}  # the same columns as the one that the example names
    spec["publish"]["repository"] = hub.repository("published")
    # Fewer and shorter articles than in the example, so that two cores need a minute.
    spec["datasets"][0] |= {"maxTrainSamples": 640, "maxEvalSamples": 150}
    spec["training"] |= {"epochs": 1, "globalBatchSize": 16, "maxTokens": 32, "learningRate": 2e-4}
    spec["pod"] = small_pod
    applied = time.monotonic()
    jobs.apply(job)
    with Watcher(jobs) as watcher:
        jobs.wait_for_phase(JOB, "Succeeded", timeout=600)
        print(f"{JOB}: Succeeded {time.monotonic() - applied:.0f} s after kubectl apply")
    yield watcher
    jobs.kubectl("delete", "finetunejob", JOB)


def test_both_pods_train_one_model_on_two_nodes(jobs: Namespace, trained: Watcher) -> None:
    assert len(set(trained.nodes.values())) == len(trained.nodes) == 2
    status = jobs.status(JOB)
    assert (status["resolved"]["nodes"], status["resolved"]["processes"]) == (2, 2)
    assert status["attempt"] == 1
    assert status["progress"]["step"] == status["progress"]["totalSteps"] == 40


def test_the_log_of_the_second_pod_ends_without_a_warning(jobs: Namespace, trained: Watcher) -> None:
    [second] = (name for name in trained.nodes if name.startswith(names.pod_host_name(JOB, 1, 1)))
    lines = jobs.kubectl("logs", second).stdout.splitlines()
    assert lines
    assert [line for line in lines if not re.match(r"\S+ (launcher|rank 1) INFO ", line)] == []


def test_the_pods_were_placed_as_one_group(jobs: Namespace, trained: Watcher) -> None:
    if "podgroups" not in jobs.kubectl("api-resources", "--api-group=scheduling.k8s.io", "--output=name", check=False).stdout:
        pytest.skip("needs PodGroups of Kubernetes: version 1.36 with the feature gates GenericWorkload and GangScheduling")
    [group] = jobs.objects("podgroups.scheduling.k8s.io", f"{names.LABEL_JOB}={JOB}")
    assert {pod["spec"]["schedulingGroup"]["podGroupName"] for pod in jobs.pods(JOB)} == {group["metadata"]["name"]}
    assert ("PodGroupScheduled", "True") in {(item["type"], item["status"]) for item in group["status"]["conditions"]}


def test_kubectl_get_shows_the_progress_while_the_job_runs(trained: Watcher) -> None:
    running = [row for row in trained.rows if row["PHASE"] == "Running"]
    assert running, trained.rows
    with_progress = [
        row for row in running if re.fullmatch(r"\d+%", row["PROGRESS"]) and re.fullmatch(r"\d+(\.\d{1,4})?", row["LOSS"])
    ]
    assert with_progress, running
    assert any(0 < int(row["PROGRESS"].rstrip("%")) < 100 and row["LEFT"] for row in with_progress), running
    assert len({row["STEP"] for row in with_progress}) >= 2, "the observed progress must increase"
    phases = [row["PHASE"] for row in trained.rows if row["PHASE"]]
    order = ["Pending", "Initializing", "Running", "Publishing", "Succeeded"]
    assert [order.index(phase) for phase in phases] == sorted(order.index(phase) for phase in phases)


def test_the_status_has_the_accuracy_of_the_evaluation(jobs: Namespace, trained: Watcher) -> None:
    status = jobs.status(JOB)
    print(json.dumps(status["evaluation"]))
    assert status["evaluation"]["metrics"]["accuracy"] >= 0.9
    conditions = {condition["type"]: condition["status"] for condition in status["conditions"]}
    assert conditions["Complete"] == "True"
    assert conditions["Published"] == "True"
    assert conditions["Failed"] == "False"
    assert status["observedGeneration"] == 1
    assert len(status.get("samples", [])) == len(jobs.get("finetunejob", JOB)["spec"].get("samples", []))  # type: ignore[index]


def test_the_revisions_are_resolved_to_commits(jobs: Namespace, hub: Hub, trained: Watcher) -> None:
    resolved = jobs.status(JOB)["resolved"]
    assert resolved["modelRevision"] == hub.api.model_info(hub.model).sha
    assert resolved["datasetRevisions"] == [hub.api.dataset_info(hub.articles).sha]


def test_the_model_on_the_hub_is_the_one_in_the_volume(jobs: Namespace, hub: Hub, reader: Any, trained: Watcher) -> None:
    published = jobs.status(JOB)["published"]
    info = hub.api.model_info(hub.repository("published"))
    assert info.private
    assert published["commit"] == info.sha
    assert published["url"].endswith(hub.repository("published"))
    claim = names.output_claim_name(JOB)
    answer = reader(claim).python(LOGITS.replace("REPOSITORY", hub.repository("published")).replace("CLAIM", claim))
    assert answer["difference"] <= 1e-6
    assert answer["largest"] > 0.1
    assert answer["labels"] == ["business", "entertainment", "politics", "sports", "tech"]


def test_the_pushed_repository_has_a_model_card_and_no_training_state(hub: Hub, trained: Watcher) -> None:
    files = set(hub.api.list_repo_files(hub.repository("published")))
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl")) or "checkpoint" in name]


def test_every_pod_serves_its_metrics_while_it_runs(trained: Watcher) -> None:
    rank_0, *others = sorted(trained.metrics)
    for metric in EVERY_RANK | RANK_0:
        assert f"\n{metric.name}" in trained.metrics[rank_0], metric.name
        assert f'finetunejob="{JOB}"' in trained.metrics[rank_0]
    for pod in others:
        for metric in EVERY_RANK:
            assert f"\n{metric.name}" in trained.metrics[pod], metric.name


def test_the_operator_serves_its_metrics(system: Namespace, trained: Watcher) -> None:
    text = operator_metrics(system)
    for metric in metrics.OPERATOR_METRICS:
        assert f"# TYPE {metric.name.removesuffix('_total')}" in text, metric.name
    assert re.search(rf'{metrics.JOB_PHASE.name}{{[^}}]*finetunejob="{JOB}"[^}}]*phase="Succeeded"[^}}]*}} 1\.0', text)


def test_tini_is_pid_1_and_nothing_runs_as_root_or_can_write_to_the_image(trained: Watcher) -> None:
    assert set(trained.processes.values()) == {"tini\n1000\nRead-only file system\n"}


def test_neither_image_contains_what_only_the_other_needs(system: Namespace, reader: Any, trained: Watcher) -> None:
    code = (
        "import importlib.util, json\n"
        "print(json.dumps([name for name in ('torch', 'kopf', 'kubernetes') if importlib.util.find_spec(name)]))\n"
    )
    [operator] = system.objects("pods", "app.kubernetes.io/name=finetune-operator")
    found = system.kubectl("exec", "--stdin", operator["metadata"]["name"], "--", "python", "-", stdin=code).stdout
    assert json.loads(found) == ["kopf", "kubernetes"]
    assert reader().python(code) == ["torch"]


def test_the_operator_may_not_read_a_secret(system: Namespace) -> None:
    [account] = [found for found in system.objects("serviceaccounts") if found["metadata"]["name"] != "default"]
    who = f"system:serviceaccount:{system.name}:{account['metadata']['name']}"
    for verb in ("get", "list", "watch", "create", "delete"):
        answer = subprocess.run(
            ["kubectl", "auth", "can-i", verb, "secrets", "--all-namespaces", "--as", who],
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.stdout.strip() == "no"


def test_the_token_appears_nowhere(
    jobs: Namespace, system: Namespace, hub: Hub, hub_access: Object, reader: Any, trained: Watcher, tmp_path: pathlib.Path
) -> None:
    import base64

    token = str(hub.api.token)
    kinds = "all,configmaps,events,persistentvolumeclaims,serviceaccounts,finetunejobs"
    seen = {
        "objects of the jobs": jobs.kubectl("get", kinds, "--output", "yaml", "--show-managed-fields").stdout,
        "objects of the operator": system.kubectl("get", kinds, "--output", "yaml", "--show-managed-fields").stdout,
        "logs of the jobs": jobs.logs(),
        "logs of the operator": system.logs(),
        "metrics of the operator": operator_metrics(system),
        **{f"metrics of {pod}": text for pod, text in trained.metrics.items()},
    }
    assert all(seen.values()), "nothing was searched"
    assert JOB in seen["objects of the jobs"]
    encoded = base64.b64encode(token.encode()).decode()
    secret = jobs.kubectl("get", "secret", hub_access["tokenSecretRef"]["name"], "--output", "yaml").stdout
    assert encoded in secret, "the search itself must work"
    assert [source for source, text in seen.items() if token in text or encoded in text] == []

    pushed = pathlib.Path(hub.api.snapshot_download(hub.repository("published"), local_dir=tmp_path / "pushed"))
    files = [path for path in pushed.rglob("*") if path.is_file()]
    assert len(files) >= 4
    assert [path.name for path in files if token.encode() in path.read_bytes()] == []

    claim = names.output_claim_name(JOB)
    code = (
        "import json, os, pathlib\n"
        f"files = [path for path in pathlib.Path('/claims/{claim}').rglob('*') if path.is_file()]\n"
        "token = os.environ['HF_TOKEN'].encode()\n"
        "print(json.dumps([len(files), [str(path) for path in files if token in path.read_bytes()]]))\n"
    )
    number, leaks = reader(claim).python(code)
    assert number >= 5
    assert leaks == []


def test_the_times_from_kubectl_apply_to_the_first_step(jobs: Namespace, trained: Watcher) -> None:
    """Print the times. The test has no limits and only checks the order."""
    job = jobs.get("finetunejob", JOB)
    assert job
    [pod] = [pod for pod in jobs.pods(JOB) if pod["metadata"]["name"].startswith(names.pod_host_name(JOB, 1, 0))]
    log = jobs.kubectl("logs", pod["metadata"]["name"]).stdout.splitlines()
    assert trained.first_step
    times = {
        "pod created": pod["metadata"]["creationTimestamp"],
        "container started": pod["status"]["containerStatuses"][0]["state"]["terminated"]["startedAt"],
        "launcher runs": log[0].partition(" ")[0],
        "model and data are there": next(line for line in log if " steps of " in line).partition(" ")[0],
        f"first step seen (polled every {POLL_EVERY_SECONDS:g} s)": trained.first_step,
    }
    created = parse_time(job["metadata"]["creationTimestamp"])
    seconds = {name: (parse_time(when) - created).total_seconds() for name, when in times.items()}
    print(f"seconds after kubectl apply: {json.dumps(seconds, indent=1)}")
    assert sorted(seconds.values()) == list(seconds.values())


def parse_time(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)


def operator_metrics(system: Namespace) -> str:
    [operator] = system.objects("pods", "app.kubernetes.io/name=finetune-operator")
    return system.pod_http(operator["metadata"]["name"], names.PORT_OPERATOR, "/metrics")
