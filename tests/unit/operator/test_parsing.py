"""Parsing of objects that the API server returns."""

from typing import Any

import pytest

from finetune_api import names
from finetune_api.reasons import FineTuneError
from finetune_api.status import Restarts
from finetune_operator.observed import Manifest, read_time, write_time
from finetune_operator.parsing import read_child_job, read_child_key, read_job, read_pod, read_version
from unit.operator.builders import KEY, UID

TIME = "2026-01-02T03:04:05Z"


def build_manifest(**changes: Any) -> Manifest:
    spec = {"task": "text-classification", "model": {"hub": {"name": "a/b"}}, "datasets": [{"hub": {"name": "c/d"}}]}
    metadata = {
        "namespace": "team",
        "name": "news",
        "uid": UID,
        "generation": 2,
        "resourceVersion": "9",
        "creationTimestamp": TIME,
    }
    return {"metadata": metadata | changes.pop("metadata", {}), "spec": spec, **changes}


def build_pod_manifest(status: Manifest, **metadata: Any) -> Manifest:
    common = {
        "name": "news-1-0-x",
        "uid": "pod-1",
        "creationTimestamp": TIME,
        "labels": {names.LABEL_JOB: "news", names.LABEL_ATTEMPT: "1"},
        "annotations": {"batch.kubernetes.io/job-completion-index": "1", names.ANNOTATION_OWNER_UID: UID},
    }
    return {"metadata": common | metadata, "spec": {"nodeName": "node-1"}, "status": status}


def container(**state: Any) -> Manifest:
    return {
        "containerStatuses": [{"name": "sidecar", "state": {"running": {}}}, {"name": names.TRAINER_CONTAINER, "state": state}]
    }


def test_a_new_job_has_an_empty_status() -> None:
    job = read_job(build_manifest())
    assert (str(job.key), job.uid, job.generation, job.status.phase, job.status_written_at) == ("team/news", UID, 2, None, None)


def test_an_invalid_spec_or_name_becomes_an_error_that_says_why() -> None:
    job = read_job(build_manifest(spec={"task": "text-classification"}))
    assert isinstance(job.spec, FineTuneError)
    assert job.spec.message == "spec.model: required field is missing; spec.datasets: required field is missing"
    job = read_job(build_manifest(metadata={"name": "a.b"}))
    assert isinstance(job.spec, FineTuneError)


def test_the_time_of_the_last_status_write_is_read_from_the_managed_fields() -> None:
    fields = [
        {"manager": "kubectl", "time": "2026-01-01T00:00:00Z"},
        {"manager": names.FIELD_MANAGER, "subresource": "status", "time": TIME},
    ]
    assert read_job(build_manifest(metadata={"managedFields": fields})).status_written_at == read_time(TIME)


def test_status_fields_of_another_version_do_not_make_the_rest_unreadable() -> None:
    written = {"phase": "Running", "attempt": 2, "restarts": {"failures": 1, "elsewhere": 3}, "goodput": 0.9}
    status = read_job(build_manifest(status=written)).status
    assert (status.phase, status.attempt, status.restarts) == ("Running", 2, Restarts(failures=1))


def test_the_deletion_was_requested_one_grace_period_before_the_deletion_timestamp() -> None:
    pod = read_pod(build_pod_manifest({}, deletionTimestamp="2026-01-02T03:05:05Z", deletionGracePeriodSeconds=60))
    assert pod.deletion_requested_at is not None
    assert pod.deletion_timestamp is not None
    assert (write_time(pod.deletion_requested_at), write_time(pod.deletion_timestamp)) == (TIME, "2026-01-02T03:05:05Z")


def test_only_the_container_of_the_trainer_counts() -> None:
    pod = read_pod(build_pod_manifest(container(waiting={"reason": "ContainerCreating"})))
    assert (pod.started, pod.waiting, pod.index, pod.attempt, pod.job_uid) == (False, ("ContainerCreating", ""), 1, 1, UID)
    ended = read_pod(build_pod_manifest(container(terminated={"exitCode": 137, "reason": "OOMKilled", "finishedAt": TIME})))
    assert ended.terminated is not None
    assert (ended.started, ended.terminated.exit_code, ended.terminated.reason) == (True, 137, "OOMKilled")


