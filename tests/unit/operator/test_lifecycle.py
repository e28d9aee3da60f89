"""Complete scenarios, each also with the operator killed after each of its writes. The outcome is always the same."""

import copy
import datetime
import json
from collections.abc import Callable
from typing import Any

import pytest

from finetune_api import names
from finetune_operator.observed import Manifest, write_time
from unit.operator.builders import KEY, job_manifest, pod_manifest, spec_fields
from unit.operator.fake_server import Killed
from unit.operator.harness import Harness

PLACE = names.queue_job_name(KEY.name)
PUBLISHED = {"url": "https://hub/a/b", "commit": "c"}
# What the rest of the cluster does to a Job whose pods run or which is suspended.
Scenario = Callable[[Harness, Manifest, str], None]


def terminate_pod(harness: Harness, name: str, code: int, **report: Any) -> None:
    """Terminate a pod if it still runs."""
    status = harness.server.take("pods", name)["status"]
    if status["phase"] == "Running":
        message = json.dumps(report) if report else ""
        end = {"exitCode": code, "reason": "Error", "message": message, "finishedAt": write_time(harness.now)}
        status["phase"] = "Failed" if code else "Succeeded"
        status["containerStatuses"][0]["state"] = {"terminated": end}


def succeed(harness: Harness, job: Manifest, phase: str) -> None:
    if phase == "Initializing":
        attempt = int(job["metadata"]["labels"][names.LABEL_ATTEMPT])
        report = {"phase": "Succeeded", "step": 10, "totalSteps": 10, "published": PUBLISHED}
        terminate_pod(harness, f"news-{attempt}-0-x", 0, attempt=attempt, **report)
        terminate_pod(harness, f"news-{attempt}-1-x", 0)
        job["status"] = {**job["status"], "succeeded": 2, "conditions": [{"type": "Complete", "status": "True"}]}


def lose_first_attempt(harness: Harness, job: Manifest, phase: str) -> None:
    if job["metadata"]["name"] != "news-1":
        succeed(harness, job, phase)
    elif phase == "Initializing":
        terminate_pod(harness, "news-1-1-x", 137)


def suspend_first_attempt(harness: Harness, job: Manifest, phase: str) -> None:
    if job["metadata"]["name"] != "news-1":
        succeed(harness, job, phase)
    elif phase == "Initializing":
        set_suspend(harness, True)


def lose_node_of_first_attempt(harness: Harness, job: Manifest, phase: str) -> None:
    """Simulate a dead node: the deletion of its pod is requested, but no kubelet ends it."""
    if job["metadata"]["name"] != "news-1":
        succeed(harness, job, phase)
    elif phase == "Initializing":
        mark_node_lost(harness, "news-1-1-x")


