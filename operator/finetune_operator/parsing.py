"""Parses the API server's objects. The rest of the operator uses only the parsed values."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_api import names
from finetune_api.model import parse_known
from finetune_api.reasons import FineTuneError
from finetune_api.resource import read_spec, validate_name
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_operator.observed import ChildJob, JobRecord, Key, Manifest, Owner, PodState, Terminated, Workload, read_time


def _require_time(value: Any) -> datetime.datetime:
    moment = read_time(value)
    assert moment is not None, f"the API server sent no time: {value!r}"
    return moment


def read_job(manifest: Manifest, known: JobRecord | None = None) -> JobRecord:
    """Parse a FineTuneJob. known: an earlier version of it, whose spec holds if the generation is the same."""
    metadata = manifest["metadata"]
    generation = metadata.get("generation", 1)
    same_spec = known is not None and (known.uid, known.generation) == (metadata["uid"], generation)
    written = [
        entry.get("time")
        for entry in metadata.get("managedFields", ())
        if entry.get("manager") == names.FIELD_MANAGER and entry.get("subresource") == "status"
    ]
    return JobRecord(
        key=Key(metadata["namespace"], metadata["name"]),
        uid=metadata["uid"],
        generation=generation,
        version=read_version(manifest),
        created=_require_time(metadata["creationTimestamp"]),
        deleting="deletionTimestamp" in metadata,
        spec=known.spec if known is not None and same_spec else _read_spec(manifest),
        status=parse_known(FineTuneJobStatus, manifest.get("status") or {}),
        status_written_at=read_time(written[0]) if written else None,
        kueue_labels=select_kueue_keys(metadata.get("labels")),
        kueue_annotations=select_kueue_keys(metadata.get("annotations")),
    )


def _read_spec(manifest: Manifest) -> FineTuneJobSpec | FineTuneError:
    """Parse the spec. If it is invalid, return the error that says why."""
    try:
        validate_name(manifest["metadata"]["name"])
        return read_spec(manifest.get("spec"))
    except FineTuneError as error:
        return error


def is_managed_elsewhere(manifest: Manifest) -> bool:
    """Return whether another controller runs this FineTuneJob. The operator must not touch it. This never changes."""
    return manifest.get("spec", {}).get("managedBy") not in (None, names.MANAGER)


def read_version(manifest: Manifest) -> int:
    """Return the resourceVersion, which grows with every write, or 0 if there is none."""
    version = manifest["metadata"].get("resourceVersion", "")
    return int(version) if version.isdecimal() else 0


def read_key(manifest: Manifest) -> Key:
    """Return namespace and name of a FineTuneJob."""
    return Key(manifest["metadata"]["namespace"], manifest["metadata"]["name"])


def read_child_key(manifest: Manifest) -> Key | None:
    """Return the FineTuneJob that a child's label names, or None."""
    job = manifest["metadata"].get("labels", {}).get(names.LABEL_JOB)
    return Key(manifest["metadata"]["namespace"], job) if job else None


def select_kueue_keys(mapping: Mapping[str, str] | None) -> Mapping[str, str]:
    """Return the labels or annotations of Kueue, which the operator copies to Jobs and pods."""
    return {key: value for key, value in (mapping or {}).items() if key.startswith(names.KUEUE_PREFIX)}


def read_owner(manifest: Manifest) -> Owner | None:
    """Return the FineTuneJob that owns an object, or else the controller of the object, or None if it has none.

    The Job of an attempt in a queue has both: its controller is the Job that holds the place in the queue.
    """
    references = manifest["metadata"].get("ownerReferences", ())
    for reference in sorted(references, key=lambda reference: reference["kind"] != names.KIND):
        if reference.get("controller") or reference["kind"] == names.KIND:
            return Owner(reference["kind"], reference["name"], reference["uid"])
    return None


def _controlling_job(manifest: Manifest) -> str | None:
    """Return the uid of the Job that controls an object, or None."""
    references = manifest["metadata"].get("ownerReferences", ())
    return next(
        (reference["uid"] for reference in references if reference.get("controller") and reference["kind"] == "Job"), None
    )


