"""The full list corrects what watches missed, and enqueues finished jobs that need a reconcile."""

import asyncio
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


class Harness:
    """An in-memory cluster and the operator's store. seconds: the clock of the queue."""

    def __init__(self, *namespaces: str) -> None:
        self.server, self.store, self.seconds = FakeServer(), Store(), 0.0
        self.queue: WorkQueue[Key] = WorkQueue(clock=lambda: self.seconds)
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry, now=NOW.timestamp)
        self.health = Health(lambda: 0.0, lambda: self.seconds)
        self.resync = Resync(self.server.api(), self.store, self.queue, self.metrics, self.health, namespaces, lambda: NOW)

    def store_jobs(self, *keys: Key, **changes: Any) -> None:
        for key in keys:
            self.store.put_job(build_record(running(), key=key, **changes))

    def drain_queue(self) -> list[Key]:
        taken = []
        while (key := self.queue.take()) is not None:
            taken.append(key)
            self.queue.done(key)
        return taken

    def phase(self, name: str, phase: str) -> float | None:
        labels = {"namespace": "team", "finetunejob": name, "phase": phase}
        return self.registry.get_sample_value("finetune_job_phase", labels)


@pytest.fixture
def harness() -> Harness:
    return Harness()


def finished(name: str, seconds: float, ttl: int | None = None, phase: str = "Succeeded") -> Any:
    spec = spec_fields(**({"ttlSecondsAfterFinished": ttl} if ttl is not None else {}))
    status = running(phase=phase, running_since=None, completion_time=write_time(ago(seconds)))
    return job_manifest(spec, status, name=name, uid=f"uid-of-{name}")


async def test_every_job_that_is_not_finished_is_enqueued(harness: Harness) -> None:
    harness.server.put("finetunejobs", job_manifest())
    harness.server.put("finetunejobs", finished("old", 1000))
    await harness.resync.list_active()
    assert harness.drain_queue() == [KEY]
    assert list(harness.store.jobs) == [KEY]
    assert harness.server.writes() == []


async def test_a_job_whose_deletion_the_watch_missed_is_dropped_and_enqueued(harness: Harness) -> None:
    harness.store_jobs(GONE)
    await harness.resync.list_active()
    assert (harness.store.jobs, harness.drain_queue()) == ({}, [GONE])


async def test_a_job_that_is_newer_than_the_list_stays(harness: Harness) -> None:
    harness.store_jobs(GONE, version=harness.server.version + 1)
    await harness.resync.list_active()
    assert list(harness.store.jobs) == [GONE]


async def test_children_that_the_watches_missed_are_stored(harness: Harness) -> None:
    harness.server.put("finetunejobs", job_manifest(status=running()))
    harness.server.put("jobs", child_manifest())
    harness.server.put("pods", pod_manifest(0))
    await harness.resync.list_active()
    observation = harness.store.observation(KEY)
    assert observation is not None
    assert ([child.name for child in observation.jobs], [pod.name for pod in observation.pods]) == (["news-1"], ["news-1-0-x"])
    assert harness.store.requires_live_read == set()


async def test_a_job_with_a_child_missing_in_the_list_requires_a_live_read(harness: Harness) -> None:
    harness.server.put("finetunejobs", job_manifest(status=running()))
    harness.store_jobs(KEY)
    harness.store.put_observation(Observation(harness.store.jobs[KEY], [build_child()], [build_pod(0)]), read_at=0)
    await harness.resync.list_active()
    assert harness.store.requires_live_read == {KEY}
    assert (harness.store.children.by_job(KEY), harness.store.pods.by_job(KEY)) == ([], [])
    assert harness.drain_queue() == [KEY]


async def test_children_of_an_unknown_job_are_ignored(harness: Harness) -> None:
    harness.server.put("jobs", child_manifest())
    harness.server.put("pods", pod_manifest(0))
    await harness.resync.list_active()
    assert harness.store.children.by_job(KEY) == []


