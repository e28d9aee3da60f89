"""Limits what it costs to retry creations that the API server refuses, so that they don't delay the jobs of other namespaces."""

from collections import Counter

from finetune_operator.observed import Key

# The first and the longest pause of a job. It doubles in between. A user who frees a quota should not have to wait much longer.
_FIRST_PAUSE_SECONDS = 10.0
_MAX_PAUSE_SECONDS = 30.0
# Workers that a namespace may occupy while creations in it are blocked. A refusal can take seconds, as that of a slow webhook.
_MAX_WORKERS = 4


class Creations:
    """Counts creations in progress by namespace, and the jobs whose last creation was blocked."""

    def __init__(self) -> None:
        self._in_progress: Counter[str] = Counter()
        self._refusals: dict[Key, int] = {}  # in a row
        self._blocked_jobs: Counter[str] = Counter()  # by namespace

    def begin(self, key: Key) -> bool:
        """Return whether the creation may begin. If so, ``end`` must follow."""
        if self._blocked_jobs[key.namespace] and self._in_progress[key.namespace] >= _MAX_WORKERS:
            return False
        self._in_progress[key.namespace] += 1
        return True

    def end(self, key: Key) -> None:
        """Record that the creation is no longer in progress."""
        self._in_progress[key.namespace] -= 1
        if not self._in_progress[key.namespace]:
            del self._in_progress[key.namespace]

    def blocked(self, key: Key) -> float:
        """Record that the creation was blocked. Return the seconds until the next try."""
        count = self._refusals.get(key, 0)
        if not count:
            self._blocked_jobs[key.namespace] += 1
        self._refusals[key] = count + 1
        return min(_MAX_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(count, 16))

    def forget(self, key: Key) -> None:
        """Record that the creation succeeded, or that the job is gone."""
        if self._refusals.pop(key, 0):
            self._blocked_jobs[key.namespace] -= 1
            if not self._blocked_jobs[key.namespace]:
                del self._blocked_jobs[key.namespace]
