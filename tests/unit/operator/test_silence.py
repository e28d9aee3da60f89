"""Pods that no longer answer: the operator says so, and only the kubelet ends them."""

import dataclasses
from typing import Any

import pytest

from finetune_api.status import Attempt, Progress
from finetune_api.wire import Report
from finetune_operator.manifests.container import _PROBE_MARGIN_SECONDS, build_container
from finetune_operator.manifests.plan import Plan
from finetune_operator.observed import write_time
from finetune_operator.policy.attempt import decide
from finetune_operator.policy.events import build_events
from finetune_operator.poller import _Asked
from unit.operator.builders import (
    IMAGE,
    KEY,
    NOW,
    UID,
    ago,
    build_pod,
    build_record,
    build_spec,
    child_manifest,
    end,
    job_manifest,
    observe,
    pod_manifest,
    running,
    true_conditions,
)
from unit.operator.fake_server import Answer
from unit.operator.harness import Harness

KILLED = 137
FIRST = frozenset(["news-1-0-x"])
# As a kubelet of Kubernetes 1.36 writes them.
KILLING = {"reason": "Killing", "message": "Stopping container trainer"}
UNHEALTHY = {
    "reason": "Unhealthy",
    "message": 'Liveness probe failed: Get "http://10.0.0.1:9400/healthz": context deadline exceeded',
}


@pytest.mark.parametrize("phase", ["Initializing", "Running", "Publishing"])
def test_a_silent_pod_is_left_alone_and_the_status_says_so(phase: Any) -> None:
    status = running(phase=phase, progress=Progress(step=40, total_steps=100))
    observation = observe(build_pod(0), build_pod(1), job=build_record(status, build_spec()))
    decided = decide(dataclasses.replace(observation, silent=FIRST), None, NOW).status
    assert decided.phase == ("Publishing" if phase == "Publishing" else "Running"), "by what the kubelet says of the pod"
    assert decided.message == (
        "1 of 2 pods does not answer the operator: news-1-0-x (10.0.0.1:9400); step and loss are not known until the end: "
        "does a NetworkPolicy or a service mesh keep the operator out?"
    )
    assert true_conditions(decided) == ["ProgressUnknown"]
    assert [event.reason for event in build_events(status, decided)][:1] == ["ProgressUnknown"]


def test_a_silent_pod_that_answers_again_or_ends_is_silent_no_longer() -> None:
    job = build_record(running(), build_spec())
    pods = [build_pod(0), build_pod(1)]
    silent = decide(dataclasses.replace(observe(*pods, job=job), silent=FIRST), None, NOW).status
    job = build_record(silent)
    report = Report(attempt=1, phase="Running", step=3, total_steps=9, message="training")
    answers = decide(observe(*pods, job=job), report, NOW).status
    assert (answers.phase, answers.reason, true_conditions(answers)) == ("Running", "Training", [])
    assert [event.reason for event in build_events(silent, answers)] == ["ProgressKnown"]
    ended = [build_pod(index, terminated=end(0, phase="Succeeded", step=9, totalSteps=9)) for index in (0, 1)]
    assert true_conditions(decide(observe(*ended, job=job), None, NOW).status) == ["Complete"]


@pytest.mark.parametrize("index", [0, 1])
def test_a_pod_on_a_node_that_is_down_is_not_called_unreachable_for_the_operator(index: int) -> None:
    pods = [build_pod(number, node_unreachable=number == index) for number in (0, 1)]
    observation = observe(*pods, job=build_record(running()))
    decided = decide(dataclasses.replace(observation, silent=frozenset([pods[index].name])), None, NOW).status
    assert true_conditions(decided) == []


def test_silent_pods_beside_the_first_one_are_named_and_the_status_goes_on_with_the_reports() -> None:
    pods = [build_pod(index) for index in range(8)]
    status = running(attempts=[Attempt(number=1, start_time=write_time(ago(70)), nodes=8)])
    observation = observe(*pods, job=build_record(status, build_spec(distributed={"nodes": 8})))
    report = Report(attempt=1, phase="Running", step=3, total_steps=9, message="training")
    silent = frozenset(pod.name for pod in pods[3:])
    decided = decide(dataclasses.replace(observation, silent=silent), report, NOW).status
    assert (decided.phase, decided.reason, decided.message) == ("Running", "Training", "training")
    assert decided.progress is not None
    assert decided.progress.step == 3
    condition = next(item for item in decided.conditions or () if item.status == "True")
    assert (condition.type, condition.reason) == ("ProgressUnknown", "SomePodsSilent")
    assert condition.message == (
        "5 of 8 pods do not answer the operator: news-1-3-x (10.0.0.4:9400), news-1-4-x (10.0.0.5:9400), news-1-5-x "
        "(10.0.0.6:9400) and 2 more; step and loss are those of the first pod: does a NetworkPolicy or a service mesh keep the "
        "operator out?"
    )


