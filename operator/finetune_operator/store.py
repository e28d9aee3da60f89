"""Caches what watches and lists reported, so that a reconcile of a job that runs normally sends no request to the API server.

Watches lag and lose deletions. So the operator never concludes from the store that an object does not exist. It reads the objects
live before it creates or deletes something, or fails a job. ``Observation.live`` says where an observation comes from.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

from finetune_api.wire import Report
from finetune_operator.observed import ChildJob, CreatedAttempt, JobRecord, Key, Manifest, Observation, PodState, Workload
from finetune_operator.parsing import read_job, read_key, read_version

C = TypeVar("C", ChildJob, PodState, Workload)


class Children(Generic[C]):
    """Holds Jobs, pods or Workloads, by the FineTuneJob that they belong to and by their own name."""

    def __init__(self) -> None:
        self._by_job: dict[Key, dict[str, C]] = {}

    def by_job(self, key: Key) -> list[C]:
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
        """Replace the children in one namespace, or in all (None), by a list of that version. Children newer than the list stay.

        Return the keys whose children were not all in the list.
        """
        missing = set()
        for key, known in list(self._by_job.items()):
            if namespace not in (None, key.namespace):
                continue
            present = {child.name for child in listed.get(key, ())}
            for name in [name for name, child in known.items() if child.version <= version and name not in present]:
                self.drop(key, name, version)
                missing.add(key)
        for key, children in listed.items():
            for child in children:
                self.put(key, child)
        return missing


@dataclasses.dataclass(frozen=True)
class LastReport:
    """The last report of a running pod, from its /progress."""

    pod: str
    report: Report


class Store:
    """Holds unfinished FineTuneJobs, their Jobs, pods and Workloads, and the last reports of their running pods.

    listed_as_leader: whether this process has listed all objects since it became the leader. So no other process has created
    children that it does not know.
    scheduling_groups: whether Kubernetes itself places pods in groups.
    announced: jobs whose creation a watch reported. A list may be outdated, so a job in a list may have children, or be finished.
    used_names: names that an earlier FineTuneJob had. Children of it may exist, perhaps without being in the store.
    new_jobs: jobs without a status whose children this process has not created yet.
    requires_live_read: jobs to read live at the next reconcile, because a list differed from the store or a write met a conflict.
    last_refusal_check: monotonic seconds of the last read of the reason for missing pods. Each live read includes it.
    created_attempts: attempts of which this process created all children.
    terminated_pods: the last state of pods that are gone. A final report is often in the API for only some milliseconds.
    last_reports: the last reports of running pods.
    """

    def __init__(self) -> None:
        self.listed_as_leader = False
        self.scheduling_groups = False
        self.announced: set[Key] = set()
        self.used_names: set[Key] = set()
        self.new_jobs: set[Key] = set()
        self.requires_live_read: set[Key] = set()
        self.last_refusal_check: dict[Key, float] = {}
        self.created_attempts: dict[Key, CreatedAttempt] = {}
        self.jobs: dict[Key, JobRecord] = {}
        self.children: Children[ChildJob] = Children()
        self.pods: Children[PodState] = Children()
        self.workloads: Children[Workload] = Children()
        self.terminated_pods: Children[PodState] = Children()
        self.last_reports: dict[Key, LastReport] = {}

    def read_job(self, manifest: Manifest) -> JobRecord:
        """Parse a FineTuneJob that a watch or a list reported. What is known already is not parsed again."""
        known = self.jobs.get(read_key(manifest))
        if known is not None and (known.uid, known.version) == (manifest["metadata"]["uid"], read_version(manifest)):
            return known
        return read_job(manifest, known)

    def put_job(self, job: JobRecord) -> None:
        """Store a FineTuneJob, unless a later version is known."""
        known = self.jobs.get(job.key)
        if known is None or known.version <= job.version:
            self.jobs[job.key] = job
            if known is not None and known.uid != job.uid:
                self.used_names.add(job.key)
            is_new = job.status.phase is None and self.created_attempt(job) is None
            self.new_jobs.add(job.key) if is_new else self.new_jobs.discard(job.key)

    def drop_job(self, key: Key, version: int | None = None) -> None:
        """Drop a FineTuneJob that is finished or gone. With a version, keep the job if the known version is later."""
        known = self.jobs.get(key)
        if known is not None and (version is None or known.version <= version):
            del self.jobs[key]
            self.used_names.add(key)
        if key not in self.jobs:
            self.announced.discard(key)
            self.new_jobs.discard(key)
            self.last_reports.pop(key, None)
            self.last_refusal_check.pop(key, None)
            self.created_attempts.pop(key, None)
            self.requires_live_read.discard(key)
            self.children.forget(key)
            self.pods.forget(key)
            self.workloads.forget(key)
            self.terminated_pods.forget(key)

    def created_attempt(self, job: JobRecord) -> CreatedAttempt | None:
        """Return the newest attempt of which this process created all children. It must be of this job, not of an earlier one."""
        created = self.created_attempts.get(job.key)
        return created if created is not None and created.job_uid == job.uid else None

    def put_created_attempt(self, key: Key, created: CreatedAttempt) -> None:
        """Record that this process has created all children of an attempt."""
        self.created_attempts[key] = created
        self.new_jobs.discard(key)

    def can_start(self, job: JobRecord) -> bool:
        """Return whether the children of this new job can be created without a live read.

        That is so if a watch reported its creation, and no FineTuneJob of its name is known that could have left children. The
        name of a child that exists all the same is taken.
        """
        is_new = job.status.phase is None and job.key in self.announced and job.key not in self.used_names
        return self.listed_as_leader and is_new

    def put_child(self, key: Key, child: ChildJob) -> None:
        """Store a Job of an unfinished FineTuneJob."""
        if key in self.jobs:
            self.children.put(key, child)

    def put_workload(self, key: Key, workload: Workload) -> bool:
        """Store a Workload of an unfinished FineTuneJob. Return whether it says something new about its Job."""
        before = {(known.job_uid, known.waiting) for known in self.workloads.by_job(key)}
        self.workloads.put(key, workload)
        return (workload.job_uid, workload.waiting) not in before

    def put_pod(self, key: Key, pod: PodState) -> None:
        """Store a pod of an unfinished FineTuneJob."""
        if key in self.jobs:
            self.pods.put(key, pod)

    def drop_pod(self, key: Key, pod: PodState) -> None:
        """Drop a pod that is gone. Keep its last state until another pod with its index, or one of a later attempt, is gone."""
        self.pods.drop(key, pod.name, pod.version)
        for known in self.terminated_pods.by_job(key):
            if known.attempt < pod.attempt or known.index == pod.index:
                self.terminated_pods.drop(key, known.name, pod.version)
        if key in self.jobs and pod.terminated is not None:
            self.terminated_pods.put(key, pod)

    def complete(self, observation: Observation) -> Observation:
        """Return the observation with what is known in addition: pods that are gone, the attempt created here, Kueue's reason.

        The pods are those that terminated and have no successor with the same index.
        """
        present_indexes, key = {pod.index for pod in observation.pods}, observation.job.key
        ended = {
            pod.name: pod for pod in (*self.pods.by_job(key), *self.terminated_pods.by_job(key)) if pod.terminated is not None
        }
        place = observation.queue_job()
        queueing_jobs = [*observation.own_jobs(), *([place] if place is not None else [])]
        suspended = {child.uid for child in queueing_jobs if child.suspended and not child.deleting}
        waiting = [workload.waiting for workload in self.workloads.by_job(key) if workload.job_uid in suspended]
        return dataclasses.replace(
            observation,
            terminated_pods=tuple(pod for pod in ended.values() if pod.index not in present_indexes),
            created_attempt=self.created_attempt(observation.job),
            queueing=next(filter(None, waiting), None),
        )

    def put_observation(self, observation: Observation, read_at: float) -> None:
        """Store a live observation. read_at: monotonic seconds of the read."""
        key = observation.job.key
        self.put_job(observation.job)
        self.last_refusal_check[key] = read_at
        self.requires_live_read.discard(key)
        for child in observation.jobs:
            self.children.put(key, child)
        for pod in observation.pods:
            self.pods.put(key, pod)

    def observation(self, key: Key) -> Observation | None:
        """Return the job as the watches reported it, or None if it is unknown or being deleted."""
        job = self.jobs.get(key)
        if job is None or job.deleting:
            return None
        return self.complete(Observation(job, self.children.by_job(key), self.pods.by_job(key), live=False))
