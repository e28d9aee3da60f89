"""The full list: once a minute every job comes to the queue, whatever the watches lost."""

import asyncio
import datetime
import logging
from collections.abc import Callable, Sequence

from finetune_api.status import FINAL_PHASES
from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.cluster.observe import list_jobs
from finetune_operator.health import Health
from finetune_operator.metrics import Metrics
from finetune_operator.observed import JobRecord, Key, read_job, read_time
from finetune_operator.queue import WorkQueue

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 60.0
# A list that failed is tried again so soon.
_RETRY_SECONDS = 5.0
# A job that ended so long ago has nothing left to be done: it costs its line in the list, and no turn.
_SETTLED_AFTER = datetime.timedelta(minutes=10)


class Resync:
    """Lists for ever. namespaces: to be listed; none means the whole cluster. now: the time of day, in UTC."""

    def __init__(
        self,
        api: Api,
        queue: WorkQueue[Key],
        metrics: Metrics,
        health: Health,
        namespaces: Sequence[str],
        now: Callable[[], datetime.datetime],
    ) -> None:
        self._api = api
        self._queue = queue
        self._metrics = metrics
        self._health = health
        self._namespaces = namespaces
        self._now = now

    async def run(self) -> None:
        """List until cancelled. That the API server is away is no reason to end: it will come back."""
        while True:
            try:
                await self.list_once()
            except ApiError as error:
                logger.warning("the list of FineTuneJobs failed: %s", error)
                self._health.list_failed()
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                self._health.list_done()
                await asyncio.sleep(INTERVAL_SECONDS)

    async def list_once(self) -> None:
        """Put every job that is not settled into the queue, and forget those that are gone."""
        keys = set()
        async for manifest in list_jobs(self._api, self._namespaces):
            job = read_job(manifest)
            keys.add(job.key)
            self._metrics.remember(job)
            if not is_settled(job, self._now()):
                self._queue.add(job.key)
        self._metrics.keep_only(keys)
        self._metrics.watch_last_event.set(self._now().timestamp())


def is_settled(job: JobRecord, now: datetime.datetime) -> bool:
    """Whether the job ended long enough ago."""
    ended = read_time(job.status.completion_time)
    return job.status.phase in FINAL_PHASES and ended is not None and now - ended > _SETTLED_AFTER