def mark_node_lost(harness: Harness, name: str) -> None:
    pod = harness.server.take("pods", name)
    if "deletionTimestamp" not in pod["metadata"]:
        due = harness.now + datetime.timedelta(seconds=60)
        pod["metadata"] |= {"deletionTimestamp": write_time(due), "deletionGracePeriodSeconds": 60}
        pod["status"]["conditions"] = [
            {"type": "Ready", "status": "False"},
            {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": "tainted"},
        ]
        pod["status"]["containerStatuses"][0]["ready"] = True
        harness.server.put("pods", pod)


def set_suspend(harness: Harness, value: bool) -> None:
    job = harness.server.take("finetunejobs", KEY.name)
    if job["spec"].get("suspend", False) != value:
        metadata = {**job["metadata"], "generation": job["metadata"]["generation"] + 1}
        harness.server.put("finetunejobs", {**job, "metadata": metadata, "spec": spec_fields(suspend=value)})


def admit_evict_and_admit(harness: Harness, job: Manifest, phase: str) -> None:
    """Act as Kueue does: resume the Job that holds the place, suspend it once, and resume it again when no pod is left."""
    suspended, evicted = job["spec"].get("suspend"), "evicted" in job
    if job["metadata"]["name"] != PLACE:
        if job["metadata"]["name"] != "news-1":
            succeed(harness, job, phase)
    elif suspended and phase == "Queued" and not job["status"].get("active"):
        job["spec"]["suspend"] = False
        harness.server.put("jobs", job)
    elif phase == "Initializing" and not suspended and not evicted:
        job["spec"]["suspend"] = job["evicted"] = True
        harness.server.put("jobs", job)


def step_cluster(harness: Harness, scenario: Scenario) -> None:
    """Simulate the rest of the cluster: start the pods of a Job, remove those of a deleted Job, then apply the scenario."""
    server = harness.server
    jobs = {job["metadata"]["uid"]: job for (kind, _, _), job in server.objects.items() if kind == "jobs"}
    for key, pod in list(server.objects.items()):
        node_lost = "conditions" in pod.get("status", {})
        if key[0] == "pods" and pod["metadata"]["ownerReferences"][0]["uid"] not in jobs and not node_lost:
            del server.objects[key]
    phase = server.take("finetunejobs", KEY.name).get("status", {}).get("phase", "")
    for uid, job in jobs.items():
        job.setdefault("status", {})
        attempt = int(job["metadata"]["labels"].get(names.LABEL_ATTEMPT, 0))
        if attempt and f"news-{attempt}-0-x" not in server.names_of("pods"):
            for index in (0, 1):
                pod = pod_manifest(index, attempt)
                pod["metadata"] |= {"creationTimestamp": write_time(harness.now)}
                pod["metadata"]["ownerReferences"][0]["uid"] = uid
                server.put("pods", pod)
        else:
            scenario(harness, job, phase)
    if phase == "Suspended" and not jobs:
        set_suspend(harness, False)


async def run_to_end(harness: Harness, scenario: Scenario) -> int:
    """Reconcile until nothing is left to do. Return how often the operator was killed. Lists replace the watches."""
    killed = 0
    for _ in range(60):
        step_cluster(harness, scenario)
        await harness.resync.list_active()
        try:
            again = await harness.reconcile()
        except Killed:
            killed += 1
            harness.start()
            continue
        if again is None and harness.status["phase"] in ("Succeeded", "Failed"):
            return killed
        harness.advance(2)
    raise AssertionError(f"the job does not end: {harness.status}")


def start_scenario(scenario: Scenario) -> Harness:
    harness = Harness()
    labels = {names.LABEL_KUEUE_QUEUE: "gpus"} if scenario is admit_evict_and_admit else {}
    harness.server.put("finetunejobs", copy.deepcopy(job_manifest(labels=labels)))
    return harness


# For each scenario: expected failures, preemptions, and reasons of its attempts.
SCENARIOS: dict[Scenario, tuple[int, int, list[str]]] = {
    succeed: (0, 0, ["Completed"]),
    lose_first_attempt: (1, 0, ["WorkerDied", "Completed"]),
    lose_node_of_first_attempt: (0, 1, ["NodeLost", "Completed"]),
    suspend_first_attempt: (0, 0, ["Suspended", "Completed"]),
    admit_evict_and_admit: (0, 0, ["EvictedByQueue", "Completed"]),
}


def check_outcome(harness: Harness, scenario: Scenario) -> None:
    status, (failures, preemptions, reasons) = harness.status, SCENARIOS[scenario]
    restarts = status["restarts"]
    assert (status["phase"], status["attempt"]) == ("Succeeded", len(reasons))
    assert (restarts["failures"], restarts["preemptions"], restarts["total"]) == (failures, preemptions, failures + preemptions)
    assert [item["reason"] for item in status["attempts"]] == reasons
    assert status["published"] == PUBLISHED
    assert [item["type"] for item in status["conditions"] if item["status"] == "True"] == ["Complete", "Ready"]
    created = [request for request in harness.server.done if request.startswith("POST jobs") and PLACE not in request]
    assert created == [f"POST jobs news-{number}" for number in range(1, len(reasons) + 1)]
    assert harness.server.names_of("jobs") == [f"news-{len(reasons)}"]


async def writes_of(scenario: Scenario) -> list[str]:
    harness = start_scenario(scenario)
    await run_to_end(harness, scenario)
    check_outcome(harness, scenario)
    return harness.server.done


async def test_a_full_run_costs_a_write_for_each_child_and_each_phase() -> None:
    assert [request for request in await writes_of(succeed) if "events" not in request] == [
        "POST services news-gang",
        "POST jobs news-1",
        "POST configmaps news-1-11111111-1",
        "POST persistentvolumeclaims news-output",
        *["PATCH finetunejobs news"] * 3,
    ]


async def test_a_restart_costs_six_more_writes() -> None:
    writes = [request for request in await writes_of(lose_first_attempt) if "events" not in request]
    assert writes[7:] == [
        "DELETE jobs news-1",
        "POST jobs news-2",
        "POST configmaps news-2-11111111-1",
        *["PATCH finetunejobs news"] * 3,
    ]


async def test_after_a_node_dies_its_pod_is_deleted_after_the_job() -> None:
    writes = [request for request in await writes_of(lose_node_of_first_attempt) if request.startswith("DELETE")]
    assert writes == ["DELETE jobs news-1", "DELETE pods news-1-1-x"]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_an_operator_that_is_killed_after_a_write_is_followed_by_one_that_reaches_the_same_outcome(
    scenario: Scenario,
) -> None:
    for write in range(1, len(await writes_of(scenario)) + 1):
        harness = start_scenario(scenario)
        harness.server.kill_after = write
        assert await run_to_end(harness, scenario) == 1
        check_outcome(harness, scenario)


async def test_nothing_is_created_for_a_job_whose_children_were_deleted_after_its_end() -> None:
    harness = start_scenario(succeed)
    await run_to_end(harness, succeed)
    before = len(harness.server.done)
    del harness.server.objects["jobs", "team", "news-1"]
    harness.start()
    await run_to_end(harness, succeed)
    assert (len(harness.server.done), harness.server.names_of("pods")) == (before, [])
