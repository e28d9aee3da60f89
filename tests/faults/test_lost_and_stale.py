"""Watches that lose events, answers that are out of date, an API server that is away."""

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
from faults.place import LABEL, Place
from faults.rules import Answer, Rule

pytestmark = pytest.mark.cluster
FULL_LIST_SECONDS = 60


@pytest.mark.slow
def test_a_lost_deletion_of_a_pod_is_healed_by_the_full_list(place: Place) -> None:
    place.submit("job", training={"maxSteps": 900}, distributed={"nodes": 1})
    place.wait_phase("job", "Running")
    victim = place.pods("job")[0]["metadata"]["name"]

    def about_it(resource: str, event: dict[str, Any]) -> bool:
        metadata = event["object"].get("metadata", {})
        return metadata.get("name") == victim or (resource == "jobs" and metadata.get("name") == "job-1")

    with place.proxy.swallow(about_it):
        place.kubectl("delete", "pod", victim, "--wait=true", "--grace-period=1")
        gone_at = time.monotonic()
        place.wait(
            "it is seen", lambda: place.status("job").get("phase") in ("Restarting", "Pending"), FULL_LIST_SECONDS + 20, "job"
        )
    print(f"seen after {time.monotonic() - gone_at:.0f} s; swallowed {place.proxy.swallowed}")
    assert any(name == victim for _, _, name in place.proxy.swallowed)
    place.wait("the next attempt runs", lambda: place.status("job").get("phase") == "Running", 60, "job")
    status = place.status("job")
    assert (status["attempt"], status["restarts"]["failures"], status["restarts"]["preemptions"]) == (2, 0, 1)
    assert place.created() == ["job-1", "job-2"]


def test_the_last_word_of_pods_that_are_gone_before_a_slow_list_is_kept(place: Place) -> None:
    place.submit("job", "save 1", training={"maxSteps": 900})
    place.wait_phase("job", "Running")
    slow = place.proxy.add(Rule(lambda call: call.verb == "list" and call.resource == "pods", delay_seconds=4, times=None))
    place.kubectl("patch", "finetunejob", "job", "--type=merge", '--patch={"spec": {"suspend": true}}')
    place.wait("its pods are gone", lambda: not place.pods("job"), 30, "job")
    status = place.wait("the checkpoint is told", lambda: "checkpoint" in place.status("job") and place.status("job"), 20, "job")
    assert slow.hits
    assert status["checkpoint"]["step"] == status["attempts"][0]["step"] > 0


def test_cut_watches_are_taken_up_again_and_lose_nothing(place: Place) -> None:
    place.submit("job")
    for _ in range(12):
        place.proxy.cut(lambda call: call.verb == "watch")
        time.sleep(0.7)
    assert place.wait_phase("job", "Succeeded")["attempt"] == 1
    assert place.created() == ["job-1"]


def test_lists_of_the_past_never_bring_a_finished_job_back_to_life(place: Place) -> None:
    proxy, first = place.proxy, len(place.proxy.records)
    uid = place.submit("job")
    place.wait("its Job is there", lambda: place.created() == ["job-1"], 20, "job")
    infant = place.get("finetunejob", "job")
    assert infant
    infant.pop("status", None)
    place.wait_phase("job", "Succeeded")
    place.kubectl("delete", "job", "job-1", "--wait=true")
    place.wait("its pods are gone", lambda: not place.pods("job"), 30)

    def of_the_past(call: Call) -> Answer:
        finished = re.search("phase=", call.query.get("fieldSelector", ""))
        items = [infant] if call.resource == "finetunejobs" and not finished else []
        version = infant["metadata"]["resourceVersion"]
        kind = {"finetunejobs": "FineTuneJobList", "jobs": "JobList", "pods": "PodList"}[call.resource]
        api = {"finetunejobs": "finetune.dev/v1alpha1", "jobs": "batch/v1", "pods": "v1"}[call.resource]
        metadata = {"resourceVersion": version}
        return Answer(200, body=json.dumps({"kind": kind, "apiVersion": api, "metadata": metadata, "items": items}).encode())

    stale = Rule(
        lambda call: call.verb == "list" and call.resource in ("finetunejobs", "jobs", "pods"), answer=of_the_past, times=None
    )
    proxy.add(stale)
    with proxy.swallow(lambda *_: True):
        place.operator.restart()
        time.sleep(10)
    assert stale.hits
    assert place.created() == ["job-1"], "no Job of the past"
    proxy.remove(stale)
    place.operator.restart()
    time.sleep(5)
    status = place.status("job")
    assert status["phase"] == "Succeeded"
    assert place.created() == ["job-1"]
    assert not place.objects("jobs")
    written = [record for record in proxy.records[first:] if record.call.target == "job" and is_status(record)]
    assert written
    assert [event["reason"] for event in place.job_events(uid)].count("Succeeded") == 1


def is_status(record: Record) -> bool:
    return record.call.verb == "patch" and 200 <= record.status < 300


