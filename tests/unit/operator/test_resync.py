"""The full list heals what watches lost, and looks after jobs that have ended."""

import datetime
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from finetune_operator.cluster.api import ApiError
from finetune_operator.health import Health
from finetune_operator.metrics import Metrics
from finetune_operator.observed import Key, Observation, write_time
from finetune_operator.queue import WorkQueue
from finetune_operator.resync import Resync
from finetune_operator.store import Store
from unit.operator.builders import (
    KEY,
    NOW,
    UID,
    ago,
    build_child,
    build_pod,
    build_record,
    child_manifest,
    job_manifest,
    pod_manifest,
    running,
    spec_fields,
)
from unit.operator.fake_server import FakeServer, refusal

GONE = Key("team", "gone")


class World:
    """A cluster, and what is remembered of it. seconds: the queue's clock."""

    def __init__(self, *namespaces: str) -> None:
        self.server, self.store, self.seconds = FakeServer(), Store(), 0.0
        self.queue: WorkQueue[Key] = WorkQueue(clock=lambda: self.seconds)
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry, now=NOW.timestamp)
        health = Health(lambda: 0.0, lambda: self.seconds)
        self.resync = Resync(self.server.api(), self.store, self.queue, self.metrics, health, namespaces, lambda: NOW)

    def know(self, *keys: Key, **changes: Any) -> None:
        for key in keys:
            self.store.put_job(build_record(running(), key=key, **changes))

    def turns(self) -> list[Key]:
        taken = []
        while (key := self.queue.take()) is not None:
            taken.append(key)
            self.queue.done(key)
        return taken

    def phase(self, name: str, phase: str) -> float | None:
        labels = {"namespace": "team", "finetunejob": name, "phase": phase}
        return self.registry.get_sample_value("finetune_job_phase", labels)


@pytest.fixture
def world() -> World:
    return World()


def finished(name: str, seconds: float, ttl: int | None = None, phase: str = "Succeeded") -> Any:
    spec = spec_fields(**({"ttlSecondsAfterFinished": ttl} if ttl is not None else {}))
    status = running(phase=phase, running_since=None, completion_time=write_time(ago(seconds)))
    return job_manifest(spec, status, name=name, uid=f"uid-of-{name}")


async def test_every_job_that_is_not_finished_comes_to_the_queue(world: World) -> None:
    world.server.put("finetunejobs", job_manifest())
    world.server.put("finetunejobs", finished("old", 1000))
    await world.resync.list_active()
    assert world.turns() == [KEY]
    assert list(world.store.jobs) == [KEY]
    assert world.server.writes() == []


async def test_a_job_that_the_watch_lost_is_dropped_and_looked_at(world: World) -> None:
    world.know(GONE)
    await world.resync.list_active()
    assert (world.store.jobs, world.turns()) == ({}, [GONE])


async def test_a_job_that_is_newer_than_the_list_stays(world: World) -> None:
    world.know(GONE, version=world.server.version + 1)
    await world.resync.list_active()
    assert list(world.store.jobs) == [GONE]


async def test_children_that_the_watches_missed_are_taken_over(world: World) -> None:
    world.server.put("finetunejobs", job_manifest(status=running()))
    world.server.put("jobs", child_manifest())
    world.server.put("pods", pod_manifest(0))
    await world.resync.list_active()
    seen = world.store.observation(KEY)
    assert seen is not None
    assert ([child.name for child in seen.jobs], [pod.name for pod in seen.pods]) == (["news-1"], ["news-1-0-x"])
    assert world.store.doubtful == set()


async def test_a_job_of_which_the_list_lacks_something_is_doubted(world: World) -> None:
    world.server.put("finetunejobs", job_manifest(status=running()))
    world.know(KEY)
    world.store.put_observation(Observation(world.store.jobs[KEY], [build_child()], [build_pod(0)]), at=0)
    await world.resync.list_active()
    assert world.store.doubtful == {KEY}
    assert (world.store.children.of(KEY), world.store.pods.of(KEY)) == ([], [])
    assert world.turns() == [KEY]


async def test_children_of_nobody_are_left_alone(world: World) -> None:
    world.server.put("jobs", child_manifest())
    world.server.put("pods", pod_manifest(0))
    await world.resync.list_active()
    assert world.store.children.of(KEY) == []


