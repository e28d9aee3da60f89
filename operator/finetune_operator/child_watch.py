"""Watches the Jobs and pods of FineTuneJobs, and Kueue's Workloads, which say why a Job waits.

Each watch begins where a list of the unfinished children ends. So it brings every change, also the end of a child, but never the
children of the jobs that finished earlier, which may be very many.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.health import Health
from finetune_operator.observed import Manifest
from finetune_operator.resync import INTERVAL_SECONDS, Resync

logger = logging.getLogger(__name__)

# Codes of ApiError: the connection was lost, or the version from which to continue is too old.
_UNREACHABLE, _GONE = 0, 410
# The full list reports a namespace that is gone or forbidden, once a minute. Without Kueue there are no Workloads.
_FORBIDDEN = (403, 404)
# Seconds before the next watch: after the API server ended the last one as usual, and after an error.
_NEXT_SECONDS, _ERROR_SECONDS = 0.1, 5.0
_PAUSES = {_UNREACHABLE: 1.0, _GONE: _NEXT_SECONDS, **dict.fromkeys(_FORBIDDEN, INTERVAL_SECONDS)}


class ChildWatch:
    """Watches the children in the namespaces, or else in the whole cluster. handlers: by kind, called with each event."""

    def __init__(
        self, api: Api, resync: Resync, handlers: Mapping[str, Callable[[Manifest], None]], namespaces: Sequence[str]
    ) -> None:
        self._api = api
        self._resync = resync
        self._handlers = handlers
        self._namespaces: Sequence[str | None] = namespaces or (None,)

    async def run(self, health: Health) -> None:
        """Watch until cancelled, after the first successful list: events of a job that the store does not know are ignored."""
        await health.wait_ready()
        await asyncio.gather(*(self._keep_watching(kind, namespace) for kind in self._handlers for namespace in self._namespaces))

    async def _keep_watching(self, kind: str, namespace: str | None) -> None:
        version, warned = "", False
        while True:
            try:
                version = version or str((await self._resync.list_children(kind, namespace))[0])
                served_kind, labels = self._resync.watch_query(kind)
                async for event in self._api.watch(served_kind, namespace, version, labelSelector=labels):
                    version, warned = event["object"]["metadata"]["resourceVersion"], False
                    if event["type"] != "BOOKMARK":
                        self._handlers[kind](event)
                await asyncio.sleep(_NEXT_SECONDS)
            except ApiError as error:
                if not warned and error.code not in (_GONE, *_FORBIDDEN):
                    logger.warning("the watch of %ss broke off and starts again: %s", kind, error)
                    warned = True
                if error.code != _UNREACHABLE:
                    version = ""  # events may be lost, so the next watch begins with a list
                await asyncio.sleep(_PAUSES.get(error.code, _ERROR_SECONDS))
