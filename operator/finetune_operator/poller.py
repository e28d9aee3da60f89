"""Polls the progress of running pods outside of the reconciles, so that a pod that does not answer delays no reconcile."""

import asyncio
import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence

from finetune_api.wire import Report
from finetune_operator.cluster.progress import ProgressClient
from finetune_operator.observed import Key, PodState
from finetune_operator.policy.attempt import pods_to_poll
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
class _Asked:
    """A pod that is asked.

    number: of its last poll, counted over all pods. unanswered: polls without an answer in a row. since: monotonic seconds of the
    first of them.
    """

    number: int = 0
    unanswered: int = 0
    since: float = 0.0

    def is_silent(self, now: float) -> bool:
        return self.unanswered >= _SILENT_AFTER_POLLS and now - self.since >= SILENT_AFTER_SECONDS


class Poller:
    """Polls the pods of each job given to ``start_polling``, until the pod with index 0 no longer runs.

    Each poll asks the pod with index 0, which knows step and loss, and in turn one of the others, only to learn whether it
    answers. So a job of many pods costs at most twice as much as one of a single pod.

    on_change: called at each report, and when a pod becomes silent or answers again. clock: monotonic seconds. interval_seconds:
    the time between two polls of a job.
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
        self._asked: dict[Key, dict[str, _Asked]] = {}
        self._numbers = itertools.count(1)

    def start_polling(self, key: Key) -> None:
        """Poll this job from now on."""
        if key not in self._asked:
            self._asked[key] = {}
            self._queue.add(key)

    def polled_jobs(self) -> int:
        """Return the number of jobs that are polled."""
        return len(self._asked)

    def silent_pods(self, key: Key) -> frozenset[str]:
        """Return the pods that have not answered for long. This says nothing about the pods: the network may be down."""
        now = self._clock()
        return frozenset(name for name, asked in self._asked.get(key, {}).items() if asked.is_silent(now))

    async def run(self) -> None:
        """Poll until cancelled."""
        await self._queue.run(self._poll, _WORKERS)

    async def _poll(self, key: Key) -> float | None:
        observation = self._store.observation(key)
        pods = pods_to_poll(observation) if observation is not None else []
        if not pods:
            del self._asked[key]
            return None
        known = self._asked[key]
        asked = self._asked[key] = {pod.name: known.get(pod.name) or _Asked() for pod in pods}
        first, *others = pods
        silent_before = self.silent_pods(key)
        report, *_ = await asyncio.gather(*(self._ask(pod, asked[pod.name]) for pod in (first, *self._next(others, asked))))
        if report is not None:
            self._store.last_reports[key] = LastReport(first.name, report)
        if report is not None or self.silent_pods(key) != silent_before:
            self._on_change(key)
        interval = max(self._interval_seconds, len(self._asked) / _MAX_POLLS_PER_SECOND)
        unanswered = asked[first.name].unanswered
        return min(2 * interval, _FIRST_RETRY_SECONDS * 2.0 ** min(unanswered, 10)) if unanswered else interval

    def _next(self, pods: Sequence[PodState], asked: Mapping[str, _Asked]) -> list[PodState]:
        """Return the pod whose turn it is, if there is any. First come those that missed a poll, until they count as silent."""
        now = self._clock()
        suspects = [pod for pod in pods if asked[pod.name].unanswered and not asked[pod.name].is_silent(now)]
        return sorted(suspects or pods, key=lambda pod: asked[pod.name].number)[:1]

    async def _ask(self, pod: PodState, asked: _Asked) -> Report | None:
        """Ask a pod for its report, and note whether it answers."""
        assert pod.address
        report = await self._client.pull(pod.address)
        asked.number = next(self._numbers)
        if report is None:
            asked.since = asked.since if asked.unanswered else self._clock()
        asked.unanswered = 0 if report is not None else asked.unanswered + 1
        return report
