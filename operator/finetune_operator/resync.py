"""Lists all objects once a minute, corrects the store, and puts every unfinished job into the queue."""

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
from finetune_operator.policy.cleanup import FINISHED_LIST_SECONDS, seconds_to_next_reconcile
from finetune_operator.queue import WorkQueue
from finetune_operator.store import C, Children, Store

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 60.0
# Delay before a failed list is retried.
_RETRY_SECONDS = 5.0
ACTIVE_SELECTOR = ",".join(f"status.phase!={phase}" for phase in sorted(FINAL_PHASES))
# These omit children that have ended. If a child in the store is not in the list, the next reconcile reads its job live.
_UNFINISHED_SELECTORS = {"Job": "status.successful=0", "Pod": "status.phase!=Succeeded,status.phase!=Failed"}


class Resync:
    """Lists all objects repeatedly. namespaces: those to list; if empty, the whole cluster. now: the current time in UTC.

    forbidden_namespaces: namespaces that could not be listed last time, because they are gone or the operator may not read them.
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
        self.forbidden_namespaces: set[str | None] = set()
        self.forbidden_namespaces_changed = asyncio.Event()

    async def run(self) -> None:
        """List until cancelled. Continue if the API server is down."""
        await asyncio.gather(
            self._repeat("unfinished FineTuneJobs", self.list_active, INTERVAL_SECONDS, affects_health=True),
            self._repeat("finished FineTuneJobs", self.list_finished, FINISHED_LIST_SECONDS, affects_health=False),
        )

    async def _repeat(
        self, description: str, list_once: Callable[[], Awaitable[None]], interval_seconds: float, affects_health: bool
    ) -> None:
        while True:
            try:
                await list_once()
            except ApiError as error:
                logger.warning("the list of %s failed: %s", description, error)
                if affects_health:
                    self._health.list_failed()
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                if affects_health:
                    self._health.list_succeeded()
                await asyncio.sleep(interval_seconds)

    async def list_active(self) -> None:
        """Put every job that is not finished into the queue, and correct what the watches missed."""
        await self._in_each_namespace(self._list_active_in)
        for key in self._store.jobs:
            self._queue.add(key)
        self._metrics.watch_last_event.set(self._now().timestamp())

    async def _in_each_namespace(self, list_in: Callable[[str | None], Awaitable[None]]) -> None:
        """List each namespace. A namespace that is gone or forbidden must not delay the jobs of the others."""
        forbidden_namespaces: dict[str | None, ApiError] = {}
        for namespace in self._namespaces:
            try:
                await list_in(namespace)
            except ApiError as error:
                if error.code not in (403, 404):
                    raise
                forbidden_namespaces[namespace] = error
        if len(forbidden_namespaces) == len(self._namespaces):
            raise next(iter(forbidden_namespaces.values()))
        for namespace, reason in forbidden_namespaces.items():
            logger.warning("namespace %s can't be listed, and its jobs wait: %s", namespace, reason)
        if self.forbidden_namespaces != set(forbidden_namespaces):
            self.forbidden_namespaces = set(forbidden_namespaces)
            self.forbidden_namespaces_changed.set()

    async def _list_active_in(self, namespace: str | None) -> None:
        listed, version = set(), 0
        async for page in self._api.list_pages(names.KIND, namespace, fieldSelector=ACTIVE_SELECTOR):
            version = _version(page)
            for job in map(read_job, page["items"]):
                listed.add(job.key)
                self._store.put_job(job)
                self._metrics.track(job)
        for key, known in list(self._store.jobs.items()):
            if key not in listed and namespace in (None, key.namespace) and known.version <= version:
                self._store.drop_job(key, version)
                self._queue.add(key)
        for kind in _UNFINISHED_SELECTORS:
            await self.list_children(kind, namespace)

    async def list_children(self, kind: str, namespace: str | None) -> int:
        """Correct what the store knows of the children of one kind. Return the resourceVersion of the list."""
        if kind == "Job":
            return await self._list_children(kind, self._store.children, read_child_job, namespace)
        return await self._list_children(kind, self._store.pods, read_pod, namespace)

    async def _list_children(self, kind: str, known: Children[C], read: Callable[[Manifest], C], namespace: str | None) -> int:
        listed: dict[Key, list[C]] = defaultdict(list)
        version, query = 0, {"labelSelector": names.LABEL_JOB, "fieldSelector": _UNFINISHED_SELECTORS[kind]}
        async for page in self._api.list_pages(kind, namespace, **query):
            version = _version(page)
            for item in page["items"]:
                key = read_child_key(item)
                if key in self._store.jobs:
                    listed[key].append(read(item))
                elif key is not None and _is_active(read(item)):
                    self._queue.add(key)  # its job is finished, so this child may have to be stopped
        for key in known.replace(listed, version, namespace):
            self._store.requires_live_read.add(key)
            self._queue.add(key)
        return version

    async def list_finished(self) -> None:
        """Queue finished jobs that need a reconcile, because their TTL is over or because pods may still run."""
        finished: set[Key] = set()

        async def list_in(namespace: str | None) -> None:
            for phase in sorted(FINAL_PHASES):
                async for page in self._api.list_pages(names.KIND, namespace, fieldSelector=f"status.phase={phase}"):
                    for manifest in page["items"]:
                        finished.add(read_key(manifest))
                        self._enqueue_finished(manifest)
                    await asyncio.sleep(0)  # parsing a page takes a while; let reconciles run in between

        await self._in_each_namespace(list_in)
        self._metrics.keep_only(finished | self._store.jobs.keys())

    def _enqueue_finished(self, manifest: Manifest) -> None:
        self._metrics.track_finished(manifest)
        seconds = seconds_to_next_reconcile(manifest, self._now())
        if seconds is not None and seconds <= 0:
            self._queue.add(read_key(manifest))
        elif seconds is not None and seconds < FINISHED_LIST_SECONDS:
            self._queue.add_after(read_key(manifest), seconds)


def _version(page: Manifest) -> int:
    """Return the resourceVersion of a list."""
    return int(page["metadata"].get("resourceVersion") or 0)


def _is_active(child: ChildJob | PodState) -> bool:
    return isinstance(child, PodState) or not (child.failed is not None or child.failing or child.complete or child.deleting)
