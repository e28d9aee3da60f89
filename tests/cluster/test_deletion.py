"""What is left when a job is deleted, and what a job notices of the operator's absence."""

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


def test_a_deleted_job_leaves_nothing_but_what_its_retention_keeps(jobs: Namespace, make_job: Any) -> None:
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
    """uid and restarts of each pod."""
    return [(pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["restartCount"]) for pod in pods]


def test_a_job_goes_on_without_the_operator_and_its_status_is_right_again_afterwards(
    jobs: Namespace, system: Namespace, make_job: Any
) -> None:
    jobs.apply(make_job("alone", training=LONG, output={"retention": {"whenDeleted": "Delete"}}))
    jobs.wait_for("it to train", lambda: running(jobs, "alone"), 150, "alone")
    before, pods = jobs.status("alone"), identities(jobs.pods("alone"))
    [operator] = system.objects("pods", "app.kubernetes.io/name=finetune-operator")

    system.kubectl("delete", "pod", operator["metadata"]["name"], "--wait=true")
    gone = datetime.datetime.now(datetime.UTC)

    def status_is_right() -> bool:
        status = jobs.status("alone")
        age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(status["progress"]["lastStepTime"])
        return status["progress"]["step"] > before["progress"]["step"] and age < datetime.timedelta(seconds=20)

    jobs.wait_for("a status that is right again", status_is_right, 90, "alone")
    took = datetime.datetime.now(datetime.UTC) - gone
    print(f"status is right again {took.total_seconds():.0f} s after the operator's pod was gone")
    after = jobs.status("alone")
    assert (after["phase"], after["attempt"], after["restarts"]) == ("Running", before["attempt"], before["restarts"])
    assert after["startTime"] == before["startTime"]
    assert identities(jobs.pods("alone")) == pods
    [replaced] = system.objects("pods", "app.kubernetes.io/name=finetune-operator")
    assert replaced["metadata"]["uid"] != operator["metadata"]["uid"]
    jobs.kubectl("delete", "finetunejob", "alone")