def test_the_deleted_child_of_a_finished_job_is_not_made_again(place: Place) -> None:
    place.submit("good")
    place.submit("bad", "fail ConfigurationError at 2")
    place.wait_phase("good", "Succeeded")
    place.wait_phase("bad", "Failed")
    for kind in ("jobs", "services", "configmaps"):
        place.kubectl("delete", kind, "--selector", LABEL, "--wait=true")
    time.sleep(4)
    place.operator.restart()
    time.sleep(4)
    assert sorted(place.created()) == ["bad-1", "good-1"]
    assert not place.objects("jobs", LABEL)
    assert [place.status(name)["phase"] for name in ("good", "bad")] == ["Succeeded", "Failed"]


def test_an_api_server_that_is_away_for_twenty_seconds_disturbs_nobody(place: Place) -> None:
    place.submit("job", training={"maxSteps": 280})
    place.wait_phase("job", "Running")
    pods = [(pod["metadata"]["name"], pod["metadata"]["uid"]) for pod in place.pods("job")]
    with place.proxy.away():
        time.sleep(20)
        assert place.operator.runs()
        assert place.operator.http("/healthz") is not None
        assert [(pod["metadata"]["name"], pod["metadata"]["uid"]) for pod in place.pods("job")] == pods
    back_at, first = time.monotonic(), len(place.proxy.records)

    def writes_again() -> bool:
        return any(is_status(record) for record in place.proxy.records[first:])

    place.wait("it writes progress again", writes_again, 30, "job")
    print(f"the first status {time.monotonic() - back_at:.1f} s after the API server came back")
    status = place.wait_phase("job", "Succeeded")
    assert (status["attempt"], status["restarts"]["failures"]) == (1, 0)
    assert place.created() == ["job-1"]


@pytest.mark.slow
def test_a_pod_that_nobody_ends_is_deleted_by_force_after_its_job(place: Place) -> None:
    """On a machine without a kubelet: the API server keeps it until it is deleted by force, or its machine taken away."""
    with machine_of_nobody(place.name) as renew:
        place.submit("job", pod={"nodeSelector": {"kubernetes.io/hostname": place.name}}, distributed={"nodes": 1})

        def placed() -> list[str]:
            renew()
            return [pod["metadata"]["name"] for pod in place.pods("job") if pod["spec"].get("nodeName")]

        [victim] = place.wait("a pod on it", placed, 60, "job")
        place.kubectl("delete", "pod", victim, "--wait=false", "--grace-period=1")

        def forced() -> list[Record]:
            calls = [record for record in place.proxy.records if (record.call.verb, record.call.target) == ("delete", victim)]
            return [record for record in calls if 200 <= record.status < 300]

        place.wait("it is deleted by force", forced, 60, "job")
        assert (forced()[0].call.body or {})["gracePeriodSeconds"] == 0
        place.wait("the next attempt", lambda: place.created() == ["job-1", "job-2"], 60, "job")
        writes = [(record.call.verb, record.call.target) for record in place.proxy.records if 200 <= record.status < 300]
        in_order = [writes.index(write) for write in (("delete", "job-1"), ("delete", victim), ("create", "job-2"))]
        assert in_order == sorted(in_order), "the Job goes first, and attempts never overlap"


@contextlib.contextmanager
def machine_of_nobody(name: str) -> Iterator[Callable[[], None]]:
    """A node without a kubelet: it is ready for as long as what it yields is called, which says so in the kubelet's place."""
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}}
    room = {"cpu": "4", "memory": "8Gi", "pods": "10"}

    def renew() -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now, "lastTransitionTime": now}
        status = {"status": {"capacity": room, "allocatable": room, "conditions": [ready]}}
        kubectl("patch", "node", name, "--subresource=status", "--type=merge", f"--patch={json.dumps(status)}")

    kubectl("create", "--filename=-", stdin=json.dumps(node))
    try:
        renew()
        yield renew
    finally:
        kubectl("delete", "node", name)


def test_a_pod_that_has_ended_holds_up_nobody_though_a_finalizer_keeps_it(place: Place) -> None:
    """As the Job controller leaves its own finalizer when a webhook of somebody else refuses the removal."""
    place.submit("job", training={"maxSteps": 900})
    place.wait_phase("job", "Running")
    victim = place.pods("job")[0]["metadata"]["name"]
    hold(place, victim)
    place.kubectl("delete", "pod", victim, "--wait=false", "--grace-period=1")

    def second_runs() -> bool:
        status = place.status("job")
        return (status.get("attempt"), status.get("phase")) == (2, "Running")

    place.wait("the next attempt runs", second_runs, 60, "job")
    assert [pod["status"]["phase"] for pod in place.pods("job")] == ["Failed", "Running", "Running"]
    release(place, victim)


def hold(place: Place, pod: str) -> None:
    """Keep a pod in the API whatever happens."""
    held = [{"op": "add", "path": "/metadata/finalizers/-", "value": "example.com/held"}]
    place.kubectl("patch", "pod", pod, "--type=json", f"--patch={json.dumps(held)}")


def release(place: Place, pod: str) -> None:
    place.kubectl("patch", "pod", pod, "--type=merge", '--patch={"metadata": {"finalizers": null}}')
