"""Polls the progress of running pods outside of the reconciles, so that a pod that does not answer delays no reconcile."""

import dataclasses
import time
from collections.abc import Callable

from finetune_operator.cluster.progress import ProgressClient
from finetune_operator.observed import Key
from finetune_operator.policy.attempt import pod_to_poll
from finetune_operator.queue import WorkQueue
from finetune_operator.store import LastReport, Store

INTERVAL_SECONDS = 3.0
# With many jobs the interval grows, so that all polls together stay below this rate.
_MAX_POLLS_PER_SECOND = 100
_WORKERS = 256
# Base of the delay after failed polls. The delay doubles each time. It starts small, because a new pod answers soon.
_FIRST_RETRY_SECONDS = 0.5
# A pod counts as silent after this time, and after this many failed polls in a row. So a delay of the operator does not count.
SILENT_AFTER_SECONDS, _SILENT_AFTER_POLLS = 30.0, 4


@dataclasses.dataclass
class _Polled:
    """A polled job. pod: the pod that was asked last. unanswered: polls without an answer in a row, the first one at since."""

    pod: str = ""
    unanswered: int = 0
    since: float = 0.0


class Poller:
    """Polls the pod with index 0 of each job given to ``start_polling``, until that pod no longer runs.

    on_change: called at each report, and when a pod becomes silent. clock: monotonic seconds. interval_seconds: the time between
    two polls of a job.
    """

    def __init__(
        self,
        store: Store,
        client: ProgressClient,
        on_change: Callable[[Key], None],
        clock: Callable[[], float] = time.monotonic,
        interval_seconds: float = INTERVAL_SECONDS,
    ) -> None:
        self._store = store
        self._client = client
        self._on_change = on_change
        self._clock = clock
        self._interval_seconds = interval_seconds
        self._queue: WorkQueue[Key] = WorkQueue()
        self._polled: dict[Key, _Polled] = {}

    def start_polling(self, key: Key) -> None:
        """Poll this job from now on."""
        if key not in self._polled:
            self._polled[key] = _Polled()
            self._queue.add(key)

    def polled_jobs(self) -> int:
        """Return the number of jobs that are polled."""
        return len(self._polled)

    def is_silent(self, key: Key) -> bool:
        """Return whether the job's pod has not answered for long. This says nothing about the pod: the network may be down."""
        polled = self._polled.get(key)
        if polled is None or polled.unanswered < _SILENT_AFTER_POLLS:
            return False
        return self._clock() - polled.since >= SILENT_AFTER_SECONDS

    async def run(self) -> None:
        """Poll until cancelled."""
        await self._queue.run(self._poll, _WORKERS)

    async def _poll(self, key: Key) -> float | None:
        observation = self._store.observation(key)
        pod = pod_to_poll(observation) if observation is not None else None
        if pod is None or pod.address is None:
            del self._polled[key]
            return None
        if self._polled[key].pod != pod.name:
            self._polled[key] = _Polled(pod.name)
        interval = max(self._interval_seconds, len(self._polled) / _MAX_POLLS_PER_SECOND)
        report = await self._client.pull(pod.address)
        if report is None:
            return self._note_silence(key, interval)
        self._polled[key] = _Polled(pod.name)
        self._store.last_reports[key] = LastReport(pod.name, report)
        self._on_change(key)
        return interval

    def _note_silence(self, key: Key, interval: float) -> float:
        """Count a poll without an answer, and return the seconds until the next one."""
        polled, was_silent = self._polled[key], self.is_silent(key)
        polled.since = polled.since if polled.unanswered else self._clock()
        polled.unanswered += 1
        if self.is_silent(key) and not was_silent:
            self._on_change(key)
        return min(2 * interval, _FIRST_RETRY_SECONDS * 2.0 ** min(polled.unanswered, 10))
