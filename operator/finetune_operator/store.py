"""What watches and lists told, so that a turn costs the API server nothing as long as nothing happens.

Watches lose deletions and lag behind. So nothing is ever decided from something missing here: `Observation.live` says where an
observation comes from, and whoever creates, deletes or gives up looks afresh first.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

from finetune_api.wire import Report
from finetune_operator.observed import ChildJob, JobRecord, Key, Observation, PodState, Whole

C = TypeVar("C", ChildJob, PodState)


class Children(Generic[C]):
    """Jobs, or pods: by the FineTuneJob that their label names, then by their own name."""

    def __init__(self) -> None:
        self._by_job: dict[Key, dict[str, C]] = {}

    def of(self, key: Key) -> list[C]:
        return list(self._by_job.get(key, {}).values())

    def put(self, key: Key, child: C) -> None:
        known = self._by_job.setdefault(key, {})
        if child.name not in known or known[child.name].version <= child.version:
            known[child.name] = child

    def drop(self, key: Key, name: str, version: int) -> None:
        known = self._by_job.get(key, {})
        if name in known and known[name].version <= version:
            del known[name]
        if not known:
            self._by_job.pop(key, None)

    def forget(self, key: Key) -> None:
        self._by_job.pop(key, None)

    def replace(self, listed: Mapping[Key, Iterable[C]], version: int, namespace: str | None) -> set[Key]:
        """Take over a list of that version, of one namespace or of all (None); what is newer than the list stays.

        Returns the keys for which something is missing in it.
        """
        lost = set()
        for key, known in list(self._by_job.items()):
            if namespace not in (None, key.namespace):
                continue
            present = {child.name for child in listed.get(key, ())}
            for name in [name for name, child in known.items() if child.version <= version and name not in present]:
                self.drop(key, name, version)
                lost.add(key)
        for key, children in listed.items():
            for child in children:
                self.put(key, child)
        return lost


@dataclasses.dataclass(frozen=True)
class Heard:
    """The last word of a running pod at its /progress; None while there was none.

    at: monotonic seconds of the answer, or of the first question.
    """

    pod: str
    report: Report | None
    at: float


class Store:
    """FineTuneJobs that are not finished, their Jobs and pods, and what their running pods said last.

    doubtful: jobs that are to be looked at afresh, as a watch and a list told different things. looked: when a job was looked
    at afresh last, monotonic seconds. whole: attempts of which all children were created. departed: pods that are gone, as they
    were last told of: a pod's last word is often there for some milliseconds only, between its end and its deletion.
    """

    def __init__(self) -> None:
        self.doubtful: set[Key] = set()
        self.looked: dict[Key, float] = {}
        self.whole: dict[Key, Whole] = {}
        self.jobs: dict[Key, JobRecord] = {}
        self.children: Children[ChildJob] = Children()
        self.pods: Children[PodState] = Children()
        self.departed: Children[PodState] = Children()
        self.heard: dict[Key, Heard] = {}

    def put_job(self, job: JobRecord) -> None:
        """Take over a FineTuneJob, unless a later one of it is known."""
        known = self.jobs.get(job.key)
        if known is None or known.version <= job.version:
            self.jobs[job.key] = job

    def drop_job(self, key: Key, version: int | None = None) -> None:
        """Forget a FineTuneJob that is finished or gone; with a version, only if what is known is not later."""
        known = self.jobs.get(key)
        if known is not None and (version is None or known.version <= version):
            del self.jobs[key]
        if key not in self.jobs:
            self.heard.pop(key, None)
            self.looked.pop(key, None)
            self.whole.pop(key, None)
            self.doubtful.discard(key)
            self.children.forget(key)
            self.pods.forget(key)
            self.departed.forget(key)

    def put_child(self, key: Key, child: ChildJob) -> None:
        """Take over a Job of an unfinished FineTuneJob."""
        if key in self.jobs:
            self.children.put(key, child)

    def put_pod(self, key: Key, pod: PodState) -> None:
        """Take over a pod of an unfinished FineTuneJob."""
        if key in self.jobs:
            self.pods.put(key, pod)

    def drop_pod(self, key: Key, pod: PodState) -> None:
        """Forget a pod that is gone, but for its end, until the next in its place is gone."""
        self.pods.drop(key, pod.name, pod.version)
        for known in self.departed.of(key):
            if known.attempt < pod.attempt or known.index == pod.index:
                self.departed.drop(key, known.name, pod.version)
        if key in self.jobs and pod.finished is not None:
            self.departed.put(key, pod)

    def with_departed(self, seen: Observation) -> Observation:
        """The observation with the pods that have ended, and are gone without another in their place."""
        taken, key = {pod.index for pod in seen.pods}, seen.job.key
        ended = {pod.name: pod for pod in (*self.pods.of(key), *self.departed.of(key)) if pod.finished is not None}
        return dataclasses.replace(seen, departed=tuple(pod for pod in ended.values() if pod.index not in taken))

    def put_observation(self, seen: Observation, at: float) -> None:
        """Take over what was read live at that time."""
        key = seen.job.key
        self.put_job(seen.job)
        self.looked[key] = at
        self.doubtful.discard(key)
        for child in seen.jobs:
            self.children.put(key, child)
        for pod in seen.pods:
            self.pods.put(key, pod)

    def observation(self, key: Key) -> Observation | None:
        """The job as the watches told of it; None if they didn't."""
        job = self.jobs.get(key)
        if job is None or job.deleting:
            return None
        seen = Observation(job, self.children.of(key), self.pods.of(key), live=False, whole=self.whole.get(key))
        return self.with_departed(seen)
