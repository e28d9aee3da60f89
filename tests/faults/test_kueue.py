"""Kueue: a job waits in its queue with Kueue's words, is evicted with a checkpoint, and goes on as the same Job."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.kube import kubectl
from faults.place import Place, job_manifest

pytestmark = pytest.mark.cluster
API = "kueue.x-k8s.io/v1beta1"
QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"


def has_kueue() -> bool:
    return bool(kubectl("get", "crd", "clusterqueues.kueue.x-k8s.io", "--ignore-not-found", check=False).stdout.strip())


@pytest.fixture
def queue(place: Place) -> Iterator[Place]:
    """A queue named `gpus` in the place, with room for one job of two pods."""
    if not has_kueue():
        pytest.skip("needs Kueue in the cluster")
    name = place.name
    room = [{"name": "cpu", "nominalQuota": "50m"}, {"name": "memory", "nominalQuota": "1Gi"}]
    group = {"coveredResources": ["cpu", "memory"], "flavors": [{"name": name, "resources": room}]}
    queue = {"namespaceSelector": {}, "preemption": {"withinClusterQueue": "LowerPriority"}, "resourceGroups": [group]}
    objects: list[dict[str, Any]] = [
        {"apiVersion": API, "kind": "ResourceFlavor", "metadata": {"name": name}},
        {"apiVersion": API, "kind": "ClusterQueue", "metadata": {"name": name}, "spec": queue},
        {"apiVersion": API, "kind": "WorkloadPriorityClass", "metadata": {"name": name}, "value": 1000},
        {
            "apiVersion": API,
            "kind": "LocalQueue",
            "metadata": {"name": "gpus", "namespace": name},
            "spec": {"clusterQueue": name},
        },
    ]
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    kubectl("apply", "-f", "-", stdin=listed)
    yield place
    kubectl("delete", "-f", "-", "--wait=false", stdin=listed, check=False)


def submit(place: Place, name: str, labels: dict[str, str], plan: str = "", **spec: Any) -> None:
    manifest = job_manifest(name, plan, **spec)
    manifest["metadata"]["labels"] = labels
    place.apply(manifest)


def test_a_job_waits_runs_is_evicted_and_goes_on_as_the_same_job(queue: Place) -> None:
    place = queue
    submit(place, "first", {QUEUE: "gpus"}, "save 1", training={"maxSteps": 400})
    place.wait_phase("first", "Running")
    submit(place, "second", {QUEUE: "gpus"})
    waiting = place.wait(
        "Kueue's reason", lambda: "quota" in place.status("second").get("message", "") and place.status("second"), 40
    )
    assert (waiting["phase"], waiting["attempt"]) == ("Queued", 1)
    [held] = [job for job in place.objects("jobs") if job["metadata"]["name"] == "second-1"]
    uid = next(job["metadata"]["uid"] for job in place.objects("jobs") if job["metadata"]["name"] == "first-1")
    assert held["spec"]["suspend"] is True

    submit(place, "urgent", {QUEUE: "gpus", PRIORITY: place.name})
    evicted = place.wait_phase("first", "Queued", timeout=30)
    assert "evicted after" in evicted["message"]
    place.wait_phase("urgent", "Succeeded")
    place.wait_phase("first", "Succeeded", timeout=90)
    place.wait_phase("second", "Succeeded", timeout=90)
    status = place.status("first")
    assert (status["attempt"], status["restarts"]["failures"]) == (1, 0)
    assert status["checkpoint"]["step"] > 0
    assert uid in [job["metadata"]["uid"] for job in place.objects("jobs")]
    events = [event["reason"] for event in place.objects("events") if event["involvedObject"]["name"] == "first"]
    assert "Evicted" in events


def test_a_queue_that_does_not_exist_is_a_condition(queue: Place) -> None:
    submit(queue, "lost", {QUEUE: "nowhere"})
    status = queue.wait(
        "the condition", lambda: queue.status("lost").get("reason") == "Inadmissible" and queue.status("lost"), 40, "lost"
    )
    assert status["phase"] == "Queued"
    [condition] = status["conditions"]
    assert (condition["type"], condition["status"]) == ("Blocked", "True")
    assert "nowhere" in condition["message"]
