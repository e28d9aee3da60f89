"""A whole life, and the same with the operator killed after each of its writes: the end is always the same."""

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
from unit.operator.world import World

PUBLISHED = {"url": "https://hub/a/b", "commit": "c"}
# What somebody else does to a Job whose gang runs, or is held back.
Fate = Callable[[World, Manifest, str], None]


def finish(world: World, name: str, code: int, **word: Any) -> None:
    """The end of a pod, once."""
    status = world.server.take("pods", name)["status"]
    if status["phase"] == "Running":
        message = json.dumps(word) if word else ""
        end = {"exitCode": code, "reason": "Error", "message": message, "finishedAt": write_time(world.now)}
        status["phase"] = "Failed" if code else "Succeeded"
        status["containerStatuses"][0]["state"] = {"terminated": end}


def succeed(world: World, job: Manifest, phase: str) -> None:
    if phase == "Initializing":
        attempt = int(job["metadata"]["labels"][names.LABEL_ATTEMPT])
        word = {"phase": "Succeeded", "step": 10, "totalSteps": 10, "published": PUBLISHED}
        finish(world, f"news-{attempt}-0-x", 0, attempt=attempt, **word)
        finish(world, f"news-{attempt}-1-x", 0)
        job["status"] = {**job["status"], "succeeded": 2, "conditions": [{"type": "Complete", "status": "True"}]}


def lose_the_first_gang(world: World, job: Manifest, phase: str) -> None:
    if job["metadata"]["name"] != "news-1":
        succeed(world, job, phase)
    elif phase == "Initializing":
        finish(world, "news-1-1-x", 137)


def suspend_the_first_gang(world: World, job: Manifest, phase: str) -> None:
    if job["metadata"]["name"] != "news-1":
        succeed(world, job, phase)
    elif phase == "Initializing":
        set_suspend(world, True)


def lose_a_machine_of_the_first_gang(world: World, job: Manifest, phase: str) -> None:
    """As a machine that dies: its pod is asked to go, and nobody ends it."""
    if job["metadata"]["name"] != "news-1":
        succeed(world, job, phase)
    elif phase == "Initializing":
        bereave(world, "news-1-1-x")


