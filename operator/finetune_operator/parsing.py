"""The API server's objects, parsed once, at the border."""

import datetime
from collections.abc import Mapping
from typing import Any

import pydantic

from finetune_api import names
from finetune_api.reasons import FineTuneError
from finetune_api.resource import read_spec, validate_name
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_operator.observed import ChildJob, Finished, JobRecord, Key, Manifest, Owner, PodState, read_time


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
        spec = read_spec(manifest.get("spec"))
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
        version=read_version(manifest),
        created=_time(metadata["creationTimestamp"]),
        deleting="deletionTimestamp" in metadata,
        spec=spec,
        status=read_status(manifest.get("status") or {}),
        status_written_at=read_time(written[0]) if written else None,
        kueue_labels=of_kueue(metadata.get("labels")),
        kueue_annotations=of_kueue(metadata.get("annotations")),
    )


def read_version(manifest: Manifest) -> int:
    """The resourceVersion, which grows with every write; 0 if the server gave none."""
    version = manifest["metadata"].get("resourceVersion", "")
    return int(version) if version.isdecimal() else 0


def read_key(manifest: Manifest) -> Key:
    """Namespace and name of a FineTuneJob."""
    return Key(manifest["metadata"]["namespace"], manifest["metadata"]["name"])


def read_child_key(manifest: Manifest) -> Key | None:
    """The FineTuneJob that a child's label names."""
    job = manifest["metadata"].get("labels", {}).get(names.LABEL_JOB)
    return Key(manifest["metadata"]["namespace"], job) if job else None


def of_kueue(mapping: Mapping[str, str] | None) -> Mapping[str, str]:
    """The labels or annotations that go on to Jobs and pods."""
    return {key: value for key, value in (mapping or {}).items() if key.startswith(names.KUEUE_PREFIX)}


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
        # Let go on, it is held back until its controller has seen that.
        suspended=bool(manifest["spec"].get("suspend")) or "Suspended" in true,
        started_at=read_time(manifest.get("status", {}).get("startTime")),
        version=read_version(manifest),
    )


def read_pod(manifest: Manifest) -> PodState:
    """Parse a pod."""
    metadata, status = manifest["metadata"], manifest.get("status", {})
    labels, annotations = metadata.get("labels", {}), metadata.get("annotations", {})
    containers = [item for item in status.get("containerStatuses", ()) if item["name"] == names.TRAINER_CONTAINER]
    state = containers[0].get("state", {}) if containers else {}
    conditions = {item["type"]: item for item in status.get("conditions", ())}
    disruption = conditions.get("DisruptionTarget", {})
    due_at = read_time(metadata.get("deletionTimestamp"))  # the API server writes when the grace period will be over
    grace = datetime.timedelta(seconds=metadata.get("deletionGracePeriodSeconds") or 0)
    return PodState(
        name=metadata["name"],
        uid=metadata["uid"],
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
        deleted_at=due_at - grace if due_at is not None else None,
        due_at=due_at,
        evicted=status.get("message", "") if status.get("reason") == "Evicted" else None,
        silent=bool(containers) and containers[0].get("ready", False) and conditions.get("Ready", {}).get("status") == "False",
        lingers="terminated" in state and status.get("phase") not in ("Succeeded", "Failed"),
        started_at=_started_at(state),
        version=read_version(manifest),
        disruption=f"{disruption.get('reason')}: {disruption.get('message')}" if disruption.get("status") == "True" else None,
    )


def _started_at(state: Mapping[str, Any]) -> datetime.datetime | None:
    return read_time(state.get("running", state.get("terminated", {})).get("startedAt"))


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
