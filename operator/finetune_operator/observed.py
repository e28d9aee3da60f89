"""What the operator saw of a job and its children: API objects parsed once, at the border, into frozen values."""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic

from finetune_api import names
from finetune_api.reasons import FineTuneError
from finetune_api.resource import parse_spec, validate_name
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
    """A FineTuneJob. spec: parsed, or why it can't be. status_written_at: when we wrote status last."""

    key: Key
    uid: str
    generation: int
    resource_version: str
    created: datetime.datetime
    deleting: bool
    spec: FineTuneJobSpec | FineTuneError
    status: FineTuneJobStatus
    status_written_at: datetime.datetime | None


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

    job_uid: FineTuneJob that it was made for. started: its trainer container runs or has run. waiting: reason and message of
    what it waits for. deleted_at: when its deletion was asked for. disruption: what evicted it, for people.
    """

    name: str
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


@dataclasses.dataclass(frozen=True)
class Observation:
    """A FineTuneJob and everything that carries its label. refusal: why the Job controller creates no pods, if it said so."""

    job: JobRecord
    jobs: Sequence[ChildJob] = ()
    pods: Sequence[PodState] = ()
    refusal: str | None = None

    def job_of(self, attempt: int) -> ChildJob | None:
        """Our own Job of that attempt."""
        return next((child for child in self.own_jobs() if child.attempt == attempt), None)

    def own_jobs(self) -> list[ChildJob]:
        """The Jobs that this very FineTuneJob owns; not those of an earlier one of the same name."""
        return [child for child in self.jobs if child.owner is not None and child.owner.uid == self.job.uid]

    def pods_of(self, attempt: int) -> list[PodState]:
        """Our own pods of that attempt, by completion index."""
        pods = [pod for pod in self.pods if pod.job_uid == self.job.uid and pod.attempt == attempt and pod.owner is not None]
        return sorted(pods, key=lambda pod: pod.index)


def read_time(value: Any) -> datetime.datetime | None:
    """An RFC 3339 time of the API server or of a pod; None if it is none."""
    try:
        moment = datetime.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return moment.astimezone(datetime.UTC) if moment.tzinfo else None


def write_time(moment: datetime.datetime) -> str:
    """A time as metav1.Time has it."""
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time(value: Any) -> datetime.datetime:
    moment = read_time(value)
    assert moment is not None, f"the API server sent no time: {value!r}"
    return moment


def read_job(manifest: Manifest) -> JobRecord:
    """Parse a FineTuneJob; a spec that can't be parsed becomes the error that says why."""
    metadata = manifest["metadata"]
    spec: FineTuneJobSpec | FineTuneError
    try:
        validate_name(metadata["name"])
        spec = parse_spec(manifest.get("spec"))
    except FineTuneError as error:
        spec = error
    written = [
        entry.get("time")
        for entry in metadata.get("managedFields", ())
        if entry.get("manager") == names.FIELD_MANAGER and entry.get("subresource") == "status"
    ]
    return JobRecord(
        key=Key(metadata["namespace"], metadata["name"]),
        uid=metadata["uid"],
        generation=metadata.get("generation", 1),
        resource_version=metadata["resourceVersion"],
        created=_time(metadata["creationTimestamp"]),
        deleting="deletionTimestamp" in metadata,
        spec=spec,
        status=read_status(manifest.get("status") or {}),
        status_written_at=read_time(written[0]) if written else None,
    )


def read_status(status: Mapping[str, Any]) -> FineTuneJobStatus:
    """Parse a status; what another version wrote and this one does not know is left out, the rest counts."""
    try:
        return FineTuneJobStatus.model_validate(status)
    except pydantic.ValidationError as error:
        wrong = {item["loc"][0] for item in error.errors(include_url=False, include_input=False)}
        return FineTuneJobStatus.model_validate({name: value for name, value in status.items() if name not in wrong})


def read_owner(manifest: Manifest) -> Owner | None:
    """The controller of an object, if it has one."""
    for reference in manifest["metadata"].get("ownerReferences", ()):
        if reference.get("controller"):
            return Owner(reference["kind"], reference["name"], reference["uid"])
    return None


def _number(value: Any) -> int:
    return int(value) if isinstance(value, str) and value.isdecimal() else 0


def read_child_job(manifest: Manifest) -> ChildJob:
    """Parse a Job."""
    metadata = manifest["metadata"]
    true = {item["type"]: item for item in manifest.get("status", {}).get("conditions", ()) if item["status"] == "True"}
    return ChildJob(
        name=metadata["name"],
        uid=metadata["uid"],
        owner=read_owner(manifest),
        attempt=_number(metadata.get("labels", {}).get(names.LABEL_ATTEMPT)),
        size=manifest["spec"].get("completions", 1),
        deleting="deletionTimestamp" in metadata,
        complete="Complete" in true,
        ending="FailureTarget" in true or "Failed" in true,
        failed=true["Failed"].get("message", "") if "Failed" in true else None,
    )


def read_pod(manifest: Manifest) -> PodState:
    """Parse a pod."""
    metadata, status = manifest["metadata"], manifest.get("status", {})
    labels, annotations = metadata.get("labels", {}), metadata.get("annotations", {})
    containers = [item for item in status.get("containerStatuses", ()) if item["name"] == names.TRAINER_CONTAINER]
    state = containers[0].get("state", {}) if containers else {}
    conditions = {item["type"]: item for item in status.get("conditions", ())}
    disruption = conditions.get("DisruptionTarget", {})
    deleted_at = read_time(metadata.get("deletionTimestamp"))
    if deleted_at is not None:  # the API server writes when the grace period will be over
        deleted_at -= datetime.timedelta(seconds=metadata.get("deletionGracePeriodSeconds") or 0)
    return PodState(
        name=metadata["name"],
        owner=read_owner(manifest),
        job_uid=annotations.get(names.ANNOTATION_OWNER_UID),
        attempt=_number(labels.get(names.LABEL_ATTEMPT)),
        index=_number(annotations.get("batch.kubernetes.io/job-completion-index")),
        created=_time(metadata["creationTimestamp"]),
        node=manifest.get("spec", {}).get("nodeName"),
        address=status.get("podIP"),
        started="running" in state or "terminated" in state,
        waiting=_waiting(state, conditions),
        finished=_finished(metadata, status, state, conditions),
        deleted_at=deleted_at,
        disruption=f"{disruption.get('reason')}: {disruption.get('message')}" if disruption.get("status") == "True" else None,
    )


def _waiting(state: Mapping[str, Any], conditions: Mapping[str, Any]) -> tuple[str, str] | None:
    if "waiting" in state:
        return state["waiting"].get("reason", "Waiting"), state["waiting"].get("message", "")
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return scheduled.get("reason", "Unschedulable"), scheduled.get("message", "")
    return None


def _finished(
    metadata: Mapping[str, Any], status: Mapping[str, Any], state: Mapping[str, Any], conditions: Mapping[str, Any]
) -> Finished | None:
    if end := state.get("terminated"):
        at = read_time(end.get("finishedAt")) or _time(metadata["creationTimestamp"])
        return Finished(end["exitCode"], end.get("reason", ""), end.get("message", ""), at)
    if status.get("phase") == "Failed":  # evicted or refused by its kubelet: the container has no end of its own
        at = read_time(conditions.get("DisruptionTarget", {}).get("lastTransitionTime")) or _time(metadata["creationTimestamp"])
        return Finished(None, status.get("reason", ""), status.get("message", ""), at)
    return None
