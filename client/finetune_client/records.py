"""The API server's objects, parsed once, at the border. Fields of a later version are left out, the rest counts."""

import contextlib
import copy
import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

import pydantic

from finetune_api import names
from finetune_api.reasons import FineTuneError
from finetune_api.resource import read_spec
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FINAL_PHASES, FineTuneJobStatus
from finetune_client.place import HERE, Place

_INDEX = "batch.kubernetes.io/job-completion-index"


@dataclasses.dataclass(frozen=True)
class JobRecord:
    """A FineTuneJob as it was when it was asked for. spec: None where it can't be read. manifest: all of it.

    place: what a command that is printed needs besides the name.
    """

    namespace: str
    name: str
    uid: str
    created: datetime.datetime
    spec: FineTuneJobSpec | None
    status: FineTuneJobStatus
    manifest: Mapping[str, Any]
    place: Place = HERE

    @property
    def phase(self) -> str:
        """The phase; Pending before the operator has seen the job."""
        return self.status.phase or "Pending"

    @property
    def finished(self) -> bool:
        """Whether the job has ended, one way or the other."""
        return self.status.phase in FINAL_PHASES

    @property
    def suspended(self) -> bool:
        """What spec.suspend says."""
        return bool(self.manifest.get("spec", {}).get("suspend"))


@dataclasses.dataclass(frozen=True)
class PodRecord:
    """A training pod. index: its place in the gang. state: one word, as of `kubectl get pods`. message: why it waits or ended."""

    name: str
    attempt: int
    index: int
    node: str | None
    state: str
    message: str
    exit_code: int | None
    created: datetime.datetime
    manifest: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        """Whether its container will not run again."""
        return self.manifest.get("status", {}).get("phase") in ("Succeeded", "Failed")

    @property
    def running(self) -> bool:
        """Whether its container runs."""
        return self.state == "Running"


@dataclasses.dataclass(frozen=True)
class EventRecord:
    """Something that happened to a FineTuneJob."""

    uid: str
    time: datetime.datetime
    type: str
    reason: str
    message: str


def read_time(value: Any) -> datetime.datetime | None:
    """A time of the API server, None for no time."""
    try:
        return datetime.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None


def _time(*values: Any) -> datetime.datetime:
    """The first that is one."""
    moments = (read_time(value) for value in values)
    return next((moment for moment in moments if moment is not None), datetime.datetime.fromtimestamp(0, datetime.UTC))


def read_status(status: Mapping[str, Any]) -> FineTuneJobStatus:
    """Parse a status; a field that is unknown here, or whose value is, is one of a later version and left out."""
    known = copy.deepcopy(dict(status))
    while True:
        try:
            return FineTuneJobStatus.model_validate(known, by_alias=True, by_name=False)
        except pydantic.ValidationError as error:
            for item in error.errors(include_url=False, include_input=False, include_context=False):
                # Without a field that it needs, or with a wrong one in it, a block is not what this version takes it for.
                _remove(known, item["loc"] if item["type"] == "extra_forbidden" else item["loc"][:1])


def _remove(node: Any, location: tuple[str | int, ...]) -> None:
    *parents, last = location
    with contextlib.suppress(KeyError):  # its block has gone already
        for part in parents:
            node = node[part]
        del node[last]


def read_job(manifest: Mapping[str, Any], place: Place = HERE) -> JobRecord:
    """Parse a FineTuneJob."""
    metadata = manifest["metadata"]
    try:
        spec = read_spec(manifest.get("spec"))
    except FineTuneError:
        spec = None
    return JobRecord(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        created=_time(metadata.get("creationTimestamp")),
        spec=spec,
        status=read_status(manifest.get("status") or {}),
        manifest=manifest,
        place=place,
    )


def read_pod(manifest: Mapping[str, Any]) -> PodRecord:
    """Parse a pod."""
    metadata, status = manifest["metadata"], manifest.get("status", {})
    state, message, exit_code = _container_state(status)
    if "deletionTimestamp" in metadata and state in ("Running", "Pending"):
        state = "Terminating"
    return PodRecord(
        name=metadata["name"],
        attempt=_number(metadata.get("labels", {}).get(names.LABEL_ATTEMPT)),
        index=_number(metadata.get("annotations", {}).get(_INDEX)),
        node=manifest.get("spec", {}).get("nodeName"),
        state=state,
        message=" ".join(message.split()),
        exit_code=exit_code,
        created=_time(metadata.get("creationTimestamp")),
        manifest=manifest,
    )


def _container_state(status: Mapping[str, Any]) -> tuple[str, str, int | None]:
    """State, message and exit code of a pod's only container."""
    containers = status.get("containerStatuses") or ()
    state = containers[0].get("state", {}) if containers else {}
    if end := state.get("terminated"):
        # The message of a trainer is its report, for the operator; the status of the job says the same for people.
        return end.get("reason") or "Ended", "", end.get("exitCode")
    if waits := state.get("waiting"):
        return waits.get("reason") or "Waiting", waits.get("message") or "", None
    if "running" in state:
        return "Running", "", None
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return condition.get("reason") or "Pending", condition.get("message") or "", None
    return status.get("reason") or status.get("phase") or "Pending", status.get("message") or "", None


def _number(value: Any) -> int:
    return int(value) if isinstance(value, str) and value.isdecimal() else 0


def read_event(manifest: Mapping[str, Any]) -> EventRecord:
    """Parse an event."""
    series = manifest.get("series") or {}
    return EventRecord(
        uid=f"{manifest['metadata']['uid']}/{manifest.get('count') or series.get('count') or 1}",
        time=_time(
            series.get("lastObservedTime"),
            manifest.get("lastTimestamp"),
            manifest.get("eventTime"),
            manifest["metadata"].get("creationTimestamp"),
        ),
        type=manifest.get("type") or "Normal",
        reason=manifest.get("reason") or "",
        message=" ".join(str(manifest.get("message") or "").split()),
    )
