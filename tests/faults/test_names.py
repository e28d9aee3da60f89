"""A name that is used again, quotas, and what is kept of an earlier job."""

import time

import pytest

from cluster.kube import Object
from faults.place import LABEL, Place

pytestmark = pytest.mark.cluster
OWNER = "finetune.dev/owner-uid"
RETAIN_NOTHING = {"output": {"retention": {"whenDeleted": "Delete"}}}


def owners(pods: list[Object]) -> set[str]:
    return {pod["metadata"].get("annotations", {}).get(OWNER, "") for pod in pods}


def test_a_job_made_again_at_once_under_its_name_takes_nothing_over_and_waits_for_the_old_pods(place: Place) -> None:
    old = place.submit("job", "save 4", training={"maxSteps": 600}, **RETAIN_NOTHING)
    place.wait_phase("job", "Running")
    place.kubectl("delete", "finetunejob", "job", "--wait=false")
    new = place.submit("job", **RETAIN_NOTHING)
    seen: list[set[str]] = []
    end = time.monotonic() + 60
    while place.status("job").get("phase") != "Succeeded":
        assert time.monotonic() < end, place.describe("job")
        found = owners(place.objects("pods", f"{LABEL}=job"))
        if not seen or seen[-1] != found:
            seen.append(found)
        assert found != {old, new}, "pods of both at the same time"
        time.sleep(0.2)
    print([["old" if uid == old else "new" for uid in found] for found in seen])
    assert {old} in seen, "the old pods took their time"
    status = place.status("job")
    assert (status["attempt"], status["restarts"]["failures"]) == (1, 0)
    for kind in ("jobs", "services", "configmaps"):
        for item in place.objects(kind, f"{LABEL}=job"):
            assert [owner["uid"] for owner in item["metadata"]["ownerReferences"]] == [new], kind


def test_what_an_earlier_job_of_the_name_left_half_done_is_not_gone_on_with_in_silence(place: Place) -> None:
    place.submit("job", training={"maxSteps": 600})
    place.wait_phase("job", "Running")
    place.kubectl("delete", "finetunejob", "job", "--wait=true")
    place.wait("its pods are gone", lambda: not place.pods("job"), 30)
    place.submit("job", training={"maxSteps": 600})
    status = place.wait_phase("job", "Failed")
    print(status["message"])
    assert status["reason"] == "OutputConflict"


def test_a_finished_job_restored_without_its_status_does_not_train_again(place: Place) -> None:
    place.submit("job")
    place.wait_phase("job", "Succeeded")
    place.kubectl("delete", "finetunejob", "job", "--wait=true")
    place.wait("its pods are gone", lambda: not place.pods("job"), 30)
    place.submit("job")
    status = place.wait_phase("job", "Succeeded")
    print(status["message"])
    assert status.get("progress", {}).get("step", 0) in (0, 10)
    logs = "".join(place.kubectl("logs", pod["metadata"]["name"], check=False).stdout for pod in place.pods("job"))
    assert "at step 10" not in logs


@pytest.mark.slow
def test_a_gang_for_which_the_quota_is_too_small_waits_without_holding_anything(place: Place) -> None:
    def set_quota(pods: int) -> None:
        spec = {"hard": {"pods": str(pods)}}
        place.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": spec})

    set_quota(1)
    place.wait("the quota counts", lambda: (place.get("resourcequota", "few") or {}).get("status", {}).get("used"), 30)
    place.submit("job", "step 1", training={"maxSteps": 600})
    status = place.wait("it says so", lambda: waits_for_quota(place), 30, "job")
    assert "pods" in status["message"]
    started = time.monotonic()
    place.wait("the half gang is gone", lambda: not place.pods("job"), 60, "job")
    print(
        f"the half gang was gone {time.monotonic() - started:.0f} s after the refusal was told: {place.status('job')['message']}"
    )
    held = [len(place.pods("job")) for _ in range(20) if not time.sleep(1)]
    print(f"pods held in the 20 s after that: {held}")
    assert waits_for_quota(place), place.describe("job")
    set_quota(4)
    status = place.wait_phase("job", "Running", timeout=90)
    assert status["restarts"]["failures"] == 0


def waits_for_quota(place: Place) -> Object | None:
    status = place.status("job")
    return status if status.get("reason") == "QuotaExceeded" else None
