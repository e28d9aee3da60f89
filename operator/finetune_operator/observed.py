"""The observed state of a job and its children, as frozen values. ``parsing`` creates them from the API server's objects."""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_api.reasons import FineTuneError
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus

# An object of the API server as JSON.
Manifest = dict[str, Any]


@dataclasses.dataclass(frozen=True, order=True)
class Key:
    """Namespace and name of a FineTuneJob. The work queue holds keys."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclasses.dataclass(frozen=True)
class JobRecord:
    """A FineTuneJob.

    version: the resourceVersion. It grows with every write. spec: the parsed spec, or the error that says why it can't be
    parsed. status_written_at: when the operator last wrote the status. kueue_labels, kueue_annotations: those of Kueue, which
    the operator copies to Jobs and pods.
    """

    key: Key
    uid: str
    generation: int
    version: int
    created: datetime.datetime
    deleting: bool
    spec: FineTuneJobSpec | FineTuneError
    status: FineTuneJobStatus
    status_written_at: datetime.datetime | None
    kueue_labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    kueue_annotations: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def should_delete_output_claim(self) -> bool:
        """Return whether to delete the job's own volume: the spec asks for it, the job succeeded, and the model is on the Hub."""
        if isinstance(self.spec, FineTuneError) or self.spec.output.claim is not None or self.spec.output.retention is None:
            return False
        wanted = self.spec.output.retention.when_finished == "Delete"
        return wanted and self.status.phase == "Succeeded" and self.status.published is not None


@dataclasses.dataclass(frozen=True)
class Owner:
    """The controller of an object, as its owner reference names it."""

    kind: str
    name: str
    uid: str


@dataclasses.dataclass(frozen=True)
class ChildJob:
    """A Job with our label.

    completions: the number of its pods. complete: all pods succeeded. failing: it has failed, and the Job controller deletes
    its other pods. failed: the message of its Failed condition, or None. suspended: something, usually Kueue, suspends it.
    started_at: when it started or was last resumed. job_uid: uid of the FineTuneJob that it was created for.
    queue: the queue of Kueue that its label names. Kueue adds the label in a namespace with a default queue.
    queue_job: uid of the Job that holds the place in the queue, if this one belongs to it.
    active, requirements: of that Job, which has the attempt 0: the number of pods that it reports, a digest of what it asks for.
    """

    name: str
    uid: str
    owner: Owner | None
    attempt: int
    completions: int
    deleting: bool
    complete: bool
    failing: bool
    failed: str | None
    suspended: bool = False
    started_at: datetime.datetime | None = None
    job_uid: str | None = None
    queue: str | None = None
    queue_job: str | None = None
    active: int = 0
    requirements: str | None = None
    version: int = 0


@dataclasses.dataclass(frozen=True)
class Terminated:
    """How a pod's trainer container ended. exit_code: None if the pod failed before the container ran.

    init_container: the container that failed, if the trainer did not start for that reason. exit_code and reason are its own.
    """

    exit_code: int | None
    reason: str
    message: str
    at: datetime.datetime
    init_container: str | None = None


@dataclasses.dataclass(frozen=True)
class PodState:
    """A pod with our label.

    job_uid: uid of the FineTuneJob that it belongs to.
    started: whether its trainer container runs or has run. started_at: since when, if the kubelet reported it.
    waiting: reason and message of what it waits for.
    deletion_requested_at: when its deletion was requested. deletion_timestamp: the end of its grace period.
    disruption: why the cluster removed it: a reason in one word, a colon, and a message.
    evicted: the message of the kubelet, if the kubelet ended it because the node ran short of a resource.
    probe_failure: the message of the kubelet, if its probe failed. Read only for pods that were killed without a report.
    node_unreachable: its containers are ready but the pod is not. The node controller sets this if a node does not answer.
    sidecar_running: its trainer has ended, but another container still runs.
    memory_limit: of its trainer container, as it is written in the pod; a LimitRange may have set it.
    """

    name: str
    uid: str
    owner: Owner | None
    job_uid: str | None
    attempt: int
    index: int
    created: datetime.datetime
    node: str | None
    address: str | None
    started: bool
    waiting: tuple[str, str] | None
    terminated: Terminated | None
    deletion_requested_at: datetime.datetime | None
    disruption: str | None
    started_at: datetime.datetime | None = None
    deletion_timestamp: datetime.datetime | None = None
    evicted: str | None = None
    node_unreachable: bool = False
    sidecar_running: bool = False
    probe_failure: str | None = None
    memory_limit: str | None = None
    version: int = 0

    @property
    def disruption_reason(self) -> str | None:
        """Return the reason of its DisruptionTarget condition, such as EvictionByEvictionAPI."""
        return self.disruption.partition(":")[0] if self.disruption is not None else None

    @property
    def can_answer(self) -> bool:
        """Return whether it runs and has an address, so that its launcher should answer."""
        return self.started and self.terminated is None and self.deletion_requested_at is None and bool(self.address)

    @property
    def kubelet_unreachable(self) -> bool:
        """Return whether no kubelet can end it. Its node does not answer, or became unreachable before the pod started."""
        return self.node_unreachable or (self.disruption_reason == "DeletionByTaintManager" and not self.started)

    def ended_before(self, moment: datetime.datetime) -> bool:
        """Return whether it had ended, or its deletion had been requested, before that time."""
        ends = [self.deletion_requested_at, self.terminated.at if self.terminated is not None else None]
        return any(end is not None and end < moment for end in ends)

    @property
    def only_finalizers_left(self) -> bool:
        """Return whether the API server keeps it only because of its finalizers.

        Then its grace period is zero: its kubelet reported that all containers have ended, or it was deleted by force. The Job
        controller removes its own finalizer within moments, or gives up for ever if a webhook refuses the request.
        """
        return self.deletion_timestamp is not None and self.deletion_timestamp == self.deletion_requested_at


