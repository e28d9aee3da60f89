"""kopf, the watch layer. What happens to jobs and their children goes into the store, and the job's key into the queue."""

from collections.abc import Callable, Mapping
from typing import Any

import kopf

from finetune_api import names
from finetune_api.status import FINAL_PHASES
from finetune_operator.observed import Key
from finetune_operator.parsing import (
    is_managed_elsewhere,
    read_child_job,
    read_child_key,
    read_key,
    read_pod,
    read_version,
    read_workload,
    read_workload_key,
)
from finetune_operator.queue import WorkQueue
from finetune_operator.resync import ACTIVE_SELECTOR
from finetune_operator.store import Store

# An event of a watch, as the API server sent it: type, object.
Event = Mapping[str, Any]

# Changes of an attempt's pods arrive one after the other. After this delay, one reconcile sees all of them.
_BATCH_SECONDS = 0.1


class _NoDiffBaseStorage(kopf.DiffBaseStorage):
    """Stores nothing. kopf would copy the object of every event to find out what changed, and no handler here needs that."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence({})

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        pass


class _NoProgressStorage(kopf.ProgressStorage):
    """Stores nothing. kopf never retries event handlers, so there is no handler progress to store."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass

    def purge(self, **_: Any) -> None:
        pass

    def touch(self, **_: Any) -> None:
        pass

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence


def build_settings() -> kopf.OperatorSettings:
    """Configure kopf to read only. It posts and patches nothing, and watches only unfinished jobs."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.queueing.worker_limit = None  # a limit would allow only about limit ÷ idle_timeout objects per second
    settings.queueing.idle_timeout = 0.5  # how long kopf keeps the task of an object after its last event
    settings.queueing.exit_timeout = 1.0
    settings.networking.enforce_retry_after = True
    settings.persistence.diffbase_storage = _NoDiffBaseStorage()
    settings.persistence.progress_storage = _NoProgressStorage()
    settings.watching.chunk_size = 500  # without it, one response holds all objects
    settings.watching.field_selectors[names.GROUP, names.VERSION, names.PLURAL] = ACTIVE_SELECTOR
    return settings


class Handlers:
    """Put events into the store, and keys into the queue. on_watch_event: called at each event of a FineTuneJob.

    Each method gets an event as the API server sent it, and must be called in the operator's own event loop.
    """

    def __init__(self, store: Store, queue: WorkQueue[Key], on_watch_event: Callable[[], None]) -> None:
        self._store = store
        self._queue = queue
        self._on_watch_event = on_watch_event

    def finetunejob(self, event: Event) -> None:
        self._on_watch_event()
        manifest = event["object"]
        if is_managed_elsewhere(manifest):
            return
        key = read_key(manifest)
        # The field selector excludes finished jobs, so this watch reports their end as a deletion. If the store has already
        # dropped the job, the operator has processed its end.
        if event["type"] == "DELETED" or manifest.get("status", {}).get("phase") in FINAL_PHASES:
            if key not in self._store.jobs:
                return
            self._store.drop_job(key, read_version(manifest))
        else:
            if event["type"] == "ADDED":  # None in the list with which a watch begins
                self._store.announced.add(key)
            self._store.put_job(self._store.read_job(manifest))
        self._queue.add(key)

    def job(self, event: Event) -> None:
        key = read_child_key(event["object"])
        if key in self._store.jobs:
            child = read_child_job(event["object"])
            if event["type"] == "DELETED":
                self._store.children.drop(key, child.name, child.version)
            else:
                self._store.put_child(key, child)
            self._queue.add_after(key, _BATCH_SECONDS)
        elif key is not None:
            self._store.used_names.add(key)

    def pod(self, event: Event) -> None:
        key = read_child_key(event["object"])
        if key in self._store.jobs:
            pod = read_pod(event["object"])
            self._store.drop_pod(key, pod) if event["type"] == "DELETED" else self._store.put_pod(key, pod)
            self._queue.add_after(key, _BATCH_SECONDS)
        elif key is not None:
            self._store.used_names.add(key)

    def workload(self, event: Event) -> None:
        key = read_workload_key(event["object"])
        if key in self._store.jobs:
            workload = read_workload(event["object"])
            if event["type"] == "DELETED":
                self._store.workloads.drop(key, workload.name, workload.version)
            elif self._store.put_workload(key, workload):
                self._queue.add_after(key, _BATCH_SECONDS)


def build_registry(handlers: Handlers, call: Callable[[Callable[[Event], None], Event], object]) -> kopf.OperatorRegistry:
    """Return kopf's registry. call: calls a handler with an event, in the operator's own event loop.

    kopf does not watch Jobs and pods. It begins a watch with a list of all objects that match the selectors of the watch, and
    these include the children of all finished jobs. See ``child_watch``.
    """
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**context: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**context) or kopf.login_with_kubeconfig(**context)

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)
    async def on_finetunejob_event(*, event: Any, **_: Any) -> None:
        call(handlers.finetunejob, event)

    return registry
