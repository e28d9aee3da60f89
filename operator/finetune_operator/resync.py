"""The full list: once a minute what the watches told is compared with what there is, and every job comes to the queue."""

import asyncio
import datetime
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence

from finetune_api import names
from finetune_api.status import FINAL_PHASES
from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.health import Health
from finetune_operator.metrics import Metrics
from finetune_operator.observed import ChildJob, Key, Manifest, PodState
from finetune_operator.parsing import read_child_job, read_child_key, read_job, read_key, read_pod
from finetune_operator.policy.ending import FINISHED_LIST_SECONDS, seconds_to_next_look
from finetune_operator.queue import WorkQueue
from finetune_operator.store import C, Children, Store

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 60.0
# A list that failed is tried again so soon.
_RETRY_SECONDS = 5.0
ACTIVE = ",".join(f"status.phase!={phase}" for phase in sorted(FINAL_PHASES))
# What these leave out is gone or has ended: a job of which something is missing in the list is looked at afresh.
_UNFINISHED = {"Job": "status.successful=0", "Pod": "status.phase!=Succeeded,status.phase!=Failed"}


class Resync:
    """Lists for ever. namespaces: to be listed; none means the whole cluster. now: the time of day, in UTC.

    closed: namespaces that could not be listed last time, as they are gone or not to be read.
    """

    def __init__(
        self,
        api: Api,
        store: Store,
        queue: WorkQueue[Key],
        metrics: Metrics,
        health: Health,
        namespaces: Sequence[str],
        now: Callable[[], datetime.datetime],
    ) -> None:
        self._api = api
        self._store = store
        self._queue = queue
        self._metrics = metrics
        self._health = health
        self._namespaces: Sequence[str | None] = namespaces or (None,)
        self._now = now
        self.closed: set[str | None] = set()
        self.closed_changed = asyncio.Event()

    async def run(self) -> None:
        """List until cancelled. That the API server is away is no reason to end: it will come back."""
        await asyncio.gather(
            self._repeat("unfinished FineTuneJobs", self.list_active, INTERVAL_SECONDS, vital=True),
            self._repeat("finished FineTuneJobs", self.list_finished, FINISHED_LIST_SECONDS, vital=False),
        )

    async def _repeat(self, what: str, list_once: Callable[[], Awaitable[None]], interval_seconds: float, vital: bool) -> None:
        while True:
            try:
                await list_once()
            except ApiError as error:
                logger.warning("the list of %s failed: %s", what, error)
                if vital:
                    self._health.list_failed()
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                if vital:
                    self._health.list_done()
                await asyncio.sleep(interval_seconds)

    async def list_active(self) -> None:
        """Put every job that is not finished into the queue, and correct what the watches missed."""
        await self._in_each_namespace(self._list_active_in)
        for key in self._store.jobs:
            self._queue.add(key)
        self._metrics.watch_last_event.set(self._now().timestamp())

    async def _in_each_namespace(self, list_in: Callable[[str | None], Awaitable[None]]) -> None:
        """One of several that is gone, or lost its Role, must not keep the jobs of the others waiting."""
        closed: dict[str | None, ApiError] = {}
        for namespace in self._namespaces:
            try:
                await list_in(namespace)
            except ApiError as error:
                if error.code not in (403, 404):
                    raise
                closed[namespace] = error
        if len(closed) == len(self._namespaces):
            raise next(iter(closed.values()))
        for namespace, refusal in closed.items():
            logger.warning("namespace %s can't be listed, and its jobs wait: %s", namespace, refusal)
        if self.closed != set(closed):
            self.closed = set(closed)
            self.closed_changed.set()

    async def _list_active_in(self, namespace: str | None) -> None:
        listed, version = set(), 0
        async for page in self._api.list_pages(names.KIND, namespace, fieldSelector=ACTIVE):
            version = _version(page)
            for job in map(read_job, page["items"]):
                listed.add(job.key)
                self._store.put_job(job)
                self._metrics.remember(job)
        for key, known in list(self._store.jobs.items()):
            if key not in listed and namespace in (None, key.namespace) and known.version <= version:
                self._store.drop_job(key, version)
                self._queue.add(key)
        await self._correct("Job", self._store.children, read_child_job, namespace)
        await self._correct("Pod", self._store.pods, read_pod, namespace)

    async def _correct(self, kind: str, known: Children[C], read: Callable[[Manifest], C], namespace: str | None) -> None:
        listed: dict[Key, list[C]] = defaultdict(list)
        version, query = 0, {"labelSelector": names.LABEL_JOB, "fieldSelector": _UNFINISHED[kind]}
        async for page in self._api.list_pages(kind, namespace, **query):
            version = _version(page)
            for item in page["items"]:
                key = read_child_key(item)
                if key in self._store.jobs:
                    listed[key].append(read(item))
                elif key is not None and _goes_on(read(item)):
                    self._queue.add(key)  # of a job that has ended: perhaps this should have, too
        self._store.doubtful |= known.replace(listed, version, namespace)

    async def list_finished(self) -> None:
        """Look which finished jobs still want something: to be deleted, or their last pods to be stopped."""
        finished: set[Key] = set()

        async def list_in(namespace: str | None) -> None:
            for phase in sorted(FINAL_PHASES):
                async for page in self._api.list_pages(names.KIND, namespace, fieldSelector=f"status.phase={phase}"):
                    for manifest in page["items"]:
                        finished.add(read_key(manifest))
                        self._look_at_finished(manifest)
                    await asyncio.sleep(0)  # a page takes a while to read; turns come in between

        await self._in_each_namespace(list_in)
        self._metrics.keep_only(finished | self._store.jobs.keys())

    def _look_at_finished(self, manifest: Manifest) -> None:
        self._metrics.remember_finished(manifest)
        seconds = seconds_to_next_look(manifest, self._now())
        if seconds is not None and seconds <= 0:
            self._queue.add(read_key(manifest))
        elif seconds is not None and seconds < FINISHED_LIST_SECONDS:
            self._queue.add_after(read_key(manifest), seconds)


def _version(page: Manifest) -> int:
    """The resourceVersion at which a list was true."""
    return int(page["metadata"].get("resourceVersion") or 0)


def _goes_on(child: ChildJob | PodState) -> bool:
    return isinstance(child, PodState) or not (child.failed is not None or child.ending or child.complete or child.deleting)
