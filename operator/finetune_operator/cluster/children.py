"""Jobs and pods of many FineTuneJobs in one list: what a list costs the API server is to go through all that there is."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from finetune_api import names
from finetune_operator.cluster.api import Api
from finetune_operator.observed import ChildJob, Key, Manifest, PodState
from finetune_operator.parsing import read_child_job, read_child_key, read_pod

# So many names of at most 63 characters keep the query well below what servers take.
_MOST_NAMES = 50

C = TypeVar("C", ChildJob, PodState)
Children = tuple[list[ChildJob], list[PodState]]


class ChildrenReader:
    """Lists the children of those that ask while the list before is on its way, all together; alone, one does not wait."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._asking: dict[str, dict[Key, asyncio.Future[Children]]] = defaultdict(dict)
        self._readers: dict[str, asyncio.Task[None]] = {}

    async def read(self, key: Key) -> Children:
        """The children by label, as they are after this call. ApiError as of the list."""
        asking = self._asking[key.namespace]
        if key not in asking:
            asking[key] = asyncio.get_running_loop().create_future()
        found = asking[key]
        if key.namespace not in self._readers:
            self._readers[key.namespace] = asyncio.create_task(self._read_all(key.namespace))
        return await asyncio.shield(found)  # others may wait for the same

    async def _read_all(self, namespace: str) -> None:
        """List until nobody asks any more."""
        try:
            while asking := self._asking.pop(namespace, None):
                waiting = list(asking)
                for first in range(0, len(waiting), _MOST_NAMES):
                    await self._answer(namespace, {key: asking[key] for key in waiting[first : first + _MOST_NAMES]})
        finally:
            del self._readers[namespace]

    async def _answer(self, namespace: str, batch: dict[Key, asyncio.Future[Children]]) -> None:
        try:
            jobs, pods = await asyncio.gather(
                self._list("Job", namespace, batch, read_child_job), self._list("Pod", namespace, batch, read_pod)
            )
        except Exception as error:  # it belongs to those who asked
            for found in batch.values():
                found.set_exception(error)
                found.exception()  # whoever asked may have gone
        else:
            for key, found in batch.items():
                found.set_result((jobs[key], pods[key]))

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
