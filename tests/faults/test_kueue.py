"""Kueue: a job in a queue shows Kueue's message, keeps its admission in a restart, and continues after an eviction."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.kube import kubectl
from faults.environment import Environment, job_manifest

pytestmark = pytest.mark.cluster
API = "kueue.x-k8s.io/v1beta2"
QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"


def has_kueue() -> bool:
    return bool(kubectl("get", "crd", "clusterqueues.kueue.x-k8s.io", "--ignore-not-found", check=False).stdout.strip())


@pytest.fixture
def env_with_queue(env: Environment) -> Iterator[Environment]:
    """An environment with a queue `gpus` and the default one, which share a quota that is enough for one job of two pods."""
    if not has_kueue():
        pytest.skip("needs Kueue in the cluster")
    name = env.name
    quotas = [{"name": "cpu", "nominalQuota": "50m"}, {"name": "memory", "nominalQuota": "1Gi"}]
    group = {"coveredResources": ["cpu", "memory"], "flavors": [{"name": name, "resources": quotas}]}
    queue = {"namespaceSelector": {}, "preemption": {"withinClusterQueue": "LowerPriority"}, "resourceGroups": [group]}
    objects: list[dict[str, Any]] = [
        {"apiVersion": API, "kind": "ResourceFlavor", "metadata": {"name": name}},
        {"apiVersion": API, "kind": "ClusterQueue", "metadata": {"name": name}, "spec": queue},
        {"apiVersion": API, "kind": "WorkloadPriorityClass", "metadata": {"name": name}, "value": 1000},
        *(
            {
                "apiVersion": API,
                "kind": "LocalQueue",
                "metadata": {"name": queue_name, "namespace": name},
                "spec": {"clusterQueue": name},
            }
            for queue_name in ("gpus", "default")
        ),
    ]
    manifests = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    kubectl("apply", "-f", "-", stdin=manifests)
    yield env
    kubectl("delete", "-f", "-", "--wait=false", stdin=manifests, check=False)


def submit(env: Environment, name: str, labels: dict[str, str], plan: str = "", **spec: Any) -> None:
    manifest = job_manifest(name, plan, **spec)
    manifest["metadata"]["labels"] = labels
    env.apply(manifest)


def test_a_job_waits_for_quota_keeps_it_in_a_restart_and_continues_after_an_eviction(env_with_queue: Environment) -> None:
    env = env_with_queue
    submit(env, "first", {}, "save 1", training={"maxSteps": 400})  # Kueue puts it into the default queue
    env.wait_phase("first", "Running")
    submit(env, "second", {QUEUE: "gpus"})
    waiting = env.wait("Kueue's reason", lambda: "quota" in env.status("second").get("message", "") and env.status("second"), 40)
    assert (waiting["phase"], waiting.get("attempt")) == ("Queued", None)
    assert workload_of(env, "first")["status"]["conditions"]
    admission = workload_of(env, "first")["metadata"]["uid"]

    env.kubectl("delete", "pod", "--selector", "finetune.dev/finetunejob=first", "--wait=false")
    env.wait("its next attempt", lambda: env.status("first").get("attempt") == 2 and env.status("first"), 60)
    env.wait_phase("first", "Running")
    assert env.status("second")["phase"] == "Queued", "a restarted job was overtaken"
    assert workload_of(env, "first")["metadata"]["uid"] == admission

    submit(env, "urgent", {QUEUE: "gpus", PRIORITY: env.name})
    evicted = env.wait_phase("first", "Queued", timeout=30)
    assert "evicted after" in evicted["message"]
    env.wait_phase("urgent", "Succeeded")
    env.wait_phase("first", "Succeeded", timeout=90)
    env.wait_phase("second", "Succeeded", timeout=90)
    status = env.status("first")
    assert (status["attempt"], status["restarts"]["failures"], status["restarts"]["preemptions"]) == (3, 0, 1)
    assert status["checkpoint"]["step"] > 0
    events = [event["reason"] for event in env.objects("events") if event["involvedObject"]["name"] == "first"]
    assert "Evicted" in events
    env.wait("the quota is given back", lambda: not env.objects("workloads"), 30)


def workload_of(env: Environment, job: str) -> Any:
    """Return the Workload of the Job that holds the place of a FineTuneJob."""
    [found] = [item for item in env.objects("workloads") if item["metadata"]["ownerReferences"][0]["name"] == f"{job}-queue"]
    return found


def test_a_queue_that_does_not_exist_sets_the_condition_blocked(env_with_queue: Environment) -> None:
    env = env_with_queue
    submit(env, "lost", {QUEUE: "nowhere"})
    status = env.wait(
        "the reason Inadmissible",
        lambda: env.status("lost").get("reason") == "Inadmissible" and env.status("lost"),
        40,
        "lost",
    )
    assert status["phase"] == "Queued"
    conditions = {item["type"]: item for item in status["conditions"]}
    assert (conditions["Blocked"]["status"], conditions["QuotaReserved"]["status"]) == ("True", "False")
    assert "nowhere" in conditions["Blocked"]["message"]
