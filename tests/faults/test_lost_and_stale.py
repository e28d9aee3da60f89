"""Watches that lose events, outdated lists, an outage of the API server, and pods that do not disappear."""

import contextlib
import datetime
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster.kube import kubectl
from faults.calls import Call, Record
from faults.environment import LABEL, Environment
from faults.rules import Response, Rule

pytestmark = pytest.mark.cluster
FULL_LIST_SECONDS = 60
FAKE_NODE_TAINT = "example.com/no-kubelet"
ON_FAKE_NODE = {"tolerations": [{"key": FAKE_NODE_TAINT, "operator": "Exists"}]}


@pytest.mark.slow
def test_the_full_list_reveals_a_pod_deletion_that_the_watch_lost(env: Environment) -> None:
    env.submit("job", training={"maxSteps": 900}, distributed={"nodes": 1})
    env.wait_phase("job", "Running")
    victim = env.pods("job")[0]["metadata"]["name"]

    def is_of_pod_or_job(resource: str, event: dict[str, Any]) -> bool:
        metadata = event["object"].get("metadata", {})
        return metadata.get("name") == victim or (resource == "jobs" and metadata.get("name") == "job-1")

    with env.proxy.drop_events(is_of_pod_or_job):
        env.kubectl("delete", "pod", victim, "--wait=true", "--grace-period=1")
        deleted_at = time.monotonic()
        env.wait(
            "the operator sees the deletion",
            lambda: env.status("job").get("phase") in ("Restarting", "Pending"),
            FULL_LIST_SECONDS + 20,
            "job",
        )
    print(f"seen after {time.monotonic() - deleted_at:.0f} s; dropped events: {env.proxy.dropped_events}")
    assert any(name == victim for _, _, name in env.proxy.dropped_events)
    env.wait("the next attempt runs", lambda: env.status("job").get("phase") == "Running", 60, "job")
    status = env.status("job")
    assert (status["attempt"], status["restarts"]["failures"], status["restarts"]["preemptions"]) == (2, 0, 1)
    assert env.created() == ["job-1", "job-2"]


def test_the_final_report_is_kept_if_the_pods_are_deleted_before_a_slow_list_returns(env: Environment) -> None:
    env.submit("job", "save 1", training={"maxSteps": 900})
    env.wait_phase("job", "Running")
    slow = env.proxy.add(Rule(lambda call: call.verb == "list" and call.resource == "pods", delay_seconds=4, times=None))
    env.kubectl("patch", "finetunejob", "job", "--type=merge", '--patch={"spec": {"suspend": true}}')
    env.wait("its pods are deleted", lambda: not env.pods("job"), 30, "job")
    status = env.wait("the status has the checkpoint", lambda: "checkpoint" in env.status("job") and env.status("job"), 20, "job")
    assert slow.hits
    assert status["checkpoint"]["step"] == status["attempts"][0]["step"] > 0


def test_the_operator_resumes_closed_watches_and_loses_nothing(env: Environment) -> None:
    env.submit("job")
    for _ in range(12):
        env.proxy.close_connections(lambda call: call.verb == "watch")
        time.sleep(0.7)
    assert env.wait_phase("job", "Succeeded")["attempt"] == 1
    assert env.created() == ["job-1"]


def test_outdated_lists_never_restart_a_finished_job(env: Environment) -> None:
    proxy, first = env.proxy, len(env.proxy.records)
    uid = env.submit("job")
    env.wait("its Job exists", lambda: env.created() == ["job-1"], 20, "job")
    outdated_job = env.get("finetunejob", "job")
    assert outdated_job
    outdated_job.pop("status", None)
    env.wait_phase("job", "Succeeded")
    env.kubectl("delete", "job", "job-1", "--wait=true")
    env.wait("its pods are deleted", lambda: not env.pods("job"), 30)

    def outdated_list(call: Call) -> Response:
        finished = re.search("phase=", call.query.get("fieldSelector", ""))
        items = [outdated_job] if call.resource == "finetunejobs" and not finished else []
        version = outdated_job["metadata"]["resourceVersion"]
        kind = {"finetunejobs": "FineTuneJobList", "jobs": "JobList", "pods": "PodList"}[call.resource]
        api = {"finetunejobs": "finetune.dev/v1alpha1", "jobs": "batch/v1", "pods": "v1"}[call.resource]
        metadata = {"resourceVersion": version}
        return Response(200, body=json.dumps({"kind": kind, "apiVersion": api, "metadata": metadata, "items": items}).encode())

    stale = Rule(
        lambda call: call.verb == "list" and call.resource in ("finetunejobs", "jobs", "pods"),
        response=outdated_list,
        times=None,
    )
    proxy.add(stale)
    with proxy.drop_events(lambda *_: True):
        env.operator.restart()
        time.sleep(10)
    assert stale.hits
    assert env.created() == ["job-1"], "the operator must not create a Job from an outdated list"
    proxy.remove(stale)
    env.operator.restart()
    time.sleep(5)
    status = env.status("job")
    assert status["phase"] == "Succeeded"
    assert env.created() == ["job-1"]
    assert not env.objects("jobs")
    written = [record for record in proxy.records[first:] if record.call.target == "job" and is_patch(record)]
    assert written
    assert [event["reason"] for event in env.job_events(uid)].count("Succeeded") == 1


def is_patch(record: Record) -> bool:
    """Return whether the call is a patch that succeeded."""
    return record.call.verb == "patch" and 200 <= record.status < 300


