"""Events of a FineTuneJob, after the status that they tell of, and beside the turns: nothing waits for them."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime

from finetune_api import names
from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.cluster.lease import NotLeadingError
from finetune_operator.observed import JobRecord, Manifest, write_time
from finetune_operator.turn import Turn

logger = logging.getLogger(__name__)

# At the same time; a thousand jobs that start together must not keep each other waiting with what they have to tell.
_WORKERS = 4
_MOST_WAITING = 10_000
# At an orderly end, for what is still to be told.
_LAST_SECONDS = 2.0
_PAUSE_SECONDS = 1.0


class Events:
    """Writes events, a few at a time. One that can't be written is lost: the status says the same."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._waiting: asyncio.Queue[Manifest] = asyncio.Queue(_MOST_WAITING)

    def tell(self, job: JobRecord, turns: Sequence[Turn], now: datetime) -> None:
        """Have one event written per turn."""
        for turn in turns:
            try:
                self._waiting.put_nowait(build_event(job, turn, now))
            except asyncio.QueueFull:
                logger.warning("%s: too many events wait to be written, this one is lost: %s", job.key, turn.message)

    async def run(self) -> None:
        """Write until cancelled."""
        await asyncio.gather(*(self._work() for _ in range(_WORKERS)))

    async def finish(self) -> None:
        """Write what still waits, if that goes quickly."""
        try:
            async with asyncio.timeout(_LAST_SECONDS):
                while not self._waiting.empty():
                    await self._write(self._waiting.get_nowait())
        except TimeoutError:
            logger.warning("%d events were not written", self._waiting.qsize())

    async def _work(self) -> None:
        while True:
            await self._write(await self._waiting.get())

    async def _write(self, event: Manifest) -> None:
        while True:
            try:
                await self._api.create("Event", event)
            except NotLeadingError:  # the API server is away for a moment, or this process is about to end
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    logger.warning("%s/%s: no event: %s", event["metadata"]["namespace"], event["metadata"]["name"], error)
            return


def build_event(job: JobRecord, turn: Turn, now: datetime) -> Manifest:
    """Its name follows from the turn, so that none is told twice, whatever happens in between."""
    name = f"{job.key.name}.{job.uid[:8]}.{turn.attempt}.{turn.reason.lower()}"
    name += f".{turn.occasion}" if turn.occasion else ""
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": job.key.namespace, "name": name},
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "namespace": job.key.namespace,
            "name": job.key.name,
            "uid": job.uid,
        },
        "type": turn.type,
        "reason": turn.reason,
        "message": turn.message[:1000],
        "source": {"component": names.FIELD_MANAGER},
        "reportingComponent": names.FIELD_MANAGER,
        "firstTimestamp": write_time(now),
        "lastTimestamp": write_time(now),
        "count": 1,
    }
