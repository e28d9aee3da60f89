"""Tests with a real Prometheus: every metric arrives, every panel and variable has data, and an alert fires.

Needs KUBECONFIG, a cluster with the Prometheus operator and a Prometheus, and the two images; no Hub, no GPU.
"""

import os
import time

import pytest

from cluster.kube import Namespace, Object
from finetune_api import metrics
from observability.jobs import SCRAPE_SECONDS, STALLED, STALLED_SECONDS, WATCHED, Watched, build_job
from observability.panels import NAMES, Query, queries, substitute, variables
from observability.prometheus import Prometheus

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

# Metrics that a successful job on CPUs does not have, and why.
NOT_OF_THIS_JOB = {
    metrics.TRAINING_MFU: "a CPU has no known peak",
    metrics.GPU_MEMORY_ALLOCATED: "no GPU",
    metrics.GPU_MEMORY_PEAK: "no GPU",
    metrics.GPU_MEMORY_TOTAL: "no GPU",
    metrics.HUB_PUSH_DURATION: "the job publishes nothing",
    metrics.JOB_FAILURE: "nothing failed",
}
EMPTY_PANELS = {
    "Model FLOPs utilisation": "a CPU has no known peak",
    "GPU memory": "no GPU",
    "Failures by reason": "nothing failed",
    "Longest waits": "no job waits",
    "Requests that failed": "usually no request failed",
    "Restarts annotation": "the job was not restarted",
    "MFU": "a CPU has no known peak",
}


def test_every_metric_of_a_training_on_cpus_arrives(prometheus: Prometheus, watched: Watched) -> None:
    missing = []
    for metric in (*metrics.TRAINER_METRICS, *metrics.OPERATOR_METRICS):
        name = f"{metric.name}_count" if metric.kind == "histogram" else metric.name
        where = f'{{namespace="{watched.jobs.name}"}}' if "finetunejob" in metric.labels else ""
        if not prometheus.over(f"{name}{where}", watched.start, watched.end) and metric not in NOT_OF_THIS_JOB:
            missing.append(metric.name)
    assert missing == []


def test_the_excepted_metrics_do_not_exist(prometheus: Prometheus, watched: Watched) -> None:
    for metric in NOT_OF_THIS_JOB:
        assert not prometheus.over(f'{metric.name}{{namespace="{watched.jobs.name}"}}', watched.start, watched.end), metric.name


def test_labels_of_training_pods_are_those_of_kubernetes(prometheus: Prometheus, watched: Watched) -> None:
    found = prometheus.over(f'finetune_training_step{{namespace="{watched.jobs.name}"}}', watched.start, watched.end)
    for series in found:
        labels = series["metric"]
        assert labels["pod"].startswith(labels["finetunejob"])
        assert labels["node"]
        assert not [name for name in labels if name.startswith("exported_")]


@pytest.mark.parametrize("query", list(queries()), ids=str)
def test_every_panel_has_data(prometheus: Prometheus, watched: Watched, system: Namespace, query: Query) -> None:
    job = prometheus.label_values(f'finetune_job_phase{{namespace="{watched.jobs.name}"}}', "finetunejob", watched.start)[-1]
    namespace = system.name if query.dashboard == "operator" else watched.jobs.name
    expr = substitute(query.expr, job=job, namespace=namespace)
    found = prometheus.over(expr, watched.start, watched.end)  # an instant panel also had a value at some time
    name = f"{query.panel} annotation" if query.legend == "annotation" else query.panel
    if name in EMPTY_PANELS or query.legend in EMPTY_PANELS:
        return  # Prometheus accepted the query, and no data is expected
    assert found, expr
    assert any(value not in ("NaN", "+Inf") for series in found for _, value in series["values"]), "all values are NaN or +Inf"


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_has_values(prometheus: Prometheus, watched: Watched, name: str) -> None:
    for variable, (selector, label) in variables(name).items():
        found = prometheus.label_values(substitute(selector), label, watched.start)
        if variable == "cluster":
            continue  # the label exists only if several clusters report to one Prometheus
        assert found, selector
        if variable == "job":
            assert any(job.startswith(WATCHED) for job in found)


def test_the_alerts_are_loaded_and_none_has_an_error(prometheus: Prometheus, system: Namespace) -> None:
    def loaded() -> dict[str, str]:
        groups = prometheus.ask("rules", type="alert")["groups"]
        return {
            rule["name"]: rule["health"]
            for group in groups
            if system.name in group["file"] or group["name"].startswith("finetune-")
            for rule in group["rules"]
            if rule["name"].startswith("FineTune")
        }

    system.wait_for("all alerts", lambda: len(loaded()) == 14 and "unknown" not in loaded().values(), 180)
    assert set(loaded().values()) == {"ok"}


