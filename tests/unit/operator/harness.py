"""An in-memory cluster with the part of the operator that reconciles."""

import datetime
from typing import Any

from prometheus_client import CollectorRegistry

from finetune_operator.cluster.events import EventRecorder
from finetune_operator.defaults import OperatorDefaults
from finetune_operator.health import Health
from finetune_operator.metrics import Metrics
from finetune_operator.observed import Key, Manifest
from finetune_operator.parsing import read_child_job, read_job, read_pod
from finetune_operator.poller import Poller
from finetune_operator.queue import WorkQueue
from finetune_operator.reconcile import Reconciler
from finetune_operator.resync import Resync
from finetune_operator.store import Store
from unit.operator.builders import IMAGE, KEY, NOW, child_manifest, job_manifest, pod_manifest, running
from unit.operator.fake_server import FakeServer


class Harness:
    """An in-memory cluster with the reconciler. now, seconds: its clocks. backlog: whether many other jobs wait in the queue."""

    def __init__(self) -> None:
        self.now, self.seconds, self.backlog = NOW, 1000.0, False
        self.server = FakeServer(lambda: self.now)
        self.start()

    def start(self) -> None:
        """Start a new operator process with an empty store."""
        self.store, self.api = Store(), self.server.api()
        self.registry = CollectorRegistry()
        self.enqueued: list[Key] = []
        self.poller = Poller(self.store, None, self.enqueued.append)  # type: ignore[arg-type]
        metrics = Metrics(self.registry, now=NOW.timestamp)
        defaults, health = OperatorDefaults(trainer_image=IMAGE), Health(lambda: 0.0)
        self.events = EventRecorder(self.api)
        self.reconciler = Reconciler(
            self.api,
            self.store,
            self.poller,
            self.events,
            metrics,
            defaults,
            lambda: self.now,
            lambda: self.seconds,
            lambda: self.backlog,
        )
        self.resync = Resync(self.api, self.store, WorkQueue(), metrics, health, (), lambda: self.now)

    def add_objects(self, job: Manifest, children: list[Manifest], pods: list[Manifest]) -> None:
        """Create the objects in the cluster and put them into the store, as the watches do."""
        self.store.put_job(read_job(self.server.put("finetunejobs", job)))
        self.store.last_refusal_check[KEY] = self.seconds
        for child in children:
            self.store.put_child(KEY, read_child_job(self.server.put("jobs", child)))
        for pod in pods:
            self.store.put_pod(KEY, read_pod(self.server.put("pods", pod)))

    def add_running_job(self) -> None:
        self.add_objects(job_manifest(status=running()), [child_manifest()], [pod_manifest(0), pod_manifest(1)])

    def advance(self, seconds: float) -> None:
        self.now += datetime.timedelta(seconds=seconds)
        self.seconds += seconds

    async def reconcile(self) -> float | None:
        """Reconcile once, and write the events that this recorded."""
        self.server.forget_requests()
        again = await self.reconciler.reconcile(KEY)
        await self.events.flush()
        return again

    @property
    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.server.take("finetunejobs", KEY.name)["status"]
        return status
