"""What remains after a job is deleted, and how a job runs while the operator is down."""

import datetime
from typing import Any

import pytest

from cluster.kube import Namespace

pytestmark = pytest.mark.cluster
LONG = {"maxSteps": 2000, "globalBatchSize": 4, "maxTokens": 16}


def running(jobs: Namespace, job: str) -> bool:
    status = jobs.status(job)
    assert status.get("phase") not in {"Succeeded", "Failed"}, jobs.describe(job)
    return status.get("phase") == "Running" and status.get("progress", {}).get("step", 0) > 0


def test_a_deleted_job_leaves_only_what_its_retention_keeps(jobs: Namespace, make_job: Any) -> None:
    jobs.apply(make_job("kept", training=LONG))
    jobs.apply(make_job("gone", training=LONG, output={"volume": {"size": "1Gi"}, "retention": {"whenDeleted": "Delete"}}))
    for name in ("kept", "gone"):
        jobs.wait_for(f"{name} to train", lambda name=name: running(jobs, name), 150, name)
        assert len(jobs.children(name)) == 5, jobs.children(name)  # Job, pod, Service, ConfigMap, claim
    jobs.kubectl("delete", "finetunejob", "kept", "gone")
    jobs.wait_for("nothing but the claim", lambda: jobs.children("kept") == ["persistentvolumeclaim/kept-output"], 90, None)
    jobs.wait_for("nothing at all", lambda: jobs.children("gone") == [], 90, None)
    jobs.kubectl("delete", "persistentvolumeclaim", "kept-output")


def identities(pods: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Return the uid and the restart count of each pod."""
    return [(pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["restartCount"]) for pod in pods]


def test_a_job_continues_without_the_operator_and_its_status_is_correct_again_afterwards(
    jobs: Namespace, system: Namespace, make_job: Any
) -> None:
    jobs.apply(make_job("alone", training=LONG, output={"retention": {"whenDeleted": "Delete"}}))
    jobs.wait_for("it to train", lambda: running(jobs, "alone"), 150, "alone")
    before, pods = jobs.status("alone"), identities(jobs.pods("alone"))
    [operator] = system.objects("pods", "app.kubernetes.io/name=finetune-operator")

    system.kubectl("delete", "pod", operator["metadata"]["name"], "--wait=true")
    deleted_at = datetime.datetime.now(datetime.UTC)

    def status_is_current() -> bool:
        status = jobs.status("alone")
        age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(status["progress"]["lastStepTime"])
        return status["progress"]["step"] > before["progress"]["step"] and age < datetime.timedelta(seconds=20)

    jobs.wait_for("a current status", status_is_current, 90, "alone")
    took = datetime.datetime.now(datetime.UTC) - deleted_at
    print(f"the status is current {took.total_seconds():.0f} s after the pod of the operator was deleted")
    after = jobs.status("alone")
    assert (after["phase"], after["attempt"], after["restarts"]) == ("Running", before["attempt"], before["restarts"])
    assert after["startTime"] == before["startTime"]
    assert identities(jobs.pods("alone")) == pods
    [new_operator] = system.objects("pods", "app.kubernetes.io/name=finetune-operator")
    assert new_operator["metadata"]["uid"] != operator["metadata"]["uid"]
    jobs.kubectl("delete", "finetunejob", "alone")
