"""Lists all objects once a minute, corrects the store, and puts every unfinished job into the queue."""

import asyncio
import contextlib
import dataclasses
import datetime
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic

from finetune_api import names
from finetune_api.status import FINAL_PHASES
from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.health import Health
from finetune_operator.metrics import Metrics
from finetune_operator.observed import ChildJob, Key, Manifest, PodState
from finetune_operator.parsing import (
    is_managed_elsewhere,
    read_child_job,
    read_child_key,
    read_key,
    read_pod,
    read_workload,
    read_workload_key,
)
from finetune_operator.policy.cleanup import FINISHED_LIST_SECONDS, seconds_to_next_reconcile
from finetune_operator.queue import WorkQueue
from finetune_operator.store import C, Children, Store

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 60.0
# Delay before a failed list is retried.
_RETRY_SECONDS = 5.0
ACTIVE_SELECTOR = ",".join(f"status.phase!={phase}" for phase in sorted(FINAL_PHASES))
# Kueue serves its Workloads in one of these versions, or in both.
_WORKLOAD_VERSIONS = ("Workload", "WorkloadV1beta1")


@dataclasses.dataclass(frozen=True)
class _ChildKind(Generic[C]):
    """How to list one kind of children, and where they are stored.

    label_selector: of lists and watches. unfinished: a field selector of lists, which omits children that have ended. If a child
    in the store is not in the list, the next reconcile reads its job live. read_key: returns the FineTuneJob.
    """

    label_selector: str
    unfinished: str
    read_key: Callable[[Manifest], Key | None]
    read: Callable[[Manifest], C]
    known: Children[C]