async def test_only_the_namespaces_of_the_operator_are_listed() -> None:
    harness = Harness("team", "lab")
    for namespace in ("team", "lab", "elsewhere"):
        harness.server.put("finetunejobs", job_manifest(namespace=namespace, uid=f"{UID}-{namespace}"))
    await harness.resync.list_active()
    assert sorted(key.namespace for key in harness.drain_queue()) == ["lab", "team"]


@pytest.mark.parametrize("code", [403, 404])
async def test_a_missing_namespace_does_not_delay_the_others(code: int) -> None:
    harness = Harness("gone", "team")
    harness.server.put("finetunejobs", job_manifest())
    harness.server.answers["GET finetunejobs in gone"] = refusal(code, "Forbidden")
    await harness.resync.list_active()
    await harness.resync.list_finished()
    assert ([key.namespace for key in harness.drain_queue()], harness.resync.forbidden_namespaces) == (["team"], {"gone"})
    del harness.server.answers["GET finetunejobs in gone"]
    await harness.resync.list_active()
    assert harness.resync.forbidden_namespaces == set()


async def test_an_operator_that_may_list_no_namespace_raises_an_error() -> None:
    harness = Harness("gone", "team")
    harness.server.answers["GET finetunejobs"] = refusal(403, "Forbidden")
    with pytest.raises(ApiError):
        await harness.resync.list_active()


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
async def test_a_finished_job_is_enqueued_only_when_it_is_due(
    harness: Harness, age: float, ttl: int | None, due: float | None
) -> None:
    harness.server.put("finetunejobs", finished("old", age, ttl))
    await harness.resync.list_finished()
    if due:
        harness.seconds = due - 1
        assert harness.drain_queue() == []
    if due is not None:
        harness.seconds = due
        assert harness.drain_queue() == [Key("team", "old")]
    harness.seconds = 10_000
    assert harness.drain_queue() == []


async def test_a_finished_job_has_metrics_until_it_is_deleted(harness: Harness) -> None:
    harness.server.put("finetunejobs", finished("old", 1000, phase="Failed"))
    harness.server.put("finetunejobs", job_manifest(status=running()))
    await harness.resync.list_active()
    await harness.resync.list_finished()
    assert (harness.phase("old", "Failed"), harness.phase("news", "Running")) == (1, 1)
    del harness.server.objects["finetunejobs", "team", "old"]
    await harness.resync.list_finished()
    assert (harness.phase("old", "Failed"), harness.phase("news", "Running")) == (None, 1)


async def test_a_finished_job_is_not_stored(harness: Harness) -> None:
    harness.server.put("finetunejobs", finished("old", 10))
    await harness.resync.list_finished()
    assert (harness.store.jobs, harness.store.last_refusal_check, harness.store.last_reports) == ({}, {}, {})


async def test_a_finished_job_that_still_creates_pods_is_enqueued(harness: Harness) -> None:
    status = running(phase="Failed", reason="PodRejected", running_since=None, completion_time=write_time(ago(600)))
    harness.server.put("finetunejobs", job_manifest(status=status))
    harness.server.put("jobs", child_manifest())
    await harness.resync.list_active()
    assert harness.drain_queue() == [KEY]


async def test_a_finished_job_whose_pods_have_ended_is_not_enqueued(harness: Harness) -> None:
    status = running(phase="Failed", reason="CodeError", running_since=None, completion_time=write_time(ago(600)))
    harness.server.put("finetunejobs", job_manifest(status=status))
    harness.server.put("jobs", child_manifest(status={"conditions": [{"type": "Failed", "status": "True"}]}))
    harness.server.put("pods", pod_manifest(0, phase="Failed"))
    await harness.resync.list_active()
    assert harness.drain_queue() == []


