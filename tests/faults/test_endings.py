"""Suspending, deadlines, time to live, and pods that never start."""

import json
import time
from typing import Any

import pytest

from faults.place import Place

pytestmark = pytest.mark.cluster


def patch(place: Place, job: str, **spec: Any) -> None:
    place.kubectl("patch", "finetunejob", job, "--type=merge", f"--patch={json.dumps({'spec': spec})}")


def test_a_suspended_job_saves_gives_its_pods_back_and_goes_on_from_its_checkpoint(place: Place) -> None:
    place.submit("job", "save 1", training={"maxSteps": 250})
    place.wait_phase("job", "Running")
    time.sleep(2)
    patch(place, "job", suspend=True)
    status = place.wait_phase("job", "Suspended", timeout=30)
    place.wait("its pods are gone", lambda: not place.pods("job"), 30, "job")
    status = place.wait("its checkpoint is told", lambda: with_checkpoint(place), 10, "job")
    step = status["checkpoint"]["step"]
    print(f"suspended at step {step}: {status['message']}")
    assert {item["type"]: item["status"] for item in status["conditions"]}["Suspended"] == "True"
    time.sleep(3)
    assert not place.objects("pods")
    patch(place, "job", suspend=False)
    status = place.wait_phase("job", "Succeeded", timeout=60)
    assert status["attempt"] == 2
    assert status["restarts"]["failures"] == 0
    assert {item["type"]: item["status"] for item in status["conditions"]}.get("Suspended", "False") == "False"
    assert place.created() == ["job-1", "job-2"]
    ran = status["attempts"]
    print(f"attempts: {ran}")
    assert step > 0
    assert ran[0]["step"] == step


def with_checkpoint(place: Place) -> dict[str, Any] | None:
    status = place.status("job")
    return status if "checkpoint" in status else None


def test_a_job_that_is_made_suspended_creates_no_pod(place: Place) -> None:
    place.submit("job", suspend=True)
    place.wait_phase("job", "Suspended", timeout=20)
    time.sleep(3)
    assert place.created() == []
    patch(place, "job", suspend=False)
    place.wait_phase("job", "Succeeded")
    assert place.created() == ["job-1"]


def test_the_deadline_counts_the_time_in_which_pods_ran_and_not_the_rest(place: Place) -> None:
    place.submit("job", training={"maxSteps": 900}, activeDeadlineSeconds=24)
    place.wait_phase("job", "Running")
    time.sleep(4)
    patch(place, "job", suspend=True)
    place.wait_phase("job", "Suspended", timeout=30)
    time.sleep(24)
    assert place.status("job")["phase"] == "Suspended", "suspended time does not count"
    patch(place, "job", suspend=False)
    status = place.wait_phase("job", "Running", timeout=30)
    status = place.wait_phase("job", "Failed", timeout=40)
    print(f"{status['message']}; running seconds: {status.get('runningSeconds')}")
    assert status["reason"] == "DeadlineExceeded"
    assert 23 <= status["runningSeconds"] <= 30
    place.wait("its pods are stopped", lambda: all(ended(pod) for pod in place.pods("job")), 30, "job")


def ended(pod: dict[str, Any]) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")


def test_time_to_live_deletes_the_job_and_never_the_only_copy_of_a_model(place: Place) -> None:
    publish = {"publish": {"repository": "nobody/model"}}
    take_along = {"output": {"retention": {"whenDeleted": "Delete"}}}
    place.submit("kept", ttlSecondsAfterFinished=3)
    place.submit("only-copy", ttlSecondsAfterFinished=3, **take_along)
    place.submit("published", ttlSecondsAfterFinished=3, **take_along, **publish)
    place.wait("two of them are gone", lambda: jobs(place) == ["only-copy"], 60, "published")
    place.wait("why the third one stays", lambda: "OnlyCopy" in str(place.status("only-copy").get("conditions")), 60, "only-copy")
    time.sleep(3)
    assert jobs(place) == ["only-copy"]
    place.wait("the published one's volume went along", lambda: not place.get("persistentvolumeclaim", "published-output"), 30)
    assert place.get("persistentvolumeclaim", "kept-output")
    assert place.get("persistentvolumeclaim", "only-copy-output")
    assert sorted(place.created()) == ["kept-1", "only-copy-1", "published-1"]


def jobs(place: Place) -> list[str]:
    return [item["metadata"]["name"] for item in place.objects("finetunejobs")]


def test_a_volume_goes_when_the_model_is_on_the_hub_if_the_job_says_so(place: Place) -> None:
    place.submit("job", publish={"repository": "nobody/model"}, output={"retention": {"whenFinished": "Delete"}})
    place.wait_phase("job", "Succeeded")
    place.wait("the volume is gone", lambda: going(place, "job-output"), 30, "job")


def going(place: Place, claim: str) -> bool:
    found = place.get("persistentvolumeclaim", claim)
    return found is None or "deletionTimestamp" in found["metadata"]


@pytest.mark.parametrize(
    ("reason", "spec"),
    [
        ("SecretNotFound", {"hub": {"tokenSecretRef": {"name": "nowhere"}}}),
        ("ImagePullFailed", {"pod": {"image": "localhost/no-such-image:1"}}),
        ("ClaimNotFound", {"output": {"claim": {"claimName": "nowhere"}}}),
        ("StartTimeout", {"pod": {"nodeSelector": {"no-such": "node"}}}),
    ],
)
def test_pods_that_never_start_are_explained_and_end_after_the_time_out(place: Place, reason: str, spec: dict[str, Any]) -> None:
    place.submit("job", recovery={"startTimeoutSeconds": 30}, **spec)
    waiting = "Unschedulable" if reason == "StartTimeout" else reason
    status = place.wait("it says what it waits for", lambda: told(place, waiting), 28, "job")
    assert status["phase"] == "Pending"
    print(f"while it waits: {status['message']}")
    status = place.wait_phase("job", "Failed", timeout=60)
    print(f"at the end: {status['reason']}: {status['message']}")
    assert status["reason"] == reason
    place.wait("no pod is left waiting", lambda: all(ended(pod) for pod in place.pods("job")), 30, "job")


def told(place: Place, reason: str) -> dict[str, Any] | None:
    status = place.status("job")
    return status if status.get("reason") == reason else None
