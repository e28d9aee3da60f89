"""A cluster in memory, and the part of the operator that takes turns before it."""

import datetime
from typing import Any

from prometheus_client import CollectorRegistry

from finetune_operator.cluster.events import Events
from finetune_operator.health import Health
from finetune_operator.metrics import Metrics
from finetune_operator.observed import Key, Manifest
from finetune_operator.parsing import read_child_job, read_job, read_pod
from finetune_operator.poller import Poller
from finetune_operator.queue import WorkQueue
from finetune_operator.reconcile import Reconciler
from finetune_operator.resync import Resync
from finetune_operator.site import Site
from finetune_operator.store import Store
from unit.operator.builders import IMAGE, KEY, NOW, child_manifest, job_manifest, pod_manifest, running
from unit.operator.fake_server import FakeServer


class World:
    """A cluster and the operator's part that takes turns. now, seconds: its clocks. rush: many other jobs wait for a turn."""

    def __init__(self) -> None:
        self.now, self.seconds, self.rush = NOW, 1000.0, False
        self.server = FakeServer(lambda: self.now)
        self.start()

    def start(self) -> None:
        """Begin as a process that remembers nothing."""
        self.store, self.api = Store(), self.server.api()
        self.registry = CollectorRegistry()
        self.asked: list[Key] = []
        self.poller = Poller(self.store, None, self.asked.append, lambda: self.seconds)  # type: ignore[arg-type]
        metrics = Metrics(self.registry, now=NOW.timestamp)
        site, health = Site(trainer_image=IMAGE), Health(lambda: 0.0)
        self.events = Events(self.api)
        self.reconciler = Reconciler(
            self.api,
            self.store,
            self.poller,
            self.events,
            metrics,
            site,
            lambda: self.now,
            lambda: self.seconds,
            lambda: self.rush,
        )
        self.resync = Resync(self.api, self.store, WorkQueue(), metrics, health, (), lambda: self.now)

    def watched(self, job: Manifest, children: list[Manifest], pods: list[Manifest]) -> None:
        """Put all of it into the cluster, and let the watches tell of it."""
        self.store.put_job(read_job(self.server.put("finetunejobs", job)))
        self.store.looked[KEY] = self.seconds
        for child in children:
            self.store.put_child(KEY, read_child_job(self.server.put("jobs", child)))
        for pod in pods:
            self.store.put_pod(KEY, read_pod(self.server.put("pods", pod)))

    def runs(self) -> None:
        self.watched(job_manifest(status=running()), [child_manifest()], [pod_manifest(0), pod_manifest(1)])

    def wait(self, seconds: float) -> None:
        self.now += datetime.timedelta(seconds=seconds)
        self.seconds += seconds

    async def turn(self) -> float | None:
        """One turn, and what it has to tell."""
        self.server.forget_requests()
        again = await self.reconciler.reconcile(KEY)
        await self.events.finish()
        return again

    @property
    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.server.take("finetunejobs", KEY.name)["status"]
        return status