def _parse_int(value: Any) -> int:
    return int(value) if isinstance(value, str) and value.isdecimal() else 0


def read_child_job(manifest: Manifest) -> ChildJob:
    """Parse a Job."""
    metadata = manifest["metadata"]
    true_conditions = {
        item["type"]: item for item in manifest.get("status", {}).get("conditions", ()) if item["status"] == "True"
    }
    return ChildJob(
        name=metadata["name"],
        uid=metadata["uid"],
        owner=read_owner(manifest),
        attempt=_parse_int(metadata.get("labels", {}).get(names.LABEL_ATTEMPT)),
        completions=manifest["spec"].get("completions", 1),
        deleting="deletionTimestamp" in metadata,
        complete="Complete" in true_conditions,
        failing="FailureTarget" in true_conditions or "Failed" in true_conditions,
        failed=true_conditions["Failed"].get("message", "") if "Failed" in true_conditions else None,
        # A resumed Job counts as suspended until the Job controller has observed the change.
        suspended=bool(manifest["spec"].get("suspend")) or "Suspended" in true_conditions,
        started_at=read_time(manifest.get("status", {}).get("startTime")),
        queue=metadata.get("labels", {}).get(names.LABEL_KUEUE_QUEUE),
        queue_job=_controlling_job(manifest),
        active=manifest.get("status", {}).get("active", 0),
        requirements=metadata.get("annotations", {}).get(names.ANNOTATION_REQUIREMENTS),
        job_uid=_pod_annotations(manifest).get(names.ANNOTATION_OWNER_UID),
        version=read_version(manifest),
    )


def _pod_annotations(job: Manifest) -> Mapping[str, str]:
    annotations: Mapping[str, str] = job["spec"].get("template", {}).get("metadata", {}).get("annotations", {})
    return annotations


def read_pod(manifest: Manifest) -> PodState:
    """Parse a pod."""
    metadata, status = manifest["metadata"], manifest.get("status", {})
    labels, annotations = metadata.get("labels", {}), metadata.get("annotations", {})
    containers = [item for item in status.get("containerStatuses", ()) if item["name"] == names.TRAINER_CONTAINER]
    state = containers[0].get("state", {}) if containers else {}
    init_containers = status.get("initContainerStatuses", ())
    conditions = {item["type"]: item for item in status.get("conditions", ())}
    disruption = conditions.get("DisruptionTarget", {})
    deletion_timestamp = read_time(metadata.get("deletionTimestamp"))  # the end of the grace period
    grace = datetime.timedelta(seconds=metadata.get("deletionGracePeriodSeconds") or 0)
    return PodState(
        name=metadata["name"],
        uid=metadata["uid"],
        owner=read_owner(manifest),
        job_uid=annotations.get(names.ANNOTATION_OWNER_UID),
        attempt=_parse_int(labels.get(names.LABEL_ATTEMPT)),
        index=_parse_int(annotations.get("batch.kubernetes.io/job-completion-index")),
        created=_require_time(metadata["creationTimestamp"]),
        node=manifest.get("spec", {}).get("nodeName"),
        address=status.get("podIP"),
        started="running" in state or "terminated" in state,
        waiting=_waiting(state, init_containers, conditions),
        terminated=_terminated(metadata, status, state, conditions),
        deletion_requested_at=deletion_timestamp - grace if deletion_timestamp is not None else None,
        deletion_timestamp=deletion_timestamp,
        evicted=status.get("message", "") if status.get("reason") == "Evicted" else None,
        node_unreachable=bool(containers)
        and containers[0].get("ready", False)
        # A sidecar that is not ready makes the pod not ready, too. The kubelet then reports it here.
        and conditions.get("ContainersReady", {}).get("status") != "False"
        and conditions.get("Ready", {}).get("status") == "False",
        sidecar_running="terminated" in state and status.get("phase") not in ("Succeeded", "Failed"),
        started_at=_started_at(state),
        memory_limit=_memory_limit(manifest),
        version=read_version(manifest),
        disruption=f"{disruption.get('reason')}: {disruption.get('message')}" if disruption.get("status") == "True" else None,
    )


