"""Jobs with the name of an earlier job, outputs of earlier jobs, and quotas."""

import time

import pytest

from cluster.kube import Object
from faults.environment import LABEL, Environment

pytestmark = pytest.mark.cluster
OWNER = "finetune.dev/owner-uid"
DELETE_OUTPUT = {"output": {"retention": {"whenDeleted": "Delete"}}}


def owners(pods: list[Object]) -> set[str]:
    """Return the uids of the FineTuneJobs that own the pods."""
    return {pod["metadata"].get("annotations", {}).get(OWNER, "") for pod in pods}


def test_a_job_recreated_under_its_name_adopts_nothing_and_waits_until_the_old_pods_are_deleted(env: Environment) -> None:
    old = env.submit("job", "save 4", training={"maxSteps": 600}, **DELETE_OUTPUT)
    env.wait_phase("job", "Running")
    env.kubectl("delete", "finetunejob", "job", "--wait=false")
    new = env.submit("job", **DELETE_OUTPUT)
    seen: list[set[str]] = []
    end = time.monotonic() + 60
    while env.status("job").get("phase") != "Succeeded":
        assert time.monotonic() < end, env.describe("job")
        found = owners(env.objects("pods", f"{LABEL}=job"))
        if not seen or seen[-1] != found:
            seen.append(found)
        assert found != {old, new}, "pods of both jobs exist at the same time"
        time.sleep(0.2)
    print([["old" if uid == old else "new" for uid in found] for found in seen])
    assert {old} in seen, "the old pods were deleted too soon for this test"
    status = env.status("job")
    assert (status["attempt"], status["restarts"]["failures"]) == (1, 0)
    for kind in ("jobs", "services"):
        for item in env.objects(kind, f"{LABEL}=job"):
            assert [owner["uid"] for owner in item["metadata"]["ownerReferences"]] == [new], kind


def test_a_job_fails_if_an_earlier_job_of_its_name_left_an_unfinished_output(env: Environment) -> None:
    env.submit("job", training={"maxSteps": 600})
    env.wait_phase("job", "Running")
    env.kubectl("delete", "finetunejob", "job", "--wait=true")
    env.wait("its pods are deleted", lambda: not env.pods("job"), 30)
    env.submit("job", training={"maxSteps": 600})
    status = env.wait_phase("job", "Failed")
    print(status["message"])
    assert status["reason"] == "OutputConflict"


def test_a_finished_job_restored_without_its_status_does_not_train_again(env: Environment) -> None:
    env.submit("job")
    env.wait_phase("job", "Succeeded")
    env.kubectl("delete", "finetunejob", "job", "--wait=true")
    env.wait("its pods are deleted", lambda: not env.pods("job"), 30)
    env.submit("job")
    status = env.wait_phase("job", "Succeeded")
    print(status["message"])
    assert status.get("progress", {}).get("step", 0) in (0, 10)
    logs = "".join(env.kubectl("logs", pod["metadata"]["name"], check=False).stdout for pod in env.pods("job"))
    assert "at step 10" not in logs


def test_a_job_that_was_deleted_without_its_children_takes_the_model_when_it_is_applied_again(env: Environment) -> None:
    long_enough = {"maxSteps": 150}  # to be seen in Running
    env.submit("job", training=long_enough)
    env.wait_phase("job", "Running")
    env.kubectl("delete", "finetunejob", "job", "--cascade=orphan", "--wait=true")
    new = env.submit("job", training=long_enough)
    env.wait_phase("job", "Succeeded", timeout=180)
    [job] = env.objects("jobs", f"{LABEL}=job")
    assert [owner["uid"] for owner in job["metadata"]["ownerReferences"]] == [new]


@pytest.mark.slow
def test_an_attempt_that_exceeds_the_quota_waits_without_pods(env: Environment) -> None:
    def set_quota(pods: int) -> None:
        spec = {"hard": {"pods": str(pods)}}
        env.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": spec})

    set_quota(1)
    env.wait("the quota is in force", lambda: (env.get("resourcequota", "few") or {}).get("status", {}).get("used"), 30)
    env.submit("job", "step 1", training={"maxSteps": 600})
    status = env.wait("the reason QuotaExceeded", lambda: status_of_exceeded_quota(env), 30, "job")
    assert "pods" in status["message"]
    started = time.monotonic()
    env.wait("the pods of the incomplete attempt are deleted", lambda: not env.pods("job"), 60, "job")
    seconds = time.monotonic() - started
    print(f"pods of the incomplete attempt deleted {seconds:.0f} s after the status: {env.status('job')['message']}")
    counts = [len(env.pods("job")) for _ in range(20) if not time.sleep(1)]
    print(f"number of pods in each of the next 20 s: {counts}")
    assert status_of_exceeded_quota(env), env.describe("job")
    set_quota(4)
    status = env.wait_phase("job", "Running", timeout=90)
    assert status["restarts"]["failures"] == 0


def status_of_exceeded_quota(env: Environment) -> Object | None:
    """Return the job's status if its reason is QuotaExceeded, else None."""
    status = env.status("job")
    return status if status.get("reason") == "QuotaExceeded" else None