async def test_only_the_namespaces_of_the_operator_are_listed() -> None:
    world = World("team", "lab")
    for namespace in ("team", "lab", "elsewhere"):
        world.server.put("finetunejobs", job_manifest(namespace=namespace, uid=f"{UID}-{namespace}"))
    await world.resync.list_active()
    assert sorted(key.namespace for key in world.turns()) == ["lab", "team"]


@pytest.mark.parametrize("code", [403, 404])
async def test_a_namespace_that_is_gone_keeps_no_other_waiting(code: int) -> None:
    world = World("gone", "team")
    world.server.put("finetunejobs", job_manifest())
    world.server.answers["GET finetunejobs in gone"] = refusal(code, "Forbidden")
    await world.resync.list_active()
    await world.resync.list_finished()
    assert ([key.namespace for key in world.turns()], world.resync.closed) == (["team"], {"gone"})
    del world.server.answers["GET finetunejobs in gone"]
    await world.resync.list_active()
    assert world.resync.closed == set()


async def test_an_operator_that_may_list_nothing_says_so() -> None:
    world = World("gone", "team")
    world.server.answers["GET finetunejobs"] = refusal(403, "Forbidden")
    with pytest.raises(ApiError):
        await world.resync.list_active()


@pytest.mark.parametrize(
    ("age", "ttl", "due"),
    [
        pytest.param(10, None, 0.0, id="pods may have to be stopped"),
        pytest.param(1000, None, None, id="nothing to do"),
        pytest.param(1000, 900, 0.0, id="overdue"),
        pytest.param(1000, 1200, 200.0, id="due before the next list"),
        pytest.param(1000, 1300, None, id="due after the next list"),
    ],
)
async def test_a_finished_job_gets_a_turn_only_when_it_is_due(
    world: World, age: float, ttl: int | None, due: float | None
) -> None:
    world.server.put("finetunejobs", finished("old", age, ttl))
    await world.resync.list_finished()
    if due:
        world.seconds = due - 1
        assert world.turns() == []
    if due is not None:
        world.seconds = due
        assert world.turns() == [Key("team", "old")]
    world.seconds = 10_000
    assert world.turns() == []


async def test_a_finished_job_is_told_of_until_it_is_gone(world: World) -> None:
    world.server.put("finetunejobs", finished("old", 1000, phase="Failed"))
    world.server.put("finetunejobs", job_manifest(status=running()))
    await world.resync.list_active()
    await world.resync.list_finished()
    assert (world.phase("old", "Failed"), world.phase("news", "Running")) == (1, 1)
    del world.server.objects["finetunejobs", "team", "old"]
    await world.resync.list_finished()
    assert (world.phase("old", "Failed"), world.phase("news", "Running")) == (None, 1)


async def test_a_finished_job_is_not_remembered(world: World) -> None:
    world.server.put("finetunejobs", finished("old", 10))
    await world.resync.list_finished()
    assert (world.store.jobs, world.store.looked, world.store.heard) == ({}, {}, {})


async def test_a_job_that_goes_on_creating_pods_after_its_end_is_found_too(world: World) -> None:
    status = running(phase="Failed", reason="PodRejected", running_since=None, completion_time=write_time(ago(600)))
    world.server.put("finetunejobs", job_manifest(status=status))
    world.server.put("jobs", child_manifest())
    await world.resync.list_active()
    assert world.turns() == [KEY]


async def test_jobs_that_have_ended_ask_for_no_turn(world: World) -> None:
    status = running(phase="Failed", reason="CodeError", running_since=None, completion_time=write_time(ago(600)))
    world.server.put("finetunejobs", job_manifest(status=status))
    world.server.put("jobs", child_manifest(status={"conditions": [{"type": "Failed", "status": "True"}]}))
    world.server.put("pods", pod_manifest(0, phase="Failed"))
    await world.resync.list_active()
    assert world.turns() == []


async def test_pods_that_run_on_after_their_job_ended_are_found_however_long_nobody_looked(world: World) -> None:
    ended = datetime.timedelta(minutes=10).total_seconds()
    status = running(phase="Failed", reason="DeadlineExceeded", running_since=None, completion_time=write_time(ago(ended)))
    world.server.put("finetunejobs", job_manifest(status=status))
    world.server.put("jobs", child_manifest())
    world.server.put("pods", pod_manifest(0))
    await world.resync.list_active()
    await world.resync.list_finished()
    assert world.turns() == [KEY]
