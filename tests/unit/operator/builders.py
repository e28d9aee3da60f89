"""Builders of observations for tests of the policy, and of API objects for tests of the code that reads them."""

import datetime
import json
from typing import Any

from finetune_api import names
from finetune_api.resource import parse_spec
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Attempt, Bookkeeping, FineTuneJobStatus, Resolved, Restarts
from finetune_operator.observed import ChildJob, JobRecord, Key, Manifest, Observation, Owner, PodState, Terminated, write_time
from finetune_operator.parsing import read_job
from finetune_operator.policy.conditions import complete_conditions

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
UID = "11111111-aaaa"
KEY = Key("team", "news")
IMAGE = "trainer:1"


def ago(seconds: float) -> datetime.datetime:
    return NOW - datetime.timedelta(seconds=seconds)


def spec_fields(**changes: Any) -> dict[str, Any]:
    """Return the spec of a job of two nodes, with the field names of a manifest."""
    return {
        "task": "text-classification",
        "model": {"hub": {"name": "a/b"}},
        "datasets": [{"hub": {"name": "c/d"}}],
        "distributed": {"nodes": 2},
        **changes,
    }


def build_spec(**changes: Any) -> FineTuneJobSpec:
    return parse_spec(spec_fields(**changes))


def build_record(
    status: FineTuneJobStatus | None = None, spec: Any = None, written: float | None = 60, **changes: Any
) -> JobRecord:
    values = {
        "key": KEY,
        "uid": UID,
        "generation": 1,
        "version": 7,
        "created": ago(100),
        "deleting": False,
        "spec": spec if spec is not None else build_spec(),
        "status": status or FineTuneJobStatus(),
        "status_written_at": ago(written) if written is not None else None,
        **changes,
    }
    return JobRecord(**values)


def build_child(attempt: int = 1, **changes: Any) -> ChildJob:
    values = {
        "name": names.attempt_name("news", attempt),
        "uid": f"job-{attempt}",
        "owner": Owner(names.KIND, "news", UID),
        "attempt": attempt,
        "completions": 2,
        "deleting": False,
        "complete": False,
        "failing": False,
        "failed": None,
        **changes,
    }
    return ChildJob(**values)


def build_pod(index: int = 0, attempt: int = 1, **changes: Any) -> PodState:
    values = {
        "name": f"news-{attempt}-{index}-x",
        "uid": f"pod-{attempt}-{index}",
        "owner": Owner("Job", names.attempt_name("news", attempt), f"job-{attempt}"),
        "job_uid": UID,
        "attempt": attempt,
        "index": index,
        "created": ago(60),
        "node": f"node-{index}",
        "address": f"10.0.0.{index + 1}",
        "started": True,
        "waiting": None,
        "terminated": None,
        "deletion_requested_at": None,
        "disruption": None,
        **changes,
    }
    return PodState(**values)


def end(exit_code: int | None, seconds_ago: float = 10, reason: str = "Error", **report: Any) -> Terminated:
    """Return the state of a terminated container. Keyword arguments are the fields of the Report in its termination message."""
    message = json.dumps({"attempt": 1, **report}) if report else ""
    return Terminated(exit_code, reason, message, ago(seconds_ago))


def failed_with(reason: str, exit_code: int = 1, seconds_ago: float = 10, **failure: Any) -> Terminated:
    """Return the state of a terminated container whose report has the reason of its failure."""
    reported = {"reason": reason, "message": f"message of {reason}", **failure}
    return end(exit_code, seconds_ago, phase="Failed", failure=reported)


def observe(*pods: PodState, status: FineTuneJobStatus | None = None, **changes: Any) -> Observation:
    """Return the observation of a job of two nodes in its first attempt."""
    default = FineTuneJobStatus(phase="Running", reason="Training", attempt=1)
    values = {"job": build_record(status or default), "jobs": [build_child()], "pods": list(pods), **changes}
    return Observation(**values)