async def test_a_finished_job_whose_pods_still_run_is_enqueued_even_if_it_ended_long_ago(harness: Harness) -> None:
    ended = datetime.timedelta(minutes=10).total_seconds()
    status = running(phase="Failed", reason="DeadlineExceeded", running_since=None, completion_time=write_time(ago(ended)))
    harness.server.put("finetunejobs", job_manifest(status=status))
    harness.server.put("jobs", child_manifest())
    harness.server.put("pods", pod_manifest(0))
    await harness.resync.list_active()
    await harness.resync.list_finished()
    assert harness.drain_queue() == [KEY]


async def test_a_name_counts_as_used_until_a_list_shows_no_children_of_the_earlier_job(harness: Harness) -> None:
    gone, stopping, new = Key("team", "gone"), KEY, Key("team", "dropped during the list")
    harness.store.used_names |= {gone, stopping}
    harness.server.put("pods", pod_manifest(0))
    await harness.resync.list_active()
    assert harness.store.used_names == {stopping}
    harness.store_jobs(new)
    del harness.server.objects["pods", "team", "news-1-0-x"]
    await harness.resync.list_active()
    assert harness.store.used_names == {new}, "the list did not begin after that job was gone"
    await harness.resync.list_active()
    assert harness.store.used_names == set()


async def test_only_a_list_that_began_as_the_leader_counts() -> None:
    leading = False
    harness = Harness()
    harness.resync._is_leading = lambda: leading
    await harness.resync.list_active()
    assert not harness.store.listed_as_leader
    leading = True
    await harness.resync.list_active()
    assert harness.store.listed_as_leader


async def test_a_process_that_becomes_the_leader_lists_at_once() -> None:
    leading, harness = False, Harness()
    harness.resync._is_leading = lambda: leading
    listing = asyncio.create_task(harness.resync.run())
    await harness.health.wait_ready()
    assert not harness.store.listed_as_leader
    leading = True
    harness.resync.became_leader()
    requests = len(harness.server.requests)
    for _ in range(100):
        await asyncio.sleep(0)
    assert (len(harness.server.requests) > requests, harness.store.listed_as_leader) == (True, True)
    listing.cancel()


async def test_an_earlier_version_of_kueue_is_listed_if_there_is_no_other(harness: Harness) -> None:
    harness.server.answers["GET workloads"] = refusal(404, "NotFound")
    with pytest.raises(ApiError):
        await harness.resync.list_children("Workload", None)
    assert harness.resync.watch_query("Workload") == ("WorkloadV1beta1", "kueue.x-k8s.io/job-uid")
    del harness.server.answers["GET workloads"]
    await harness.resync.list_children("Workload", None)
    assert harness.resync.watch_query("Workload")[0] == "Workload"


async def test_the_operator_notices_when_the_api_server_begins_or_ceases_to_serve_pod_groups() -> None:
    harness = Harness()
    harness.server.served = [{"name": "workloads"}]
    await harness.resync.list_active()
    assert not harness.store.scheduling_groups
    harness.server.served = [{"name": "workloads"}, {"name": "podgroups"}]
    await harness.resync.list_active()
    assert harness.store.scheduling_groups
    harness.server.answers["GET "] = refusal(503, "ServiceUnavailable")
    await harness.resync.list_active()
    assert harness.store.scheduling_groups, "no answer says nothing"
    harness.server.answers["GET "] = refusal(404, "NotFound")
    await harness.resync.list_active()
    assert not harness.store.scheduling_groups


@pytest.mark.parametrize("phase", [None, "Running", "Succeeded"])
async def test_a_job_that_another_controller_runs_is_left_alone(phase: Any) -> None:
    harness = Harness()
    status = running(phase=phase, completion_time=write_time(ago(9000))) if phase else None
    spec = spec_fields(managedBy="kueue.x-k8s.io/multikueue", ttlSecondsAfterFinished=1)
    harness.server.put("finetunejobs", job_manifest(spec=spec, status=status))
    await harness.resync.list_active()
    await harness.resync.list_finished()
    assert (harness.drain_queue(), list(harness.store.jobs), harness.phase("news", phase or "Pending")) == ([], [], None)