# A web server with the metrics that its argument names.
_SERVER = """
import http.server, sys
body = sys.argv[1].encode() if len(sys.argv) == 2 else b"".join(
    b'finetune_training_loss{n="%d"} 1\\n' % number for number in range(int(sys.argv[2])))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("", 9400), Handler).serve_forever()
"""
_FORGED = 'finetune_job_phase{phase="Failed"} 1\napiserver_request_total{code="500"} 99999\nfinetune_training_loss 1\n'


def _foreign_pod(*arguments: str, job: str) -> Object:
    """Return a pod that says that it belongs to a job, and serves metrics."""
    container = {
        "name": "server",
        "image": os.environ.get("TRAINER_IMAGE", "localhost/finetune-trainer:dev"),
        "command": ["python", "-c", _SERVER, *arguments],
        "ports": [{"name": "telemetry", "containerPort": 9400}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    return {"metadata": {"labels": {"finetune.dev/finetunejob": job}}, "spec": spec}


def test_a_hostile_pod_neither_forges_nor_floods_metrics(prometheus: Prometheus, claim: tuple[Namespace, str]) -> None:
    jobs, _ = claim
    plain = _foreign_pod(_FORGED, job="plain")
    jobs.apply({"apiVersion": "v1", "kind": "Pod", **plain, "metadata": {**plain["metadata"], "name": "plain"}})
    for name, arguments in (("forged", (_FORGED,)), ("flood", ("", "3000"))):
        template = _foreign_pod(*arguments, job="somebody-else")
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": f"{name}-1"}, "spec": {"template": template}}
        jobs.apply(job)
    where = f'namespace="{jobs.name}"'
    loss = f'finetune_training_loss{{{where},finetunejob="forged"}}'
    jobs.wait_for("the metrics of a Job's pod", lambda: prometheus.instant(loss), 120)
    jobs.wait_for("the pod with too many", lambda: prometheus.instant(f'up{{{where},finetunejob="flood"}} == 0'), 120)
    try:
        assert not prometheus.instant(f'finetune_training_loss{{{where},finetunejob=~"flood|plain|somebody-else"}}')
        assert not prometheus.instant(f"apiserver_request_total{{{where}}}"), "a pod invents metrics of other programs"
        assert not prometheus.instant(f'finetune_job_phase{{{where},pod=~"forged-1-.*"}}'), "a pod invents the operator's metrics"
        jobs.wait_for("the plain pod", lambda: (jobs.get("pod", "plain") or {}).get("status", {}).get("phase") == "Running", 60)
        time.sleep(3 * SCRAPE_SECONDS)
        assert not prometheus.instant(f'up{{{where},pod="plain"}}'), "a pod that no Job owns is scraped"
    finally:
        jobs.kubectl("delete", "job/forged-1", "job/flood-1", "pod/plain", "--wait=false", check=False)


def test_an_alert_fires_for_a_stalled_job(prometheus: Prometheus, claim: tuple[Namespace, str]) -> None:
    jobs, volume = claim
    # The trainer also detects the stall and ends the attempt. Its timeout must be longer than the alert's.
    recovery = {"maxRestarts": 0, "stallTimeoutSeconds": 3600}
    jobs.apply(build_job(STALLED, volume, 1_000_000, recovery=recovery))
    try:
        jobs.wait_for_phase(STALLED, "Running", timeout=240)
        [pod] = jobs.pods(STALLED)
        selector = f'namespace="{jobs.name}",finetunejob="{STALLED}"'
        jobs.wait_for(
            "the metrics of its steps", lambda: prometheus.instant(f"finetune_training_step{{{selector}}}"), 90, STALLED
        )
        _stop_training(jobs, str(pod["metadata"]["name"]))
        started = time.monotonic()
        firing = f'ALERTS{{alertname="FineTuneJobStalled",alertstate="firing",{selector}}}'
        jobs.wait_for("the alert", lambda: prometheus.instant(firing), STALLED_SECONDS + 240, STALLED)
        print(f"FineTuneJobStalled fires {time.monotonic() - started:.0f} s after SIGSTOP, threshold {STALLED_SECONDS} s")
    finally:
        jobs.kubectl("delete", "finetunejob", STALLED, "--wait=false", check=False)


def _stop_training(jobs: Namespace, pod: str) -> None:
    """Send SIGSTOP to the training process. The launcher continues to respond."""
    script = (
        "import os, pathlib, signal\n"
        "found = [int(path.parent.name) for path in pathlib.Path('/proc').glob('[0-9]*/cmdline')\n"
        "         if b'finetune_trainer.pod.worker' in path.read_bytes().split(b'\\0')]\n"
        "[os.kill(pid, signal.SIGSTOP) for pid in found]\n"
        "print(len(found))"
    )
    stopped = jobs.kubectl("exec", pod, "--", "python", "-c", script).stdout
    assert int(stopped) >= 1, "no training process was found"
