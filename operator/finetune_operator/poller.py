"""Polls the progress of running pods outside of the reconciles, so that a pod that does not answer delays no reconcile."""

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
# A pod counts as silent only after this many failed polls in a row. So a delay of the operator itself does not count.
_SILENT_AFTER_POLLS = 10


class Poller:
    """Polls the pod with index 0 of each job given to ``start_polling``, until that pod no longer runs.

    on_report: called at each report.
    """

    def __init__(self, store: Store, client: ProgressClient, on_report: Callable[[Key], None]) -> None:
        self._store = store
        self._client = client
        self._on_report = on_report
        self._queue: WorkQueue[Key] = WorkQueue()
        self._unanswered_polls: dict[Key, int] = {}  # number of failed polls in a row

    def start_polling(self, key: Key) -> None:
        """Poll this job from now on."""
        if key not in self._unanswered_polls:
            self._unanswered_polls[key] = 0
            self._queue.add(key)

    def polled_jobs(self) -> int:
        """Return the number of jobs that are polled."""
        return len(self._unanswered_polls)

    def is_silent(self, key: Key) -> bool:
        """Return whether the last polls of the job's pod all failed. This says nothing about the pod: the network may be down."""
        return self._unanswered_polls.get(key, 0) >= _SILENT_AFTER_POLLS

    async def run(self) -> None:
        """Poll until cancelled."""
        await self._queue.run(self._poll, _WORKERS)

    async def _poll(self, key: Key) -> float | None:
        observation = self._store.observation(key)
        pod = pod_to_poll(observation) if observation is not None else None
        if pod is None or pod.address is None:
            del self._unanswered_polls[key]
            return None
        interval = max(INTERVAL_SECONDS, len(self._unanswered_polls) / _MAX_POLLS_PER_SECOND)
        report = await self._client.pull(pod.address)
        if report is None:
            self._unanswered_polls[key] += 1
            return min(2 * interval, _FIRST_RETRY_SECONDS * 2.0 ** min(self._unanswered_polls[key], 10))
        self._unanswered_polls[key] = 0
        self._store.last_reports[key] = LastReport(pod.name, report)
        self._on_report(key)
        return interval