def running(seconds: float = 60, attempt: int = 1, **changes: Any) -> FineTuneJobStatus:
    """Return the status of a job whose current attempt has run for ``seconds`` and was created 10 s earlier.

    running_since, counted, placed_pods: fields of the bookkeeping.
    """
    notes = {
        "running_since": changes.pop("running_since", write_time(ago(seconds))),
        "restarts_count_towards_max": changes.pop("counted", 0),
        "placed_pods": changes.pop("placed_pods", None),
    }
    values = {
        "observed_generation": 1,
        "phase": "Running",
        "reason": "Training",
        "message": "training on 2 nodes",
        "attempt": attempt,
        "attempts": [Attempt(number=attempt, start_time=write_time(ago(seconds + 10)), nodes=2)],
        "restarts": Restarts(),
        "resolved": Resolved(image=IMAGE),
        "bookkeeping": Bookkeeping(**notes),
        "start_time": write_time(ago(seconds + 10)),
        **changes,
    }
    return FineTuneJobStatus(**values)


def true_conditions(status: FineTuneJobStatus) -> list[str]:
    """Return the conditions that are true at the write of this status, without those that sum up the others."""
    completed = complete_conditions(build_record(status), status, NOW)
    summaries = ("Ready", "Reconciling", "Running", "Stalled")
    return [item.type for item in completed.conditions or () if item.status == "True" and item.type not in summaries]


def job_manifest(spec: Any = None, status: Any = None, **metadata: Any) -> Manifest:
    """Return a FineTuneJob as the API server returns it. A FineTuneJobStatus gets the conditions that the operator writes."""
    common = {"namespace": KEY.namespace, "name": KEY.name, "uid": UID, "generation": 1}
    times = {"creationTimestamp": write_time(ago(100))}
    manifest = {"metadata": common | times | metadata, "spec": spec or spec_fields()}
    if isinstance(status, FineTuneJobStatus):
        status = complete_conditions(read_job(manifest), status, ago(60)).to_wire()
    return manifest | ({"status": status} if status else {})


def child_manifest(attempt: int = 1, uid: str = UID, **changes: Any) -> Manifest:
    """Return a Job of the FineTuneJob with that uid, as the API server returns it."""
    owner = {"apiVersion": names.API_VERSION, "kind": names.KIND, "name": KEY.name, "uid": uid, "controller": True}
    return {
        "metadata": {
            "namespace": KEY.namespace,
            "name": names.attempt_name(KEY.name, attempt),
            "uid": f"job-{attempt}",
            "labels": {names.LABEL_JOB: KEY.name, names.LABEL_ATTEMPT: str(attempt)},
            "ownerReferences": [owner],
            "creationTimestamp": write_time(ago(80)),
        },
        "spec": {"completions": 2},
        "status": {},
        **changes,
    }


def pod_manifest(index: int = 0, attempt: int = 1, state: Manifest | None = None, **status: Any) -> Manifest:
    """Return a pod as the API server returns it. By default its container runs."""
    owner = {"kind": "Job", "name": names.attempt_name(KEY.name, attempt), "uid": f"job-{attempt}", "controller": True}
    state = {"running": {"startedAt": write_time(ago(50))}} if state is None else state
    return {
        "metadata": {
            "namespace": KEY.namespace,
            "name": f"news-{attempt}-{index}-x",
            "uid": f"pod-{attempt}-{index}",
            "labels": {names.LABEL_JOB: KEY.name, names.LABEL_ATTEMPT: str(attempt)},
            "annotations": {"batch.kubernetes.io/job-completion-index": str(index), names.ANNOTATION_OWNER_UID: UID},
            "ownerReferences": [owner],
            "creationTimestamp": write_time(ago(60)),
        },
        "spec": {"nodeName": f"node-{index}"},
        "status": {
            "phase": "Running",
            "podIP": f"10.0.0.{index + 1}",
            "containerStatuses": [{"name": names.TRAINER_CONTAINER, "state": state}],
            **status,
        },
    }


def workload_manifest(*conditions: tuple[str, str, str, str], job_uid: str = "job-1", job: str = "news-1") -> Manifest:
    """Return the Workload that Kueue creates for a Job. conditions: type, status, reason and message of each."""
    listed = [dict(zip(("type", "status", "reason", "message"), condition, strict=True)) for condition in conditions]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": job_uid, "controller": True}
    labels = {"kueue.x-k8s.io/job-uid": job_uid}
    metadata = {"namespace": KEY.namespace, "name": f"job-{job}-{job_uid}", "labels": labels, "ownerReferences": [owner]}
    return {"metadata": metadata, "status": {"conditions": listed}}