def bereave(world: World, name: str) -> None:
    pod = world.server.take("pods", name)
    if "deletionTimestamp" not in pod["metadata"]:
        due = world.now + datetime.timedelta(seconds=60)
        pod["metadata"] |= {"deletionTimestamp": write_time(due), "deletionGracePeriodSeconds": 60}
        pod["status"]["conditions"] = [
            {"type": "Ready", "status": "False"},
            {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": "tainted"},
        ]
        pod["status"]["containerStatuses"][0]["ready"] = True
        world.server.put("pods", pod)


def set_suspend(world: World, value: bool) -> None:
    there = world.server.take("finetunejobs", KEY.name)
    if there["spec"].get("suspend", False) != value:
        metadata = {**there["metadata"], "generation": there["metadata"]["generation"] + 1}
        world.server.put("finetunejobs", {**there, "metadata": metadata, "spec": spec_fields(suspend=value)})


def admit_evict_and_admit(world: World, job: Manifest, phase: str) -> None:
    """As Kueue does: the Job is let go, taken back once, and let go again."""
    held, evicted = job["spec"].get("suspend"), "evicted" in job
    if held and phase == "Queued":
        job["spec"]["suspend"], job["status"]["startTime"] = False, write_time(world.now)
    elif phase == "Initializing" and not held and not evicted:
        job["spec"]["suspend"] = job["evicted"] = True
        for name in world.server.names_of("pods"):
            del world.server.objects["pods", KEY.namespace, name]
    elif not held:
        succeed(world, job, phase)


def play(world: World, fate: Fate) -> None:
    """The rest of the cluster: pods of a Job that may run start, those of a deleted one go; then its fate."""
    server = world.server
    jobs = {job["metadata"]["uid"]: job for (kind, _, _), job in server.objects.items() if kind == "jobs"}
    for place, pod in list(server.objects.items()):
        bereft = "conditions" in pod.get("status", {})
        if place[0] == "pods" and pod["metadata"]["ownerReferences"][0]["uid"] not in jobs and not bereft:
            del server.objects[place]
    phase = server.take("finetunejobs", KEY.name).get("status", {}).get("phase", "")
    for uid, job in jobs.items():
        job.setdefault("status", {})
        attempt = int(job["metadata"]["labels"][names.LABEL_ATTEMPT])
        if not job["spec"].get("suspend") and f"news-{attempt}-0-x" not in server.names_of("pods"):
            for index in (0, 1):
                pod = pod_manifest(index, attempt)
                pod["metadata"] |= {"creationTimestamp": write_time(world.now)}
                pod["metadata"]["ownerReferences"][0]["uid"] = uid
                server.put("pods", pod)
        else:
            fate(world, job, phase)
    if phase == "Suspended" and not jobs:
        set_suspend(world, False)


async def live(world: World, fate: Fate) -> int:
    """Turn after turn until nothing is left to be done; how often the operator was killed. Lists stand for the watches."""
    killed = 0
    for _ in range(60):
        play(world, fate)
        await world.resync.list_active()
        try:
            again = await world.turn()
        except Killed:
            killed += 1
            world.start()
            continue
        if again is None and world.status["phase"] in ("Succeeded", "Failed"):
            return killed
        world.wait(2)
    raise AssertionError(f"it does not come to an end: {world.status}")


def begin(fate: Fate) -> World:
    world = World()
    labels = {names.LABEL_KUEUE_QUEUE: "gpus"} if fate is admit_evict_and_admit else {}
    world.server.put("finetunejobs", copy.deepcopy(job_manifest(labels=labels)))
    return world


# What became of its attempts, and how many failures and preemptions were counted.
FATES: dict[Fate, tuple[int, int, list[str]]] = {
    succeed: (0, 0, ["Completed"]),
    lose_the_first_gang: (1, 0, ["WorkerDied", "Completed"]),
    lose_a_machine_of_the_first_gang: (0, 1, ["NodeLost", "Completed"]),
    suspend_the_first_gang: (0, 0, ["Suspended", "Completed"]),
    admit_evict_and_admit: (0, 0, ["Completed"]),
}


def check(world: World, fate: Fate) -> None:
    status, (failures, preemptions, reasons) = world.status, FATES[fate]
    restarts = status["restarts"]
    assert (status["phase"], status["attempt"]) == ("Succeeded", len(reasons))
    assert (restarts["failures"], restarts["preemptions"], restarts["total"]) == (failures, preemptions, failures + preemptions)
    assert [item["reason"] for item in status["attempts"]] == reasons
    assert status["published"] == PUBLISHED
    assert [item["type"] for item in status["conditions"]] == ["Complete"]
    created = [request for request in world.server.done if request.startswith("POST jobs")]
    assert created == [f"POST jobs news-{number}" for number in range(1, len(reasons) + 1)]
    assert world.server.names_of("jobs") == [f"news-{len(reasons)}"]


async def writes_of(fate: Fate) -> list[str]:
    world = begin(fate)
    await live(world, fate)
    check(world, fate)
    return world.server.done


async def test_a_life_costs_a_write_for_each_child_and_each_phase() -> None:
    assert [request for request in await writes_of(succeed) if "events" not in request] == [
        "POST services news-gang",
        "POST jobs news-1",
        "POST configmaps news-1-11111111",
        "POST persistentvolumeclaims news-output",
        *["PATCH finetunejobs news"] * 3,
    ]


async def test_a_restart_costs_seven_more() -> None:
    writes = [request for request in await writes_of(lose_the_first_gang) if "events" not in request]
    assert writes[7:] == [
        "DELETE jobs news-1",
        "POST jobs news-2",
        "POST configmaps news-2-11111111",
        *["PATCH finetunejobs news"] * 3,
    ]


async def test_a_dead_machine_costs_its_pod_after_its_job() -> None:
    writes = [request for request in await writes_of(lose_a_machine_of_the_first_gang) if request.startswith("DELETE")]
    assert writes == ["DELETE jobs news-1", "DELETE pods news-1-1-x"]


@pytest.mark.parametrize("fate", FATES, ids=lambda fate: fate.__name__)
async def test_whoever_is_killed_after_a_write_is_succeeded_by_one_who_comes_to_the_same_end(fate: Fate) -> None:
    for write in range(1, len(await writes_of(fate)) + 1):
        world = begin(fate)
        world.server.kill_after = write
        assert await live(world, fate) == 1
        check(world, fate)


async def test_nothing_is_created_for_a_job_whose_children_somebody_deleted_after_its_end() -> None:
    world = begin(succeed)
    await live(world, succeed)
    before = len(world.server.done)
    del world.server.objects["jobs", "team", "news-1"]
    world.start()
    await live(world, succeed)
    assert (len(world.server.done), world.server.names_of("pods")) == (before, [])