def test_a_single_pod_that_is_silent_is_named_too() -> None:
    status = running(attempts=[Attempt(number=1, start_time=write_time(ago(70)), nodes=1)])
    observation = observe(build_pod(0), job=build_record(status, build_spec(distributed={"nodes": 1})))
    decided = decide(dataclasses.replace(observation, silent=FIRST), None, NOW).status
    assert (decided.message or "").startswith("the pod does not answer the operator: news-1-0-x (10.0.0.1:9400); step and loss")


async def test_a_job_that_only_the_operator_can_t_reach_goes_on_for_ever() -> None:
    harness = Harness()
    harness.add_objects(job_manifest(status=running()), [child_manifest()], [pod_manifest(0), pod_manifest(1)])
    await harness.reconcile()
    harness.poller._asked[KEY] = {"news-1-0-x": _Asked(unanswered=10_000, since=-1e9)}
    for _ in range(10):
        harness.advance(86_400)
        await harness.reconcile()
    assert harness.status["phase"] == "Running"
    assert "does not answer the operator" in harness.status["message"]
    assert harness.status["restarts"].get("failures", 0) == 0


def killed_pod(exit_code: int = KILLED) -> Any:
    end = {"exitCode": exit_code, "reason": "Error", "finishedAt": write_time(ago(10))}
    return pod_manifest(0, state={"terminated": end}, phase="Failed")


@pytest.mark.parametrize(
    ("events", "reason", "counted"),
    [
        ([KILLING, UNHEALTHY], "PodUnresponsive", 0),
        ([KILLING], "WorkerDied", 1),
        ([UNHEALTHY], "WorkerDied", 1),
        ([], "WorkerDied", 1),
    ],
)
async def test_a_pod_that_its_kubelet_ended_is_a_disruption(events: list[Any], reason: str, counted: int) -> None:
    harness = Harness()
    harness.add_objects(job_manifest(status=running()), [child_manifest()], [killed_pod(), pod_manifest(1)])
    harness.server.answers["GET events"] = Answer(200, {"metadata": {}, "items": events})
    await harness.reconcile()
    harness.advance(60)
    await harness.reconcile()
    failure, notes = harness.status["lastFailure"], harness.status["bookkeeping"]
    assert failure["reason"] == reason, failure
    assert notes["restartsCountTowardsMax"] == counted
    if reason == "PodUnresponsive":
        assert failure["message"].startswith(
            "the kubelet of node-0 ended pod news-1-0-x, which no longer answered: Liveness probe"
        )


async def test_events_are_read_only_for_pods_that_a_signal_ended() -> None:
    harness = Harness()
    harness.add_objects(job_manifest(status=running()), [child_manifest()], [killed_pod(exit_code=1), pod_manifest(1)])
    await harness.reconcile()
    assert "GET events" not in harness.server.requests


@pytest.mark.parametrize(("stall_seconds", "allowed"), [(600, 600 + _PROBE_MARGIN_SECONDS), (1, 300), (86_400, 86_520)])
def test_the_probe_allows_more_time_than_the_launcher_needs_to_find_a_stall(stall_seconds: int, allowed: int) -> None:
    probe = container(stallTimeoutSeconds=stall_seconds)["livenessProbe"]
    assert 0 <= probe["periodSeconds"] * probe["failureThreshold"] - allowed < probe["periodSeconds"]


def container(**recovery: Any) -> Any:
    return build_container(Plan(KEY.namespace, KEY.name, UID, 1, build_spec(recovery=recovery), 2, IMAGE, 3))


def test_there_is_no_probe_without_a_limit() -> None:
    assert "livenessProbe" not in container(stallTimeoutSeconds=0)
