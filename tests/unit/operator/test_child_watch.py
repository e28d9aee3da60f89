"""Watches of Jobs and pods: they begin after a list of the unfinished ones, and continue through every kind of end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from finetune_api import names
from finetune_operator import child_watch
from finetune_operator.child_watch import ChildWatch
from finetune_operator.handlers import Handlers
from finetune_operator.health import Health
from finetune_operator.metrics import Metrics
from finetune_operator.observed import Key
from finetune_operator.parsing import read_child_job, read_job
from finetune_operator.queue import WorkQueue
from finetune_operator.resync import Resync
from finetune_operator.store import Store
from unit.operator.builders import KEY, NOW, child_manifest, job_manifest, pod_manifest, running, workload_manifest
from unit.operator.fake_server import Answer, FakeServer, Stream, refusal


class Harness:
    def __init__(self) -> None:
        self.server, self.store, self.queue, self.health = FakeServer(), Store(), WorkQueue[Key](), Health(lambda: 0.0)
        metrics = Metrics(CollectorRegistry(), now=NOW.timestamp)
        api = self.server.api()
        self.resync = Resync(api, self.store, self.queue, metrics, self.health, (), lambda: NOW)
        handlers = Handlers(self.store, self.queue, lambda: None)
        kinds = {"Job": handlers.job, "Pod": handlers.pod, "Workload": handlers.workload}
        self.watch = ChildWatch(api, self.resync, kinds, ())

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 - the server has no event for each request
                await asyncio.sleep(0)

    async def until_watched(self, plural: str, times: int) -> list[str]:
        """Return the versions from which that many watches began."""
        await self.until(lambda: len(self.versions(plural)) == times)
        return self.versions(plural)

    def versions(self, plural: str) -> list[str]:
        return [query["resourceVersion"] for name, query in self.server.watched if name == plural]

    def pods(self) -> list[str]:
        return [pod.name for pod in self.store.pods.by_job(KEY)]


def event(kind: str, manifest: dict[str, Any], version: int) -> dict[str, Any]:
    manifest["metadata"]["resourceVersion"] = str(version)
    return {"type": kind, "object": manifest}


@pytest_asyncio.fixture
async def harness(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Harness]:
    monkeypatch.setattr(child_watch, "_NEXT_SECONDS", 0.0)
    monkeypatch.setattr(child_watch, "_PAUSES", {0: 0.0, 410: 0.0, 500: 0.0})
    harness = Harness()
    harness.store.put_job(read_job(harness.server.put("finetunejobs", job_manifest(status=running()))))
    task = asyncio.create_task(harness.watch.run(harness.health))
    await asyncio.sleep(0)
    assert harness.server.watched == [], "it waits for the first list of FineTuneJobs"
    yield harness
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_children_that_ended_before_the_watch_are_never_read(harness: Harness) -> None:
    harness.server.put("pods", pod_manifest(0, phase="Succeeded"))
    harness.server.put("pods", pod_manifest(1))
    harness.server.put("jobs", child_manifest(status={"succeeded": 2}))
    harness.health.list_succeeded()
    assert await harness.until_watched("pods", 1) == [str(harness.server.version)]
    await harness.until_watched("jobs", 1)
    assert (harness.pods(), harness.store.children.by_job(KEY)) == (["news-1-1-x"], [])
    labels = {query["labelSelector"] for plural, query in harness.server.watched if plural != "workloads"}
    assert labels == {names.LABEL_JOB}
    assert all("fieldSelector" not in query for _, query in harness.server.watched), "the end of a child is an event"


async def test_events_change_the_store_and_queue_the_job(harness: Harness) -> None:
    end = {"terminated": {"exitCode": 0, "finishedAt": "2026-01-02T03:04:00Z"}}
    harness.server.watches["pods"] = [
        Stream(
            event("ADDED", pod_manifest(0), 200),
            event("MODIFIED", pod_manifest(0, state=end, phase="Succeeded"), 201),
            event("ADDED", pod_manifest(1), 202),
            event("DELETED", pod_manifest(1), 203),
            event("BOOKMARK", {"metadata": {}}, 300),
        )
    ]
    harness.health.list_succeeded()
    versions = await harness.until_watched("pods", 2)
    assert versions[1] == "300", "the next watch continues where this one ended"
    assert harness.pods() == ["news-1-0-x"]
    assert harness.store.pods.by_job(KEY)[0].terminated is not None
    assert harness.queue.next_due_seconds() is not None


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(OSError("reset"), id="the connection is lost"),
        pytest.param(b'{"type": "ADD', id="a line is cut off"),
    ],
)
async def test_a_watch_without_connection_continues_where_it_broke_off(harness: Harness, broken: Exception | bytes) -> None:
    stream = Stream(event("ADDED", pod_manifest(0), 200), broken)
    harness.server.watches["pods"] = [stream]
    harness.health.list_succeeded()
    assert (await harness.until_watched("pods", 2))[1] == "200"
    assert (harness.server.requests.count("GET pods"), stream.closed) == (1, True)


@pytest.mark.parametrize(
    "answer",
    [
        Stream({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}}),
        Stream({"type": "ERROR", "object": {"kind": "Status", "code": 500, "reason": "InternalError", "message": "etcd"}}),
        refusal(410, "Expired"),
    ],
)
async def test_a_watch_that_may_have_lost_events_lists_again(harness: Harness, answer: Answer | Stream) -> None:
    harness.server.watches["pods"] = [Stream(event("ADDED", pod_manifest(0), 90)), answer]
    harness.health.list_succeeded()
    await harness.until_watched("pods", 3)
    assert harness.server.requests.count("GET pods") == 2
    assert harness.pods() == []
    assert harness.store.requires_live_read == {KEY}, "the list lacks a pod that the store knows"
    assert harness.queue.take() == KEY


@pytest.mark.parametrize("code", [403, 404])
async def test_a_namespace_that_is_forbidden_does_not_end_the_watches(harness: Harness, code: int) -> None:
    child_watch._PAUSES[code] = 0.0
    harness.server.answers["GET pods"] = refusal(code, "Forbidden")
    harness.health.list_succeeded()
    await harness.until_watched("jobs", 1)
    await harness.until(lambda: harness.server.requests.count("GET pods") > 1)
    del harness.server.answers["GET pods"]
    await harness.until_watched("pods", 1)


async def test_what_kueue_says_reaches_a_queued_job_by_a_watch(harness: Harness) -> None:
    suspended = child_manifest(spec={"completions": 2, "suspend": True})
    harness.store.put_child(KEY, read_child_job(harness.server.put("jobs", suspended)))
    harness.server.put("workloads", workload_manifest(("QuotaReserved", "False", "Pending", "no quota")))
    harness.server.put("workloads", workload_manifest(("QuotaReserved", "False", "Other", "another job"), job_uid="job-9"))
    harness.server.watches["workloads"] = [
        Stream(event("MODIFIED", workload_manifest(("QuotaReserved", "False", "Pending", "still none")), 200))
    ]
    harness.health.list_succeeded()
    await harness.until_watched("workloads", 2)
    observation = harness.store.observation(KEY)
    assert observation is not None
    assert observation.queueing == ("Pending", "still none")
    assert harness.queue.next_due_seconds() is not None
    handlers = Handlers(harness.store, harness.queue, lambda: None)
    handlers.workload(event("DELETED", workload_manifest(), 201))
    assert (observation := harness.store.observation(KEY)) is not None
    assert observation.queueing is None


async def test_a_workload_that_says_the_same_again_queues_no_job(harness: Harness) -> None:
    handlers, again = Handlers(harness.store, harness.queue, lambda: None), ("QuotaReserved", "False", "Pending", "no quota")
    handlers.workload(event("ADDED", workload_manifest(again), 200))
    assert harness.queue.next_due_seconds() is not None
    harness.queue.add(KEY)
    harness.queue.done(harness.queue.take() or KEY)
    handlers.workload(event("MODIFIED", workload_manifest(again), 201))
    assert (harness.queue.take(), harness.queue.next_due_seconds()) == (None, None)