@pytest.mark.parametrize(("phase", "sidecar_running"), [("Running", True), ("Failed", False), ("Succeeded", False)])
def test_a_sidecar_is_running_if_the_pod_runs_after_the_trainer_has_ended(phase: str, sidecar_running: bool) -> None:
    ended = container(terminated={"exitCode": 0, "reason": "Completed", "finishedAt": TIME})
    assert read_pod(build_pod_manifest({**ended, "phase": phase})).sidecar_running is sidecar_running
    assert not read_pod(build_pod_manifest({**container(running={"startedAt": TIME}), "phase": "Running"})).sidecar_running


def test_the_memory_limit_is_that_of_the_trainer_container() -> None:
    assert read_pod(build_pod_manifest({})).memory_limit is None
    manifest = build_pod_manifest({})
    limits: Manifest = {"sidecar": {"memory": "1Gi"}, names.TRAINER_CONTAINER: {"memory": "300Mi"}}
    manifest["spec"]["containers"] = [{"name": name, "resources": {"limits": given}} for name, given in limits.items()]
    assert read_pod(manifest).memory_limit == "300Mi"
    manifest["spec"]["containers"][1]["resources"] = {}
    assert read_pod(manifest).memory_limit is None


RUNNING = {"running": {"startedAt": TIME}}
DONE = {"terminated": {"exitCode": 0, "reason": "Completed", "finishedAt": TIME}}
FAILED = {"terminated": {"exitCode": 3, "reason": "Error", "finishedAt": TIME}}
INITIALIZING = {"waiting": {"reason": "PodInitializing"}}
PULLING = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}


@pytest.mark.parametrize(
    ("states", "waiting"),
    [
        ([{"state": INITIALIZING}], ("PodInitializing", "")),
        ([{"state": PULLING}, {"state": INITIALIZING}], ("ImagePullBackOff", "container c0: no such image")),
        ([{"state": DONE}, {"state": RUNNING}], ("PodInitializing", "container c1 runs before the trainer")),
        ([{"state": RUNNING, "started": True}, {"state": PULLING}], ("ImagePullBackOff", "container c1: no such image")),
        ([{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}], ("CrashLoopBackOff", "container c0: CrashLoopBackOff")),
        ([{"state": RUNNING, "started": True}], ("PodInitializing", "")),
    ],
)
def test_a_pod_names_the_init_container_that_its_trainer_waits_for(states: list[Manifest], waiting: tuple[str, str]) -> None:
    init_containers = [{"name": f"c{number}", **state} for number, state in enumerate(states)]
    status = {**container(**INITIALIZING), "initContainerStatuses": init_containers}
    assert read_pod(build_pod_manifest(status)).waiting == waiting


@pytest.mark.parametrize(
    ("status", "ended"),
    [
        ({"phase": "Failed"}, (3, "Error", "fetch")),
        ({"phase": "Pending"}, None),
        ({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}, (None, "Evicted", None)),
    ],
)
def test_a_pod_whose_init_container_failed_has_ended_with_its_exit_code(status: Manifest, ended: tuple[Any, ...] | None) -> None:
    containers = [{"name": "first", "state": DONE}, {"name": "fetch", "state": FAILED}]
    pod = read_pod(build_pod_manifest({**container(**INITIALIZING), "initContainerStatuses": containers, **status}))
    end = pod.terminated
    assert (None if end is None else (end.exit_code, end.reason, end.init_container)) == ended
    assert not pod.started


