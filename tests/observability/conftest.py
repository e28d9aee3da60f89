"""A real Prometheus, the chart with monitors and alerts, and one small training on the CPU that it watched."""

import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from chart.rendering import CHART
from cluster.kube import CRD_NAME, Namespace, kubectl
from finetune_operator import smoke
from finetune_operator.site import Site
from observability.jobs import RESOURCES, SCRAPE_SECONDS, STALLED_SECONDS, WATCHED, Watched, build_job, make_namespace
from observability.prometheus import Prometheus, find_prometheus, monitor_labels

RELEASE = "finetune-operator"


@pytest.fixture(scope="module")
def prometheus() -> Prometheus:
    """Skips where there is no cluster, no Prometheus operator or no Prometheus."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("these tests need a cluster: set KUBECONFIG")
    if kubectl("get", "crd", "podmonitors.monitoring.coreos.com", check=False).returncode:
        pytest.skip("these tests need the Prometheus operator: the cluster has no podmonitors.monitoring.coreos.com")
    found = find_prometheus()
    if found is None:
        pytest.skip("these tests need a Prometheus in the cluster: there is no service with the port 9090")
    return found


@pytest.fixture(scope="module")
def system(prometheus: Prometheus) -> Iterator[Namespace]:
    """The operator's namespace, with the chart and everything to be seen in it."""
    namespace = make_namespace(f"finetune-seen-{secrets.token_hex(3)}")
    brought_crd = not kubectl("get", "crd", CRD_NAME, "--ignore-not-found").stdout.strip()
    images = {
        "image": os.environ.get("OPERATOR_IMAGE", "localhost/finetune-operator:dev"),
        "trainerImage": os.environ.get("TRAINER_IMAGE", "localhost/finetune-trainer:dev"),
    }
    values: dict[str, Any] = {
        "podMonitors": {
            "enabled": True,
            "interval": f"{SCRAPE_SECONDS}s",
            "scrapeTimeout": "4s",
            "additionalLabels": monitor_labels(),
        },
        "alerts": {"enabled": True, "additionalLabels": monitor_labels(), "stalled": {"afterSeconds": STALLED_SECONDS}},
        "dashboards": {"enabled": True},
    }
    for key, image in images.items():
        repository, _, tag = image.rpartition(":")
        values[key] = {"repository": repository, "tag": tag}
    command = ["helm", "install", RELEASE, str(CHART), "--namespace", namespace.name, "--values", "-"]
    command += ["--wait", "--timeout=120s", "--take-ownership"]
    done = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=False)
    try:
        assert done.returncode == 0, f"helm install: {done.stdout}{done.stderr}\n{namespace.describe(None)}"
        yield namespace
    finally:
        subprocess.run(["helm", "uninstall", RELEASE, "--namespace", namespace.name, "--wait"], capture_output=True, check=False)
        kubectl("delete", "namespace", namespace.name, "--wait=false")
        if brought_crd:
            kubectl("delete", "crd", CRD_NAME, "--ignore-not-found", "--wait=false")


@pytest.fixture(scope="module")
def claim(system: Namespace) -> Iterator[tuple[Namespace, str]]:
    """A namespace for jobs, with a claim that holds a tiny model and data: those of `helm test`."""
    jobs = make_namespace(f"{system.name}-jobs")
    try:
        site = Site(trainer_image=os.environ.get("TRAINER_IMAGE", "localhost/finetune-trainer:dev"))
        jobs.apply({**smoke.build_claim("1Gi", ""), "metadata": {"name": "smoke"}})
        jobs.apply({**smoke.build_writer("smoke", site, RESOURCES), "metadata": {"name": "writer"}})

        def written() -> bool:
            pod = jobs.get("pod", "writer") or {}
            assert pod.get("status", {}).get("phase") != "Failed", jobs.describe(None)
            return bool(pod.get("status", {}).get("phase") == "Succeeded")

        jobs.wait_for("model and data are on the claim", written, 180)
        yield jobs, "smoke"
    finally:
        kubectl("delete", "namespace", jobs.name, "--wait=false")


@pytest.fixture(scope="module")
def watched(prometheus: Prometheus, claim: tuple[Namespace, str]) -> Watched:
    """One training that lasts for some scrapes, seen to its end."""
    jobs, volume = claim
    start = time.time()
    during = 0.0
    # Steps of this model take milliseconds: as many as it takes until it has been asked a few times.
    for steps in (2_000, 20_000, 100_000):
        name = f"{WATCHED}-{steps}"
        jobs.apply(build_job(name, volume, steps, distributed={"processesPerNode": 2}))
        query = f'count_over_time(finetune_training_step{{namespace="{jobs.name}",finetunejob="{name}"}}[10m])'
        jobs.wait_for_phase(name, "Succeeded", timeout=600)
        asked = [float(series["value"][1]) for series in prometheus.instant(query)]
        if asked and max(asked) >= 6:
            during = time.time() - SCRAPE_SECONDS
            break
    assert during, "Prometheus never asked a training pod often enough: is the PodMonitor chosen, and the pod reached?"
    ended = f'finetune_job_final_loss{{namespace="{jobs.name}",finetunejob="{name}"}}'
    jobs.wait_for("its end is told, too", lambda: prometheus.instant(ended), 90, name)
    # Queries over time look every 15 s, from the start on: so that one look, at least, comes after it.
    time.sleep(SCRAPE_SECONDS + 15)
    return Watched(jobs, start, during, time.time())