def _memory_limit(manifest: Manifest) -> str | None:
    for container in manifest.get("spec", {}).get("containers", ()):
        if container["name"] == names.TRAINER_CONTAINER:
            limit = container.get("resources", {}).get("limits", {}).get("memory")
            return str(limit) if limit is not None else None
    return None


def read_workload_key(manifest: Manifest) -> Key | None:
    """Return the FineTuneJob whose Job owns a Workload of Kueue, or None.

    It is the Job that holds the place in the queue, or that of an attempt which Kueue put into a queue by itself.
    """
    owner = read_owner(manifest)
    name, _, attempt = owner.name.rpartition("-") if owner is not None and owner.kind == "Job" else ("", "", "")
    return (
        Key(manifest["metadata"]["namespace"], name)
        if name and (attempt.isdecimal() or names.queue_job_name(name) == f"{name}-{attempt}")
        else None
    )


def read_workload(manifest: Manifest) -> Workload:
    """Parse a Workload of Kueue that a Job owns."""
    owner = read_owner(manifest)
    assert owner is not None
    conditions = {item["type"]: item for item in manifest.get("status", {}).get("conditions", ())}
    waiting = None
    for kind, value in (("Evicted", "True"), ("Admitted", "False"), ("QuotaReserved", "False")):  # the last one found counts
        if (condition := conditions.get(kind)) and condition["status"] == value:
            waiting = condition.get("reason") or "WaitingForQueue", condition.get("message") or "waiting in the queue"
    return Workload(manifest["metadata"]["name"], owner.uid, waiting, read_version(manifest))


def _started_at(state: Mapping[str, Any]) -> datetime.datetime | None:
    return read_time(state.get("running", state.get("terminated", {})).get("startedAt"))


def _waiting(
    state: Mapping[str, Any], init_containers: Sequence[Mapping[str, Any]], conditions: Mapping[str, Any]
) -> tuple[str, str] | None:
    if state.get("waiting", {}).get("reason") == "PodInitializing" and (found := _waiting_for(init_containers)) is not None:
        return found
    if "waiting" in state:
        return state["waiting"].get("reason", "Waiting"), state["waiting"].get("message", "")
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return scheduled.get("reason", "Unschedulable"), scheduled.get("message", "")
    return None


def _waiting_for(init_containers: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """Return reason and message of the init container for which the others wait."""
    for item in init_containers:
        state, container = item.get("state", {}), f"container {item['name']}"
        if "waiting" in state and state["waiting"].get("reason") != "PodInitializing":
            reason = state["waiting"].get("reason", "Waiting")
            return reason, f"{container}: {state['waiting'].get('message') or reason}"
        if "running" in state and not item.get("started"):  # a sidecar has started when it runs
            return "PodInitializing", f"{container} runs before the trainer"
    return None


def _terminated(
    metadata: Mapping[str, Any], status: Mapping[str, Any], state: Mapping[str, Any], conditions: Mapping[str, Any]
) -> Terminated | None:
    if end := state.get("terminated"):
        at = read_time(end.get("finishedAt")) or _require_time(metadata["creationTimestamp"])
        return Terminated(end["exitCode"], end.get("reason", ""), end.get("message", ""), at)
    for item in status.get("initContainerStatuses", ()):
        end = item.get("state", {}).get("terminated")
        if status.get("phase") == "Failed" and status.get("reason") is None and end and end["exitCode"] != 0:
            at = read_time(end.get("finishedAt")) or _require_time(metadata["creationTimestamp"])
            return Terminated(end["exitCode"], end.get("reason", ""), "", at, init_container=item["name"])
    if status.get("phase") == "Failed":  # evicted or refused by its kubelet: the container has no state "terminated"
        at = read_time(conditions.get("DisruptionTarget", {}).get("lastTransitionTime")) or _require_time(
            metadata["creationTimestamp"]
        )
        return Terminated(None, status.get("reason", ""), status.get("message", ""), at)
    return None
