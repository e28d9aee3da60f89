"""Writes the events of a FineTuneJob in the background, after the status that they report. Reconciles do not wait for them."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime

from finetune_api import names
from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.cluster.lease import NotLeadingError
from finetune_operator.event import Event
from finetune_operator.observed import JobRecord, Manifest, write_time

logger = logging.getLogger(__name__)

# Number of concurrent writes, so that the events of a thousand jobs that start together do not wait long for each other.
_WORKERS = 4
_QUEUE_SIZE = 10_000
# Time limit for the remaining events at an orderly stop.
_FLUSH_SECONDS = 2.0
_RETRY_SECONDS = 1.0


class EventRecorder:
    """Writes events, a few at a time. An event that can't be written is lost, but the status has the same information."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._queue: asyncio.Queue[Manifest] = asyncio.Queue(_QUEUE_SIZE)

    def record(self, job: JobRecord, events: Sequence[Event], now: datetime) -> None:
        """Put the events into the queue."""
        for event in events:
            try:
                self._queue.put_nowait(build_event_manifest(job, event, now))
            except asyncio.QueueFull:
                logger.warning("%s: the event queue is full, so this event is dropped: %s", job.key, event.message)

    async def run(self) -> None:
        """Write until cancelled."""
        await asyncio.gather(*(self._run_worker() for _ in range(_WORKERS)))

    async def flush(self) -> None:
        """Write the remaining events within the time limit."""
        try:
            async with asyncio.timeout(_FLUSH_SECONDS):
                while not self._queue.empty():
                    await self._write(self._queue.get_nowait())
        except TimeoutError:
            logger.warning("%d events were not written", self._queue.qsize())

    async def _run_worker(self) -> None:
        while True:
            await self._write(await self._queue.get())

    async def _write(self, manifest: Manifest) -> None:
        while True:
            try:
                await self._api.create("Event", manifest)
            except NotLeadingError:  # the API server is unavailable for a moment, or this process is about to end
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    logger.warning(
                        "event %s/%s was not written: %s", manifest["metadata"]["namespace"], manifest["metadata"]["name"], error
                    )
            return


def build_event_manifest(job: JobRecord, event: Event, now: datetime) -> Manifest:
    """Return the manifest of an event. Its name follows from its content, so that no event is written twice."""
    name = f"{job.key.name}.{job.uid[:8]}.{event.attempt}.{event.reason.lower()}"
    name += f".{event.occurrence}" if event.occurrence else ""
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
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:1000],
        "source": {"component": names.FIELD_MANAGER},
        "reportingComponent": names.FIELD_MANAGER,
        "firstTimestamp": write_time(now),
        "lastTimestamp": write_time(now),
        "count": 1,
    }
