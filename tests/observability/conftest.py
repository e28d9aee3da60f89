"""Fixtures: a real Prometheus, the chart with monitors and alerts, and one small training on the CPU that Prometheus scraped."""

import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from chart.rendering import CHART
from cluster.kube import Namespace, kubectl
from finetune_operator import smoke
from finetune_operator.defaults import OperatorDefaults
from observability.jobs import RESOURCES, SCRAPE_SECONDS, STALLED_SECONDS, WATCHED, Watched, build_job, make_namespace
from observability.prometheus import Prometheus, find_prometheus, monitor_labels, service_accounts

RELEASE = "finetune-operator"


@pytest.fixture(scope="module")
def prometheus() -> Prometheus:
    """Return the Prometheus of the cluster. Skip if there is no cluster, no Prometheus operator or no Prometheus."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("these tests need a cluster: set KUBECONFIG")
    if kubectl("get", "crd", "podmonitors.monitoring.coreos.com", check=False).returncode:
        pytest.skip("these tests need the Prometheus operator: the cluster has no podmonitors.monitoring.coreos.com")
    found = find_prometheus()
    if found is None:
        pytest.skip("these tests need a Prometheus in the cluster: there is no service with the port 9090")
    return found


@pytest.fixture(scope="module")
def jobs(prometheus: Prometheus) -> Iterator[Namespace]:
    """Yield the namespace of the FineTuneJobs."""
    namespace = make_namespace(f"finetune-seen-{secrets.token_hex(3)}-jobs")
    yield namespace
    kubectl("delete", "namespace", namespace.name, "--wait=false")


@pytest.fixture(scope="module")
def system(jobs: Namespace, custom_resource_definition: None) -> Iterator[Namespace]:
    """Install the chart with monitors, alerts and dashboards, for one namespace. Yield the operator's namespace."""
    namespace = make_namespace(jobs.name.removesuffix("-jobs"))
    images = {
        "image": os.environ.get("OPERATOR_IMAGE", "localhost/finetune-operator:dev"),
        "trainerImage": os.environ.get("TRAINER_IMAGE", "localhost/finetune-trainer:dev"),
    }
    values: dict[str, Any] = {
        # Tests in other processes have operators and jobs of their own, and have installed the CRD.
        "watchNamespaces": [jobs.name],
        "crds": {"enabled": False},
        "podMonitors": {
            "enabled": True,
            "interval": f"{SCRAPE_SECONDS}s",
            "scrapeTimeout": "4s",
            "additionalLabels": monitor_labels(),
        },
        "alerts": {"enabled": True, "additionalLabels": monitor_labels(), "stalled": {"afterSeconds": STALLED_SECONDS}},
        "dashboards": {"enabled": True},
        "metrics": {"secure": True, "readers": service_accounts()},
    }
    for key, image in images.items():
        repository, _, tag = image.rpartition(":")
        values[key] = {"repository": repository, "tag": tag}
    command = ["helm", "install", RELEASE, str(CHART), "--namespace", namespace.name, "--values", "-"]
    command += ["--wait", "--timeout=120s"]
    done = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=False)
    try:
        assert done.returncode == 0, f"helm install: {done.stdout}{done.stderr}\n{namespace.describe(None)}"
        yield namespace
    finally:
        subprocess.run(["helm", "uninstall", RELEASE, "--namespace", namespace.name, "--wait"], capture_output=True, check=False)
        kubectl("delete", "namespace", namespace.name, "--wait=false")


@pytest.fixture(scope="module")
def claim(jobs: Namespace, system: Namespace) -> tuple[Namespace, str]:
    """Return the jobs' namespace, and the name of a claim in it that holds the tiny model and the data of `helm test`."""
    defaults = OperatorDefaults(trainer_image=os.environ.get("TRAINER_IMAGE", "localhost/finetune-trainer:dev"))
    jobs.apply({**smoke.build_claim("1Gi", ""), "metadata": {"name": "smoke"}})
    jobs.apply({**smoke.build_writer("smoke", defaults, RESOURCES), "metadata": {"name": "writer"}})

    def written() -> bool:
        pod = jobs.get("pod", "writer") or {}
        assert pod.get("status", {}).get("phase") != "Failed", jobs.describe(None)
        return bool(pod.get("status", {}).get("phase") == "Succeeded")

    jobs.wait_for("model and data on the claim", written, 180)
    return jobs, "smoke"


@pytest.fixture(scope="module")
def watched(prometheus: Prometheus, claim: tuple[Namespace, str]) -> Watched:
    """Run one training that lasts for several scrapes, and wait for its end."""
    jobs, volume = claim
    start = time.time()
    during = 0.0
    # Steps of this model take milliseconds. Try more steps until Prometheus has scraped the training at least six times.
    for steps in (2_000, 20_000, 100_000):
        name = f"{WATCHED}-{steps}"
        jobs.apply(build_job(name, volume, steps, distributed={"processesPerNode": 2}))
        query = f'count_over_time(finetune_training_step{{namespace="{jobs.name}",finetunejob="{name}"}}[10m])'
        jobs.wait_for_phase(name, "Succeeded", timeout=600)
        asked = [float(series["value"][1]) for series in prometheus.instant(query)]
        if asked and max(asked) >= 6:
            during = time.time() - SCRAPE_SECONDS
            break
    assert during, (
        "Prometheus did not scrape the training pods often enough: does it select the PodMonitor, and can it reach the pods?"
    )
    ended = f'finetune_job_final_loss{{namespace="{jobs.name}",finetunejob="{name}"}}'
    jobs.wait_for("the metrics of its end", lambda: prometheus.instant(ended), 90, name)
    # Queries over time evaluate every 15 s, beginning at the start. At least one evaluation must come after the end.
    time.sleep(SCRAPE_SECONDS + 15)
    return Watched(jobs, start, during, time.time())
