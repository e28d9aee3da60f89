"""kopf runs beside the operator: its end, for whatever reason, ends nothing else, and it is started again."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from finetune_operator import watch
from finetune_operator.handlers import Handlers, build_registry, build_settings
from finetune_operator.health import Health
from finetune_operator.metrics import Metrics
from finetune_operator.observed import Key
from finetune_operator.queue import WorkQueue
from finetune_operator.resync import Resync
from finetune_operator.store import Store
from finetune_operator.watch import keep_watching
from unit.operator.builders import KEY, NOW, job_manifest, running, spec_fields
from unit.operator.fake_server import FakeServer


class FakeKopf:
    """Takes the place of kopf.operator. failures: exceptions with which the next runs end; then it runs until it is stopped."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.runs: list[dict[str, Any]] = []
        self.started = threading.Semaphore(0)

    async def operator(self, **options: Any) -> None:
        self.runs.append({"thread": threading.get_ident(), **options})
        failure = self.failures.pop(0) if self.failures else None
        self.started.release()
        if failure is not None:
            # As kopf does when a watch breaks off: it cancels all tasks of its loop that it does not know.
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            raise failure
        await asyncio.to_thread(options["stop_flag"].wait)


class Harness:
    def __init__(self, namespaces: tuple[str, ...] = ()) -> None:
        self.store, self.queue, self.health = Store(), WorkQueue[Key](), Health(lambda: 0.0)
        self.events_seen = 0
        self.handlers = Handlers(self.store, self.queue, self.count)
        metrics = Metrics(CollectorRegistry(), now=NOW.timestamp)
        self.resync = Resync(FakeServer().api(), self.store, self.queue, metrics, self.health, namespaces, lambda: NOW)
        self.kopf = FakeKopf()
        self.namespaces = namespaces

    def count(self) -> None:
        self.events_seen += 1

    async def wait_for_run(self) -> None:
        assert await asyncio.to_thread(self.kopf.started.acquire, timeout=20)


@pytest_asyncio.fixture
async def harness(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Harness]:
    harness = Harness(("team-a", "team-b"))
    monkeypatch.setattr(watch.kopf, "operator", harness.kopf.operator)
    monkeypatch.setattr(watch, "_RETRY_SECONDS", 0.01)
    task = asyncio.create_task(keep_watching(harness.handlers, harness.health, harness.resync, harness.namespaces))
    await asyncio.sleep(0.05)
    assert harness.kopf.runs == [], "it waits for the first list"
    yield harness
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_watch_that_breaks_off_cancels_no_task_of_the_operator(harness: Harness) -> None:
    harness.kopf.failures = [RuntimeError("the watch broke off"), PermissionError("403")]
    harness.health.list_succeeded()
    # A replica creates these tasks when it becomes the leader, long after its watches began.
    leader = asyncio.create_task(asyncio.Event().wait())
    for _ in range(3):
        await harness.wait_for_run()
    await asyncio.sleep(0.05)
    assert not leader.done()
    leader.cancel()
    assert {run["thread"] for run in harness.kopf.runs}.isdisjoint({threading.get_ident()})


async def test_it_watches_other_namespaces_once_one_of_them_is_forbidden(harness: Harness) -> None:
    harness.health.list_succeeded()
    await harness.wait_for_run()
    harness.resync.forbidden_namespaces = {"team-b"}
    harness.resync.forbidden_namespaces_changed.set()
    await harness.wait_for_run()
    assert [(run["namespaces"], run["clusterwide"]) for run in harness.kopf.runs] == [
        (["team-a", "team-b"], False),
        (["team-a"], False),
    ]


async def test_events_are_handled_in_the_loop_of_the_operator() -> None:
    harness, loop = Harness(), asyncio.get_running_loop()
    registry = build_registry(harness.handlers, loop.call_soon_threadsafe)
    assert registry is not None
    event = {"type": "ADDED", "object": job_manifest(status=running())}
    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(harness.handlers.finetunejob, event))
    thread.start()
    await asyncio.to_thread(thread.join)
    await asyncio.sleep(0)
    assert harness.queue.take() == KEY
    assert (harness.events_seen, list(harness.store.jobs)) == (1, [KEY])


def test_a_list_never_holds_all_objects_in_one_response() -> None:
    assert build_settings().watching.chunk_size == 500


async def test_a_job_that_another_controller_runs_is_not_stored() -> None:
    harness = Harness()
    for name, manager in (("ours", "finetune.dev/operator"), ("theirs", "kueue.x-k8s.io/multikueue")):
        harness.handlers.finetunejob({"type": "ADDED", "object": job_manifest(spec=spec_fields(managedBy=manager), name=name)})
    assert [key.name for key in harness.store.jobs] == ["ours"]
