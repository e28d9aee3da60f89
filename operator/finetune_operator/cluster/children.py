"""Lists Jobs, pods and refusals of many FineTuneJobs at once, because each list makes the API server scan all objects."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from finetune_api import names
from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.observed import ChildJob, Key, Manifest, PodState
from finetune_operator.parsing import read_child_job, read_child_key, read_pod

# With this many names of at most 63 characters, the query stays well below the limits of servers.
_MAX_NAMES = 50

C = TypeVar("C", ChildJob, PodState)
Children = tuple[list[ChildJob], list[PodState]]


class ChildrenReader:
    """Batches reads. Calls that arrive during a list share the next list. Without a list in progress, a call does not wait."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._pending: dict[str, dict[Key, asyncio.Future[Children]]] = defaultdict(dict)
        self._readers: dict[str, asyncio.Task[None]] = {}
        # Lists of refusals by namespace: the one in progress, and the one that begins after it.
        self._refusals: dict[str, asyncio.Task[Mapping[str, str]]] = {}
        self._next_refusals: dict[str, asyncio.Task[Mapping[str, str]]] = {}

    async def read(self, key: Key) -> Children:
        """Return the children by label, from a list that starts after this call. Raise the ApiError of the list."""
        pending = self._pending[key.namespace]
        if key not in pending:
            pending[key] = asyncio.get_running_loop().create_future()
        future = pending[key]
        if key.namespace not in self._readers:
            self._readers[key.namespace] = asyncio.create_task(self._read_all(key.namespace))
        return await asyncio.shield(future)  # other callers may wait for the same future

    async def read_refusals(self, namespace: str) -> Mapping[str, str]:
        """Return why Jobs can't create pods, by the uid of the Job, from a list that starts after this call.

        Only events say that. The API server reads all events of the namespace for each list of them.
        """
        if namespace not in self._next_refusals:
            reading = self._list_refusals(namespace, self._refusals.get(namespace))
            self._next_refusals[namespace] = asyncio.create_task(reading)
        return await asyncio.shield(self._next_refusals[namespace])

    async def _list_refusals(self, namespace: str, before: asyncio.Task[Mapping[str, str]] | None) -> Mapping[str, str]:
        if before is not None:
            await asyncio.wait([before])
        self._refusals[namespace] = self._next_refusals.pop(namespace)
        try:
            selector = "involvedObject.kind=Job,reason=FailedCreate"
            events = await self._api.list_all("Event", namespace, fieldSelector=selector)
        except ApiError as error:
            if error.code not in (403, 404):  # events only improve messages
                raise
            events = []
        return {event["involvedObject"].get("uid", ""): str(event.get("message", "")) for event in events}

    async def _read_all(self, namespace: str) -> None:
        """List until no call is pending."""
        try:
            while pending := self._pending.pop(namespace, None):
                waiting = list(pending)
                for start in range(0, len(waiting), _MAX_NAMES):
                    await self._list_batch(namespace, {key: pending[key] for key in waiting[start : start + _MAX_NAMES]})
        finally:
            del self._readers[namespace]

    async def _list_batch(self, namespace: str, batch: dict[Key, asyncio.Future[Children]]) -> None:
        try:
            jobs, pods = await asyncio.gather(
                self._list("Job", namespace, batch, read_child_job), self._list("Pod", namespace, batch, read_pod)
            )
        except Exception as error:  # the callers get it
            for future in batch.values():
                future.set_exception(error)
                future.exception()  # avoids a warning of asyncio if the caller was cancelled
        else:
            for key, future in batch.items():
                future.set_result((jobs[key], pods[key]))

    async def _list(
        self, kind: str, namespace: str, keys: Collection[Key], read: Callable[[Manifest], C]
    ) -> Mapping[Key, list[C]]:
        named = ",".join(key.name for key in keys)
        selector = f"{names.LABEL_JOB}={named}" if len(keys) == 1 else f"{names.LABEL_JOB} in ({named})"
        listed: dict[Key, list[C]] = {key: [] for key in keys}
        for item in await self._api.list_all(kind, namespace, labelSelector=selector):
            key = read_child_key(item)
            if key in listed:
                listed[key].append(read(item))
        return listed
