"""Asking running pods how far they are: beside the turns, so that a pod that does not answer holds up no job."""

import time
from collections.abc import Callable

from finetune_operator.cluster.progress import ProgressClient
from finetune_operator.observed import Key
from finetune_operator.policy.attempt import pod_to_ask
from finetune_operator.queue import WorkQueue
from finetune_operator.store import Heard, Store

INTERVAL_SECONDS = 3.0
# With many jobs each is asked more seldom, so that all of them together cost no more than so many questions a second.
_QUESTIONS_PER_SECOND = 100
_WORKERS = 256
# A pod that has just started answers soon; one that never does is asked ever more seldom.
_FIRST_PAUSE_SECONDS = 0.5
# A pod is silent only once it was asked so often in vain: a process that was itself held up has missed no answer.
_QUESTIONS_IN_VAIN = 10
# When of several jobs none answers for so long, it is the operator's own network that is away.
_DEAF_AFTER_SECONDS = 60.0


class Poller:
    """Asks the pod with index 0 of each job given to ``watch``, until it has none that runs.

    heard: told of each answer. clock: monotonic seconds.
    """

    def __init__(
        self, store: Store, pods: ProgressClient, heard: Callable[[Key], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._pods = pods
        self._heard = heard
        self._queue: WorkQueue[Key] = WorkQueue()
        self._clock = clock
        self._watched: dict[Key, int] = {}  # how often in a row there was no answer
        self._last_answer = clock()  # of any pod

    def watch(self, key: Key) -> None:
        """Ask for this job from now on."""
        if key not in self._watched:
            self._watched[key] = 0
            self._queue.add(key)

    def is_silent(self, key: Key) -> bool:
        """Whether the job's pod was asked in vain for a number of times in a row."""
        return self._watched.get(key, 0) >= _QUESTIONS_IN_VAIN

    def is_deaf(self) -> bool:
        """Whether nobody answers at all, so that nothing follows from a pod's silence."""
        return len(self._watched) > 1 and self._clock() - self._last_answer > _DEAF_AFTER_SECONDS

    async def run(self) -> None:
        """Ask until cancelled."""
        await self._queue.run(self._ask, _WORKERS)

    async def _ask(self, key: Key) -> float | None:
        seen = self._store.observation(key)
        pod = pod_to_ask(seen) if seen is not None else None
        if pod is None or pod.address is None:
            del self._watched[key]
            return None
        interval = max(INTERVAL_SECONDS, len(self._watched) / _QUESTIONS_PER_SECOND)
        report = await self._pods.pull(pod.address)
        if report is None:
            self._watched[key] += 1
            return min(2 * interval, _FIRST_PAUSE_SECONDS * 2.0 ** min(self._watched[key], 10))
        self._watched[key] = 0
        self._last_answer = self._clock()
        self._store.heard[key] = Heard(pod.name, report, self._last_answer)
        self._heard(key)
        return interval