@dataclasses.dataclass(frozen=True)
class Workload:
    """What Kueue says about a Job. job_uid: uid of the Job. waiting: why it is suspended, as reason and message, or None."""

    name: str
    job_uid: str
    waiting: tuple[str, str] | None
    version: int = 0


@dataclasses.dataclass(frozen=True)
class CreatedAttempt:
    """An attempt of which this process created all children.

    job_uid: uid of the FineTuneJob. generation: of its spec. created_at: when its Job was created. image: the image of its pods.
    nodes: the number of its pods.
    """

    job_uid: str
    generation: int
    attempt: int
    created_at: datetime.datetime
    image: str
    nodes: int


@dataclasses.dataclass(frozen=True)
class Observation:
    """A FineTuneJob and all objects with its label.

    live: whether it was read from the API server for this reconcile. An observation from the store can't show that an object does
    not exist.
    refusal: why the Job controller creates no pods, if it reported that.
    refusal_checked: whether an observation from the store includes the refusal, read live.
    queueing: reason and message of Kueue for a Job that it suspends, if a watch reported them.
    output_claim: uid of the job's own output claim, if the operator looked for it.
    created_attempt: the newest attempt of which this process created all children.
    silent: names of the pods that have not answered the operator for some time.
    terminated_pods: the last state of pods that are gone. An operator that has just started knows none.
    """

    job: JobRecord
    jobs: Sequence[ChildJob] = ()
    pods: Sequence[PodState] = ()
    refusal: str | None = None
    refusal_checked: bool = False
    live: bool = True
    queueing: tuple[str, str] | None = None
    output_claim: str | None = None
    created_attempt: CreatedAttempt | None = None
    silent: frozenset[str] = frozenset()
    terminated_pods: Sequence[PodState] = ()

    def job_of(self, attempt: int) -> ChildJob | None:
        """Return our own Job of that attempt."""
        return next((child for child in self.own_jobs() if child.attempt == attempt), None)

    def own_jobs(self) -> list[ChildJob]:
        """Return the attempts' Jobs that this FineTuneJob owns, but not those of an earlier one with the same name."""
        return [child for child in self._owned() if child.attempt]

    def queue_job(self) -> ChildJob | None:
        """Return the Job that holds the place in the queue."""
        return next((child for child in self._owned() if not child.attempt), None)

    def _owned(self) -> list[ChildJob]:
        return [child for child in self.jobs if child.owner is not None and child.owner.uid == self.job.uid]

    def own_pods(self) -> list[PodState]:
        """Return the pods that were created for this FineTuneJob, in any attempt."""
        return [pod for pod in self.pods if pod.job_uid == self.job.uid]

    def pods_of(self, attempt: int) -> list[PodState]:
        """Return our own pods of that attempt, by completion index. Omit those that ended before its Job was last resumed."""
        child = self.job_of(attempt)
        since = child.started_at if child is not None else None
        pods = [
            pod
            for pod in self.pods
            if pod.job_uid == self.job.uid
            and pod.attempt == attempt
            and pod.owner is not None
            and (child is None or pod.owner.uid == child.uid)
            # The end of a new pod may seem to be earlier, because the clock of its node may be behind.
            and (since is None or pod.created >= since or not pod.ended_before(since))
        ]
        return sorted(pods, key=lambda pod: pod.index)


# strftime writes earlier years with fewer than four digits, which RFC 3339 does not allow.
_MIN_YEAR = 1000


def read_time(value: Any) -> datetime.datetime | None:
    """Parse an RFC 3339 time of the API server or of a pod. Return None if it is invalid or ``write_time`` can't write it."""
    try:
        moment = datetime.datetime.fromisoformat(value)
        utc = moment.astimezone(datetime.UTC)
    except (TypeError, ValueError, OverflowError):
        return None
    return utc if moment.tzinfo and utc.year >= _MIN_YEAR else None


def write_time(moment: datetime.datetime) -> str:
    """Return a time in the format of metav1.Time."""
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