def test_a_deleted_child_of_a_finished_job_is_not_created_again(env: Environment) -> None:
    env.submit("good")
    env.submit("bad", "fail ConfigurationError at 2")
    env.wait_phase("good", "Succeeded")
    env.wait_phase("bad", "Failed")
    for kind in ("jobs", "services", "configmaps"):
        env.kubectl("delete", kind, "--selector", LABEL, "--wait=true")
    time.sleep(4)
    env.operator.restart()
    time.sleep(4)
    assert sorted(env.created()) == ["bad-1", "good-1"]
    assert not env.objects("jobs", LABEL)
    assert [env.status(name)["phase"] for name in ("good", "bad")] == ["Succeeded", "Failed"]


def test_an_outage_of_the_api_server_of_twenty_seconds_restarts_nothing(env: Environment) -> None:
    env.submit("job", training={"maxSteps": 280})
    env.wait_phase("job", "Running")
    pods = [(pod["metadata"]["name"], pod["metadata"]["uid"]) for pod in env.pods("job")]
    with env.proxy.outage():
        time.sleep(20)
        assert env.operator.is_running()
        assert env.operator.http_get("/healthz") is not None
        assert [(pod["metadata"]["name"], pod["metadata"]["uid"]) for pod in env.pods("job")] == pods
    outage_end, first = time.monotonic(), len(env.proxy.records)

    def writes_again() -> bool:
        return any(is_patch(record) for record in env.proxy.records[first:])

    env.wait("the operator writes progress again", writes_again, 30, "job")
    print(f"first status {time.monotonic() - outage_end:.1f} s after the outage")
    status = env.wait_phase("job", "Succeeded")
    assert (status["attempt"], status["restarts"]["failures"]) == (1, 0)
    assert env.created() == ["job-1"]


@pytest.mark.slow
def test_a_pod_that_does_not_terminate_is_force_deleted_after_its_job(env: Environment) -> None:
    """The pod's node has no kubelet. The API server keeps the pod until it is force deleted or the node is deleted."""
    with node_without_kubelet(env.name) as renew:
        env.submit("job", pod=ON_FAKE_NODE | {"nodeSelector": {"kubernetes.io/hostname": env.name}}, distributed={"nodes": 1})

        def scheduled() -> list[str]:
            renew()
            return [pod["metadata"]["name"] for pod in env.pods("job") if pod["spec"].get("nodeName")]

        [victim] = env.wait("a pod on the node", scheduled, 60, "job")
        env.kubectl("delete", "pod", victim, "--wait=false", "--grace-period=1")

        def force_deletions() -> list[Record]:
            calls = [record for record in env.proxy.records if (record.call.verb, record.call.target) == ("delete", victim)]
            return [record for record in calls if 200 <= record.status < 300]

        env.wait("the pod is force deleted", force_deletions, 60, "job")
        assert (force_deletions()[0].call.body or {})["gracePeriodSeconds"] == 0
        env.wait("the next attempt", lambda: env.created() == ["job-1", "job-2"], 60, "job")
        writes = [(record.call.verb, record.call.target) for record in env.proxy.records if 200 <= record.status < 300]
        positions = [writes.index(write) for write in (("delete", "job-1"), ("delete", victim), ("create", "job-2"))]
        assert positions == sorted(positions), "the operator must delete the old Job first, and attempts must not overlap"


@contextlib.contextmanager
def node_without_kubelet(name: str) -> Iterator[Callable[[], None]]:
    """Create a node without a kubelet. The caller must call the yielded function regularly, or the node becomes NotReady."""
    metadata = {"name": name, "labels": {"kubernetes.io/hostname": name}}
    # The taint keeps the pods of tests that run at the same time away.
    taint = {"key": FAKE_NODE_TAINT, "effect": "NoSchedule"}
    node = {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": [taint]}}
    capacity = {"cpu": "4", "memory": "8Gi", "pods": "10"}

    def renew() -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now, "lastTransitionTime": now}
        status = {"status": {"capacity": capacity, "allocatable": capacity, "conditions": [ready]}}
        kubectl("patch", "node", name, "--subresource=status", "--type=merge", f"--patch={json.dumps(status)}")

    kubectl("create", "--filename=-", stdin=json.dumps(node))
    try:
        renew()
        yield renew
    finally:
        kubectl("delete", "node", name)


def test_a_terminated_pod_with_a_finalizer_does_not_delay_the_next_attempt(env: Environment) -> None:
    """The Job controller leaves its own finalizer on a pod if a webhook rejects the removal."""
    env.submit("job", training={"maxSteps": 900})
    env.wait_phase("job", "Running")
    victim = env.pods("job")[0]["metadata"]["name"]
    add_finalizer(env, victim)
    env.kubectl("delete", "pod", victim, "--wait=false", "--grace-period=1")

    def second_attempt_runs() -> bool:
        status = env.status("job")
        return (status.get("attempt"), status.get("phase")) == (2, "Running")

    env.wait("the next attempt runs", second_attempt_runs, 60, "job")
    assert [pod["status"]["phase"] for pod in env.pods("job")] == ["Failed", "Running", "Running"]
    remove_finalizers(env, victim)


def add_finalizer(env: Environment, pod: str) -> None:
    """Add a finalizer. The API server keeps the pod until it is removed."""
    patch = [{"op": "add", "path": "/metadata/finalizers/-", "value": "example.com/held"}]
    env.kubectl("patch", "pod", pod, "--type=json", f"--patch={json.dumps(patch)}")


def remove_finalizers(env: Environment, pod: str) -> None:
    env.kubectl("patch", "pod", pod, "--type=merge", '--patch={"metadata": {"finalizers": null}}')
