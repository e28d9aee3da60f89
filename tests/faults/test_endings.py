"""Suspension, deadlines, time to live, and pods that never start."""

import json
import time
from typing import Any

import pytest

from faults.environment import Environment

pytestmark = pytest.mark.cluster


def patch(env: Environment, job: str, **spec: Any) -> None:
    env.kubectl("patch", "finetunejob", job, "--type=merge", f"--patch={json.dumps({'spec': spec})}")


def test_a_suspended_job_saves_a_checkpoint_loses_its_pods_and_resumes_from_the_checkpoint(env: Environment) -> None:
    env.submit("job", "save 1", training={"maxSteps": 250})
    env.wait_phase("job", "Running")
    time.sleep(2)
    patch(env, "job", suspend=True)
    status = env.wait_phase("job", "Suspended", timeout=30)
    env.kubectl("wait", "finetunejob/job", "--for=condition=Suspended", "--timeout=40s")
    assert not env.pods("job"), "Suspended is true once the pods are gone"
    status = env.wait("the status has the checkpoint", lambda: status_with_checkpoint(env), 10, "job")
    step = status["checkpoint"]["step"]
    print(f"suspended at step {step}: {status['message']}")
    assert {item["type"]: item["status"] for item in status["conditions"]}["Suspended"] == "True"
    time.sleep(3)
    assert not env.objects("pods")
    patch(env, "job", suspend=False)
    env.kubectl("wait", "finetunejob/job", "--for=condition=Suspended=false", "--timeout=40s")
    env.kubectl("wait", "finetunejob/job", "--for=condition=Running", "--timeout=40s")
    status = env.wait_phase("job", "Succeeded", timeout=60)
    assert status["attempt"] == 2
    assert status["restarts"]["failures"] == 0
    for condition in ("Complete", "Failed=false", "Running=false", "Suspended=false", "Blocked=false", "Ready"):
        env.kubectl("wait", "finetunejob/job", f"--for=condition={condition}", "--timeout=5s")
    assert env.created() == ["job-1", "job-2"]
    attempts = status["attempts"]
    print(f"attempts: {attempts}")
    assert step > 0
    assert attempts[0]["step"] == step


def status_with_checkpoint(env: Environment) -> dict[str, Any] | None:
    """Return the job's status if it has a checkpoint, else None."""
    status = env.status("job")
    return status if "checkpoint" in status else None


def test_a_job_that_is_created_suspended_creates_no_pod(env: Environment) -> None:
    env.submit("job", suspend=True)
    env.wait_phase("job", "Suspended", timeout=20)
    time.sleep(3)
    assert env.created() == []
    patch(env, "job", suspend=False)
    env.wait_phase("job", "Succeeded")
    assert env.created() == ["job-1"]


def test_the_deadline_counts_only_the_time_in_which_pods_ran(env: Environment) -> None:
    env.submit("job", training={"maxSteps": 900}, activeDeadlineSeconds=24)
    env.wait_phase("job", "Running")
    time.sleep(4)
    patch(env, "job", suspend=True)
    env.wait_phase("job", "Suspended", timeout=30)
    time.sleep(24)
    assert env.status("job")["phase"] == "Suspended", "the deadline must not count the time of a suspension"
    patch(env, "job", suspend=False)
    status = env.wait_phase("job", "Running", timeout=30)
    status = env.wait_phase("job", "Failed", timeout=40)
    print(f"{status['message']}; running seconds: {status.get('runningSeconds')}")
    assert status["reason"] == "DeadlineExceeded"
    assert 23 <= status["runningSeconds"] <= 30
    env.wait("its pods have terminated", lambda: all(is_terminated(pod) for pod in env.pods("job")), 30, "job")


def is_terminated(pod: dict[str, Any]) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")


def test_the_time_to_live_deletes_a_job_but_never_the_only_copy_of_a_model(env: Environment) -> None:
    publish = {"publish": {"repository": "example/model"}}
    delete_output = {"output": {"retention": {"whenDeleted": "Delete"}}}
    env.submit("kept", ttlSecondsAfterFinished=3)
    env.submit("only-copy", ttlSecondsAfterFinished=3, **delete_output)
    env.submit("published", ttlSecondsAfterFinished=3, **delete_output, **publish)
    env.wait("two jobs are deleted", lambda: jobs(env) == ["only-copy"], 60, "published")
    env.wait(
        "the condition OnlyCopy of the third job",
        lambda: "OnlyCopy" in str(env.status("only-copy").get("conditions")),
        60,
        "only-copy",
    )
    time.sleep(3)
    assert jobs(env) == ["only-copy"]
    env.wait("the volume of the published job is deleted", lambda: not env.get("persistentvolumeclaim", "published-output"), 30)
    assert env.get("persistentvolumeclaim", "kept-output")
    assert env.get("persistentvolumeclaim", "only-copy-output")
    assert sorted(env.created()) == ["kept-1", "only-copy-1", "published-1"]


def jobs(env: Environment) -> list[str]:
    return [item["metadata"]["name"] for item in env.objects("finetunejobs")]


def test_the_retention_when_finished_deletes_the_volume_of_a_published_model(env: Environment) -> None:
    env.submit("job", publish={"repository": "example/model"}, output={"retention": {"whenFinished": "Delete"}})
    env.wait_phase("job", "Succeeded")
    env.wait("the volume is deleted", lambda: is_deleted(env, "job-output"), 30, "job")


def is_deleted(env: Environment, claim: str) -> bool:
    """Return whether a claim does not exist or has a deletionTimestamp."""
    found = env.get("persistentvolumeclaim", claim)
    return found is None or "deletionTimestamp" in found["metadata"]


# The reason of the failure, and a job whose pods can't start.
STUCK: dict[str, dict[str, Any]] = {
    "SecretNotFound": {"hub": {"tokenSecretRef": {"name": "nowhere"}}},
    "ImagePullFailed": {"pod": {"image": "localhost/no-such-image:1"}},
    "ClaimNotFound": {"output": {"claim": {"claimName": "nowhere"}}},
    "StartTimeout": {"pod": {"nodeSelector": {"no-such": "node"}}},
}


def test_the_status_says_why_pods_do_not_start_and_the_job_fails_after_the_timeout(env: Environment) -> None:
    seconds = 45  # all of them wait at the same time
    jobs = {reason: reason.lower() for reason in STUCK}
    for reason, job in jobs.items():
        limits = {"startTimeoutSeconds": seconds, "scheduleTimeoutSeconds": seconds}
        env.submit(job, recovery=limits, **STUCK[reason])
    for reason, job in jobs.items():
        before = "Unschedulable" if reason == "StartTimeout" else reason
        status = env.wait(
            "the reason before the timeout", lambda job=job, before=before: status_with_reason(env, job, before), 40, job
        )
        assert status["phase"] == "Pending"
        print(f"{job} before the timeout: {status['message']}")
    for reason, job in jobs.items():
        status = env.wait_phase(job, "Failed", timeout=2 * seconds)
        print(f"{job} after the timeout: {status['reason']}: {status['message']}")
        assert status["reason"] == reason
        env.wait("no pod waits any more", lambda job=job: all(is_terminated(pod) for pod in env.pods(job)), 30, job)


def status_with_reason(env: Environment, job: str, reason: str) -> dict[str, Any] | None:
    """Return the job's status if it has this reason, else None."""
    status = env.status(job)
    return status if status.get("reason") == reason else None
