"""Parse the API server's objects into typed records. Fields of a later version are left out."""

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

from finetune_api import names
from finetune_api.model import parse_known
from finetune_api.reasons import FineTuneError
from finetune_api.resource import read_spec
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FINAL_PHASES, FineTuneJobStatus
from finetune_client.config_flags import NO_FLAGS, ConfigFlags

_INDEX = "batch.kubernetes.io/job-completion-index"


@dataclasses.dataclass(frozen=True)
class JobRecord:
    """A FineTuneJob at the time of the request.

    spec: None if this version can't read it. manifest: the whole object. flags: the flags that a printed command needs
    in addition to the name.
    """

    namespace: str
    name: str
    uid: str
    created: datetime.datetime
    spec: FineTuneJobSpec | None
    status: FineTuneJobStatus
    manifest: Mapping[str, Any]
    flags: ConfigFlags = NO_FLAGS

    @property
    def phase(self) -> str:
        """The phase; Pending if the operator has not set one yet."""
        return self.status.phase or "Pending"

    @property
    def finished(self) -> bool:
        """Whether the job has succeeded or failed."""
        return self.status.phase in FINAL_PHASES

    @property
    def suspended(self) -> bool:
        """The value of spec.suspend."""
        return bool(self.manifest.get("spec", {}).get("suspend"))


@dataclasses.dataclass(frozen=True)
class PodRecord:
    """A training pod.

    index: its completion index in the Job. state: one word, as in the column STATUS of `kubectl get pods`. message: why
    it waits or ended.
    """

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
        """Whether the pod has ended for good."""
        return self.manifest.get("status", {}).get("phase") in ("Succeeded", "Failed")

    @property
    def running(self) -> bool:
        """Whether its container runs."""
        return self.state == "Running"


@dataclasses.dataclass(frozen=True)
class EventRecord:
    """An event of a FineTuneJob."""

    uid: str
    time: datetime.datetime
    type: str
    reason: str
    message: str


def read_time(value: Any) -> datetime.datetime | None:
    """Parse a timestamp of the API server; None if it is not one."""
    try:
        return datetime.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None


def _first_time(*values: Any) -> datetime.datetime:
    """Return the first value that is a timestamp; 1970-01-01 if none is."""
    moments = (read_time(value) for value in values)
    return next((moment for moment in moments if moment is not None), datetime.datetime.fromtimestamp(0, datetime.UTC))


def read_job(manifest: Mapping[str, Any], flags: ConfigFlags = NO_FLAGS) -> JobRecord:
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
        created=_first_time(metadata.get("creationTimestamp")),
        spec=spec,
        status=parse_known(FineTuneJobStatus, manifest.get("status") or {}),
        manifest=manifest,
        flags=flags,
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
        created=_first_time(metadata.get("creationTimestamp")),
        manifest=manifest,
    )


def _container_state(status: Mapping[str, Any]) -> tuple[str, str, int | None]:
    """Return the state, message and exit code of a pod's first container."""
    containers = status.get("containerStatuses") or ()
    state = containers[0].get("state", {}) if containers else {}
    if end := state.get("terminated"):
        # The termination message of a trainer is a report for the operator. The status of the job shows it in sentences.
        return end.get("reason") or "Ended", "", end.get("exitCode")
    if waiting := state.get("waiting"):
        return waiting.get("reason") or "Waiting", waiting.get("message") or "", None
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
        time=_first_time(
            series.get("lastObservedTime"),
            manifest.get("lastTimestamp"),
            manifest.get("eventTime"),
            manifest["metadata"].get("creationTimestamp"),
        ),
        type=manifest.get("type") or "Normal",
        reason=manifest.get("reason") or "",
        message=" ".join(str(manifest.get("message") or "").split()),
    )
