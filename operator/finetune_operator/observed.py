"""What the operator saw of a job and its children, as frozen values. ``parsing`` makes them of the API server's objects."""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_api.reasons import FineTuneError
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus

# An object of the API server, as its JSON has it.
Manifest = dict[str, Any]


@dataclasses.dataclass(frozen=True, order=True)
class Key:
    """Namespace and name of a FineTuneJob: what the queue holds."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclasses.dataclass(frozen=True)
class JobRecord:
    """A FineTuneJob. spec: parsed, or why it can't be. status_written_at: when we wrote status last.

    version: the resourceVersion; of two records the larger is the later. kueue_labels, kueue_annotations: those that belong to
    Kueue and go on to Jobs and pods.
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

    def gives_volume_back(self) -> bool:
        """Whether the job's own volume is to go: it said so, it is through, and the model is on the Hub."""
        if isinstance(self.spec, FineTuneError) or self.spec.output.claim is not None or self.spec.output.retention is None:
            return False
        wanted = self.spec.output.retention.when_finished == "Delete"
        return wanted and self.status.phase == "Succeeded" and self.status.published is not None


@dataclasses.dataclass(frozen=True)
class Owner:
    """The controller of an object."""

    kind: str
    name: str
    uid: str


@dataclasses.dataclass(frozen=True)
class ChildJob:
    """A Job that carries our label.

    size: pods that it is to have. failed: its final condition's message. ending: it is deleting its other pods already.
    suspended: somebody, as a rule Kueue, holds it back. started_at: when it was started, or last let go on.
    """

    name: str
    uid: str
    owner: Owner | None
    attempt: int
    size: int
    deleting: bool
    complete: bool
    ending: bool
    failed: str | None
    suspended: bool = False
    started_at: datetime.datetime | None = None
    version: int = 0


@dataclasses.dataclass(frozen=True)
class Finished:
    """The end of a pod's trainer container. exit_code: None if the pod failed before the container ran."""

    exit_code: int | None
    reason: str
    message: str
    at: datetime.datetime


@dataclasses.dataclass(frozen=True)
class PodState:
    """A pod that carries our label.

    job_uid: FineTuneJob that it was made for. started: its trainer container runs or has run; started_at: since when, where
    the kubelet said so. waiting: reason and message of what it waits for. deleted_at: when its deletion was asked for; due_at:
    when it is to be gone, its grace period being over. disruption: what took it away: a reason in one word, a colon, and a text
    for people. evicted: why its kubelet ended it, when its machine ran short of something. silent: its kubelet left its container
    ready, while the pod is not: the node controller says so of a machine that does not answer. lingers: its trainer has ended,
    and another container, which somebody else has put there, goes on.
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
    finished: Finished | None
    deleted_at: datetime.datetime | None
    disruption: str | None
    started_at: datetime.datetime | None = None
    due_at: datetime.datetime | None = None
    evicted: str | None = None
    silent: bool = False
    lingers: bool = False
    version: int = 0

    @property
    def disruption_reason(self) -> str | None:
        """Who evicted it, in one word of Kubernetes."""
        return self.disruption.partition(":")[0] if self.disruption is not None else None

    @property
    def unreachable(self) -> bool:
        """Whether nobody is there who would end it: its machine does not answer, or it was taken away before the pod started."""
        return self.silent or (self.disruption_reason == "DeletionByTaintManager" and not self.started)

    def was_over_before(self, moment: datetime.datetime) -> bool:
        """Whether it had ended, or was asked to, by then."""
        ends = [self.deleted_at, self.finished.at if self.finished is not None else None]
        return any(end is not None and end < moment for end in ends)

    @property
    def is_remnant(self) -> bool:
        """Whether the API server has let it go but for its finalizers.

        So it is once nothing is left of a grace period: its kubelet said that all has ended, or somebody deleted it by force.
        The Job controller takes its finalizer off within moments, or gives up for ever if a webhook of somebody else refuses it.
        """
        return self.due_at is not None and self.due_at == self.deleted_at


@dataclasses.dataclass(frozen=True)
class Whole:
    """An attempt of which this very process created all children. at: creation of its Job. image, nodes: of its pods."""

    attempt: int
    at: datetime.datetime
    image: str
    nodes: int


@dataclasses.dataclass(frozen=True)
class Observation:
    """A FineTuneJob and everything that carries its label.

    live: read from the API server for this turn, and not from what the watches told; only then may a decision rest on something
    not being there. refusal: why the Job controller creates no pods, if it said so and
    was asked_why, which a live look includes. queueing: reason and message of Kueue for a
    Job that it holds back. output_claim: uid of the job's own output claim, where it was looked for. whole: the newest attempt
    that is known to have all its children. silent_seconds: for how long the pod with index 0 has not answered, though asked.
    departed: pods that are gone, as the watch told of their end: a courtesy, which an operator that just started has not.
    """

    job: JobRecord
    jobs: Sequence[ChildJob] = ()
    pods: Sequence[PodState] = ()
    refusal: str | None = None
    asked_why: bool = False
    live: bool = True
    queueing: tuple[str, str] | None = None
    output_claim: str | None = None
    whole: Whole | None = None
    silent_seconds: float = 0.0
    departed: Sequence[PodState] = ()

    def job_of(self, attempt: int) -> ChildJob | None:
        """Our own Job of that attempt."""
        return next((child for child in self.own_jobs() if child.attempt == attempt), None)

    def own_jobs(self) -> list[ChildJob]:
        """The Jobs that this very FineTuneJob owns; not those of an earlier one of the same name."""
        return [child for child in self.jobs if child.owner is not None and child.owner.uid == self.job.uid]

    def left_pods(self) -> list[PodState]:
        """The pods that were made for this very FineTuneJob, of whichever attempt."""
        return [pod for pod in self.pods if pod.job_uid == self.job.uid]

    def pods_of(self, attempt: int) -> list[PodState]:
        """Our own pods of that attempt, by completion index; of a Job that was held back and let go on, the new ones only."""
        child = self.job_of(attempt)
        since = child.started_at if child is not None else None
        pods = [
            pod
            for pod in self.pods
            if pod.job_uid == self.job.uid
            and pod.attempt == attempt
            and pod.owner is not None
            and (child is None or pod.owner.uid == child.uid)
            # Its end is told by its machine's clock, which may be behind.
            and (since is None or pod.created >= since or not pod.was_over_before(since))
        ]
        return sorted(pods, key=lambda pod: pod.index)


# Years before are written with less than four digits, which RFC 3339 does not know.
_FIRST_YEAR = 1000


def read_time(value: Any) -> datetime.datetime | None:
    """An RFC 3339 time of the API server or of a pod; None if it is none, or one that could not be written as such."""
    try:
        moment = datetime.datetime.fromisoformat(value)
        utc = moment.astimezone(datetime.UTC)
    except (TypeError, ValueError, OverflowError):
        return None
    return utc if moment.tzinfo and utc.year >= _FIRST_YEAR else None


def write_time(moment: datetime.datetime) -> str:
    """A time as metav1.Time has it."""
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