class Resync:
    """Lists all objects repeatedly. namespaces: those to list; if empty, the whole cluster. now: the current time in UTC.

    is_leading: whether this process may write. forbidden_namespaces: namespaces that could not be listed last time, because they
    are gone or the operator may not read them.
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
        is_leading: Callable[[], bool] = lambda: True,
    ) -> None:
        self._api = api
        self._store = store
        self._queue = queue
        self._metrics = metrics
        self._health = health
        self._namespaces: Sequence[str | None] = namespaces or (None,)
        self._now = now
        self._is_leading = is_leading
        self._workload_version = _WORKLOAD_VERSIONS[0]
        unfinished_pods = "status.phase!=Succeeded,status.phase!=Failed"
        self._kinds: dict[str, _ChildKind[Any]] = {
            "Job": _ChildKind(names.LABEL_JOB, "status.successful=0", read_child_key, read_child_job, store.children),
            "Pod": _ChildKind(names.LABEL_JOB, unfinished_pods, read_child_key, read_pod, store.pods),
            "Workload": _ChildKind("kueue.x-k8s.io/job-uid", "", read_workload_key, read_workload, store.workloads),
        }
        self._began_as_leader = False
        self._became_leader = asyncio.Event()
        self.forbidden_namespaces: set[str | None] = set()
        self.forbidden_namespaces_changed = asyncio.Event()

    def became_leader(self) -> None:
        """List the unfinished jobs at once if the last list began earlier. Until there is a list, new jobs need live reads."""
        if not self._began_as_leader:
            self._became_leader.set()

    async def run(self) -> None:
        """List until cancelled. Continue if the API server is down."""
        await asyncio.gather(
            self._repeat("unfinished FineTuneJobs", self.list_active, INTERVAL_SECONDS, self._became_leader, affects_health=True),
            self._repeat(
                "finished FineTuneJobs", self.list_finished, FINISHED_LIST_SECONDS, asyncio.Event(), affects_health=False
            ),
        )

    async def _repeat(
        self,
        description: str,
        list_once: Callable[[], Awaitable[None]],
        interval_seconds: float,
        earlier: asyncio.Event,
        affects_health: bool,
    ) -> None:
        """List at this interval, and earlier if the event is set."""
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
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(interval_seconds):
                        await earlier.wait()
                earlier.clear()

    async def list_active(self) -> None:
        """Put every job that is not finished into the queue, and correct what the watches missed."""
        self._began_as_leader = began_as_leader = self._is_leading()
        await self.discover()
        await self._in_each_namespace(self._list_active_in)
        self._store.listed_as_leader = began_as_leader
        for key in self._store.jobs:
            self._queue.add(key)
        self._metrics.watch_last_event.set(self._now().timestamp())

    async def discover(self) -> None:
        """Ask what the API server serves. That changes when somebody upgrades it, or turns a feature gate on or off.

        If it does not answer, its last answer holds.
        """
        try:
            self._store.scheduling_groups = await self._api.has_pod_groups()
        except ApiError as error:
            logger.info("the API server does not say whether it has PodGroups: %s", error)

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
        listed, version, used_names = set(), 0, set(self._store.used_names)
        async for page in self._api.list_pages(names.KIND, namespace, fieldSelector=ACTIVE_SELECTOR):
            version = _version(page)
            for job in (self._store.read_job(item) for item in page["items"] if not is_managed_elsewhere(item)):
                listed.add(job.key)
                self._store.put_job(job)
                self._metrics.track(job)
        for key, known in list(self._store.jobs.items()):
            if key not in listed and namespace in (None, key.namespace) and known.version <= version:
                self._store.drop_job(key, version)
                self._queue.add(key)
        with_children = {key for kind in ("Job", "Pod") for key in (await self.list_children(kind, namespace))[1]}
        self._store.used_names -= {key for key in used_names - with_children if namespace in (None, key.namespace)}

    def watch_query(self, kind: str) -> tuple[str, str]:
        """Return the kind in the version that is served, and the label selector."""
        return self._workload_version if kind == "Workload" else kind, self._kinds[kind].label_selector

    async def list_children(self, kind: str, namespace: str | None) -> tuple[int, set[Key]]:
        """Correct what the store knows of one kind. Return the resourceVersion of the list, and the jobs with such children."""
        if kind != "Workload":
            return await self._list_children(kind, self._kinds[kind], namespace)
        try:
            self._workload_version = _WORKLOAD_VERSIONS[0]
            return await self._list_children(self._workload_version, self._kinds[kind], namespace)
        except ApiError as error:
            if error.code != 404:
                raise
        self._workload_version = _WORKLOAD_VERSIONS[1]
        return await self._list_children(self._workload_version, self._kinds[kind], namespace)

    async def _list_children(self, kind: str, child_kind: _ChildKind[Any], namespace: str | None) -> tuple[int, set[Key]]:
        listed: dict[Key, list[Any]] = defaultdict(list)
        version, query = 0, {"labelSelector": child_kind.label_selector, "fieldSelector": child_kind.unfinished}
        async for page in self._api.list_pages(kind, namespace, **{name: value for name, value in query.items() if value}):
            version = _version(page)
            for item in page["items"]:
                if (key := child_kind.read_key(item)) is not None:
                    listed[key].append(child_kind.read(item))
        keys = set(listed)
        for key in keys - self._store.jobs.keys():
            # Its job is finished or gone, so these children may have to be stopped.
            children = listed.pop(key)
            if kind in ("Job", "Pod"):
                self._store.used_names.add(key)
                if any(map(_is_active, children)):
                    self._queue.add(key)
        for key in child_kind.known.replace(listed, version, namespace):
            self._store.requires_live_read.add(key)
            self._queue.add(key)
        return version, keys

    async def list_finished(self) -> None:
        """Queue finished jobs that need a reconcile, because their TTL is over or because pods may still run."""
        finished: set[Key] = set()

        async def list_in(namespace: str | None) -> None:
            for phase in sorted(FINAL_PHASES):
                async for page in self._api.list_pages(names.KIND, namespace, fieldSelector=f"status.phase={phase}"):
                    for manifest in (item for item in page["items"] if not is_managed_elsewhere(item)):
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