@pytest.mark.parametrize(("containers_ready", "unreachable"), [("True", True), ("False", False)])
def test_a_sidecar_that_is_not_ready_does_not_make_the_node_unreachable(containers_ready: str, unreachable: bool) -> None:
    conditions = [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": containers_ready}]
    trainer = {"name": names.TRAINER_CONTAINER, "state": RUNNING, "ready": True}
    pod = read_pod(build_pod_manifest({"containerStatuses": [trainer], "conditions": conditions}))
    assert pod.node_unreachable is unreachable


def test_an_evicted_pod_has_ended_without_an_exit_code() -> None:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": "low on memory"}
    status = {"phase": "Failed", "reason": "Evicted", "conditions": [condition | {"lastTransitionTime": TIME}]}
    pod = read_pod(build_pod_manifest(status))
    assert pod.terminated is not None
    assert (pod.terminated.exit_code, pod.terminated.reason, pod.evicted) == (None, "Evicted", "")
    assert pod.disruption == "TerminationByKubelet: low on memory"


@pytest.mark.parametrize(
    ("conditions", "complete", "failing", "failed"),
    [
        ([], False, False, None),
        ([("Complete", "True")], True, False, None),
        ([("FailureTarget", "True")], False, True, None),
        ([("FailureTarget", "True"), ("Failed", "True")], False, True, "why"),
        ([("Failed", "False")], False, False, None),
    ],
)
def test_the_conditions_of_a_job_are_parsed(
    conditions: list[tuple[str, str]], complete: bool, failing: bool, failed: str | None
) -> None:
    child = read_child_job(
        {
            "metadata": {"name": "news-1", "uid": "u", "labels": {names.LABEL_ATTEMPT: "1"}},
            "spec": {"completions": 3},
            "status": {"conditions": [{"type": kind, "status": value, "message": "why"} for kind, value in conditions]},
        }
    )
    assert (child.attempt, child.completions, child.complete, child.failing, child.failed) == (1, 3, complete, failing, failed)
    assert child.owner is None


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-01-02T03:04:05", None, 5, "0001-01-01T00:00:00+10:00", "0999-12-31T23:59:59Z"]
)
def test_an_invalid_time_or_a_time_without_a_zone_is_not_parsed(text: Any) -> None:
    assert read_time(text) is None


def test_only_labels_and_annotations_of_kueue_are_read() -> None:
    labels = {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "high", "team": "search"}
    annotations = {"kueue.x-k8s.io/podset-required-topology": "rack", "note": "mine", "x.kueue.x-k8s.io/a": "b"}
    job = read_job(build_manifest(metadata={"labels": labels, "annotations": annotations}))
    assert job.kueue_labels == {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "high"}
    assert job.kueue_annotations == {"kueue.x-k8s.io/podset-required-topology": "rack"}
    assert read_job(build_manifest()).kueue_labels == {}


@pytest.mark.parametrize(("given", "version"), [("9", 9), ("10000000000000000000", 10**19), ("", 0), ("abc", 0)])
def test_a_resource_version_is_parsed_as_a_number(given: str, version: int) -> None:
    assert read_version(build_manifest(metadata={"resourceVersion": given})) == version


@pytest.mark.parametrize(
    ("state", "started_at"),
    [
        ({"running": {"startedAt": TIME}}, TIME),
        ({"terminated": {"exitCode": 0, "startedAt": TIME, "finishedAt": TIME}}, TIME),
        ({"waiting": {"reason": "ContainerCreating"}}, None),
        ({"running": {}}, None),
    ],
)
def test_the_start_time_of_a_container_is_the_one_that_the_kubelet_reports(state: Manifest, started_at: str | None) -> None:
    pod = read_pod(build_pod_manifest(container(**state)))
    assert (write_time(pod.started_at) if pod.started_at else None) == started_at


@pytest.mark.parametrize(
    ("spec", "suspended"), [({}, False), ({"suspend": None}, False), ({"suspend": False}, False), ({"suspend": True}, True)]
)
def test_a_suspended_job_is_recognized_by_its_spec(spec: Manifest, suspended: bool) -> None:
    metadata = {"name": "news-1", "uid": "u", "resourceVersion": "12"}
    child = read_child_job({"metadata": metadata, "spec": spec, "status": {"startTime": TIME}})
    assert (child.suspended, child.started_at, child.version, child.completions, child.attempt) == (
        suspended,
        read_time(TIME),
        12,
        1,
        0,
    )


def test_a_child_is_recognized_by_its_label_alone() -> None:
    assert read_child_key({"metadata": {"namespace": "team", "labels": {names.LABEL_JOB: "news"}}}) == KEY
    assert read_child_key({"metadata": {"namespace": "team"}}) is None


def test_a_job_that_is_being_deleted_is_recognized_by_its_deletion_timestamp() -> None:
    assert read_job(build_manifest(metadata={"deletionTimestamp": TIME})).deleting
    assert not read_job(build_manifest()).deleting
