"""Which terminated pod is the cause of the failure of an attempt."""

import dataclasses
from typing import Any

import pytest

from finetune_api import names
from finetune_api.reasons import REASONS, Reason
from finetune_operator.observed import Terminated
from finetune_operator.policy.failure import find_cause
from unit.operator.builders import NOW, ago, build_child, build_pod, end, failed_with

DRAIN = "EvictionByEvictionAPI: Eviction API: evicting"
LOW = "The node was low on resource: ephemeral-storage."
OWN_LIMIT = "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. "
RUNNING: dict[str, Any] = {}


def failed_init_container(seconds_ago: float, exit_code: int = 1) -> Terminated:
    return dataclasses.replace(end(exit_code, seconds_ago), init_container="fetch")


@pytest.mark.parametrize(
    ("first", "second", "failing", "reason", "node"),
    [
        pytest.param(RUNNING, RUNNING, False, None, None, id="nothing failed"),
        pytest.param(RUNNING, {"terminated": failed_with("DataError", 64)}, True, "DataError", "node-1", id="reported"),
        pytest.param(
            {"terminated": failed_with("CollectiveFailed", seconds_ago=9)},
            {"terminated": failed_with("CodeError", seconds_ago=7)},
            True,
            "CodeError",
            "node-1",
            id="CollectiveFailed is a consequence even if it came first",
        ),
        pytest.param(
            {"terminated": failed_with("CodeError", seconds_ago=7)},
            {"terminated": failed_with("OutOfGPUMemory", seconds_ago=8)},
            True,
            "OutOfGPUMemory",
            "node-1",
            id="the first of two that report",
        ),
        pytest.param(
            {"terminated": failed_with("CollectiveFailed", seconds_ago=2)},
            RUNNING,
            False,
            None,
            None,
            id="CollectiveFailed alone waits for a cause",
        ),
        pytest.param(
            {"terminated": failed_with("CollectiveFailed", seconds_ago=6)},
            RUNNING,
            False,
            "CollectiveFailed",
            "node-0",
            id="CollectiveFailed waits for a limited time",
        ),
        pytest.param(
            {"terminated": failed_with("CollectiveFailed", seconds_ago=1)},
            {"terminated": failed_with("CollectiveFailed", seconds_ago=1)},
            True,
            "CollectiveFailed",
            "node-0",
            id="no better cause can come after all pods ended",
        ),
        pytest.param(
            {"terminated": failed_with("CollectiveFailed", seconds_ago=1)},
            {"terminated": end(137, 1)},
            True,
            "WorkerDied",
            "node-1",
            id="an end without a report is a better cause than CollectiveFailed",
        ),
        pytest.param(RUNNING, {"terminated": end(137, 2)}, True, None, None, id="an end without a report waits for a cause"),
        pytest.param(RUNNING, {"terminated": end(137, 6)}, True, "WorkerDied", "node-1", id="an end without a report"),
        pytest.param(
            RUNNING,
            {"terminated": end(137, 1, reason="OOMKilled"), "memory_limit": "300Mi"},
            True,
            "OutOfMemory",
            "node-1",
            id="killed for memory",
        ),
        pytest.param(
            RUNNING,
            {"terminated": end(137, 1, reason="OOMKilled")},
            True,
            "WorkerDied",
            "node-1",
            id="killed for the memory of its node",
        ),
        pytest.param(
            RUNNING,
            {
                "terminated": end(names.EXIT_INTERRUPTED, 6, reason="OOMKilled", phase="Interrupted"),
                "deletion_requested_at": ago(7),
                "memory_limit": "300Mi",
            },
            True,
            "PodLost",
            "node-1",
            id="a helper was killed for memory before the pod was deleted",
        ),
        pytest.param(
            RUNNING,
            {"terminated": end(None, 3, reason="Evicted"), "evicted": OWN_LIMIT},
            False,
            "DiskFull",
            "node-1",
            id="evicted because of its own limit",
        ),
        pytest.param(
            RUNNING,
            {"terminated": end(names.EXIT_REFUSED, 1)},
            True,
            "ConfigurationError",
            "node-1",
            id="refused without a report",
        ),
        pytest.param(
            RUNNING,
            {"terminated": end(names.EXIT_INTERRUPTED, 6, phase="Interrupted")},
            True,
            "Interrupted",
            "node-1",
            id="interrupted on its node",
        ),
        pytest.param(RUNNING, {"deletion_requested_at": ago(0)}, False, "PodLost", "node-1", id="a deleted pod is lost at once"),
        pytest.param(
            RUNNING,
            {"deletion_requested_at": ago(1), "terminated": end(names.EXIT_INTERRUPTED, 0, phase="Interrupted")},
            True,
            "PodLost",
            "node-1",
            id="a deleted pod that saved a checkpoint",
        ),
        pytest.param(
            {"deletion_requested_at": ago(8)},
            {"terminated": failed_with("CodeError", seconds_ago=9)},
            True,
            "CodeError",
            "node-1",
            id="the Job deletes the others after a failure",
        ),
        pytest.param(
            {"deletion_requested_at": ago(9)},
            {"terminated": end(137, 9)},
            True,
            "WorkerDied",
            "node-1",
            id="the Job deletes the others after an end without a report",
        ),
        pytest.param(
            {"deletion_requested_at": ago(9)},
            {"terminated": failed_with("CollectiveFailed", seconds_ago=5)},
            True,
            "PodLost",
            "node-0",
            id="a pod deleted before its peers failed",
        ),
        pytest.param(
            {"deletion_requested_at": ago(9)},
            {"terminated": failed_with("CodeError", seconds_ago=5)},
            True,
            "PodLost",
            "node-0",
            id="reports of the peers of a deleted pod are a consequence",
        ),
        pytest.param(
            RUNNING, {"deletion_requested_at": ago(0), "disruption": DRAIN}, False, "NodeLost", "node-1", id="evicted by a drain"
        ),
        pytest.param(
            RUNNING,
            {"terminated": end(None, 3, reason="Evicted"), "disruption": f"TerminationByKubelet: {LOW}", "evicted": LOW},
            False,
            "Evicted",
            "node-1",
            id="evicted by its kubelet",
        ),
        pytest.param(
            RUNNING,
            {"terminated": end(137, 3), "disruption": f"TerminationByKubelet: {LOW}", "evicted": LOW},
            True,
            "Evicted",
            "node-1",
            id="killed when it was evicted by its kubelet",
        ),
        pytest.param(
            RUNNING,
            {"terminated": end(75, 3, phase="Interrupted"), "disruption": "TerminationByKubelet: Pod was terminated: shutdown"},
            True,
            "NodeLost",
            "node-1",
            id="its node shuts down",
        ),
        pytest.param(
            RUNNING, {"terminated": end(None, 9, reason="OutOfcpu")}, True, "PodLost", "node-1", id="rejected by its kubelet"
        ),
        pytest.param(
            RUNNING,
            {"terminated": failed_init_container(9)},
            True,
            "InitContainerFailed",
            "node-1",
            id="an init container failed",
        ),
        pytest.param(
            {
                "terminated": failed_init_container(3, exit_code=143),
                "deletion_requested_at": ago(4),
                "disruption": "EvictionByEvictionAPI: x",
            },
            {"deletion_requested_at": ago(1)},
            True,
            "NodeLost",
            "node-0",
            id="drained while an init container ran",
        ),
        pytest.param(
            RUNNING,
            {"terminated": failed_init_container(9, exit_code=64)},
            True,
            "InitContainerFailed",
            "node-1",
            id="an init container failed with an exit code of the trainer's",
        ),
        pytest.param({"terminated": end(0)}, RUNNING, False, None, None, id="the first pod has succeeded"),
        pytest.param(
            {"terminated": end(0), "deletion_requested_at": ago(1)},
            RUNNING,
            False,
            None,
            None,
            id="a pod that has succeeded may be deleted",
        ),
        pytest.param(
            RUNNING,
            {"terminated": failed_with("NoSuchReason", seconds_ago=9)},
            True,
            "NoSuchReason",
            "node-1",
            id="a reason of a newer version",
        ),
    ],
)
def test_the_cause_of_the_failure_of_an_attempt(
    first: dict[str, Any], second: dict[str, Any], failing: bool, reason: str | None, node: str | None
) -> None:
    failure = find_cause(build_child(failing=failing), [build_pod(0, **first), build_pod(1, **second)], 2, NOW)
    assert (failure.reason if failure else None, failure.node if failure else None) == (reason, node)


def test_a_failed_job_whose_pod_is_gone_names_the_pod() -> None:
    child = build_child(failing=True, failed="Job has reached the specified backoff limit")
    failure = find_cause(child, [build_pod(0)], 2, NOW)
    assert failure is not None
    assert (failure.reason, failure.message) == ("PodLost", "pod news-1-1 disappeared")


def test_a_job_that_was_deleted_is_a_lost_attempt() -> None:
    failure = find_cause(None, [build_pod(0, deletion_requested_at=ago(0)), build_pod(1, deletion_requested_at=ago(0))], 2, NOW)
    assert failure is not None
    assert (failure.reason, failure.message) == ("PodLost", "the Job of this attempt was deleted, and its pods with it")


def test_every_failure_has_a_hint_and_the_hint_of_the_pod_is_kept() -> None:
    with_hint = find_cause(build_child(), [build_pod(1, terminated=failed_with("DataError", 64, hint="Look at line 7."))], 1, NOW)
    without_hint = find_cause(build_child(), [build_pod(1, terminated=failed_with("DataError", 64))], 1, NOW)
    assert with_hint is not None
    assert without_hint is not None
    assert with_hint.hint == "Look at line 7."
    assert without_hint.hint == REASONS[Reason.DATA_ERROR].hint
    assert without_hint.exit_code == 64


def test_a_long_traceback_keeps_its_end() -> None:
    text = "x" * 3500 + "ValueError: here"
    failure = find_cause(build_child(), [build_pod(0, terminated=failed_with("CodeError", traceback=text))], 1, NOW)
    assert failure is not None
    assert failure.traceback is not None
    assert failure.traceback.endswith("ValueError: here")
    assert len(failure.traceback) == 3000


@pytest.mark.parametrize("message", ["", "garbage", "{", '{"attempt": 1}', '{"attempt": 1, "phase": "Failed", "loss": NaN}'])
def test_a_termination_message_that_is_no_report_is_ignored(message: str) -> None:
    terminated = end(1, 9)
    pod = build_pod(0, terminated=type(terminated)(1, "Error", message, terminated.at))
    failure = find_cause(build_child(), [pod], 1, NOW)
    assert failure is not None
    assert failure.reason == "WorkerDied"


@pytest.mark.parametrize(
    ("disruption", "reason"),
    [
        ("PreemptionByScheduler", "Preempted"),
        ("PreemptionByKueueManager", "Preempted"),
        ("DeletionByTaintManager", "NodeLost"),
        ("DeletionByPodGC", "NodeLost"),
        ("EvictionByEvictionAPI", "NodeLost"),
        ("ReasonOfANewerVersion", "PodLost"),
    ],
)
def test_the_reason_of_a_disruption_decides_the_reason_of_the_failure(disruption: str, reason: str) -> None:
    pods = [build_pod(0), build_pod(1, deletion_requested_at=ago(0), disruption=f"{disruption}: test message")]
    failure = find_cause(build_child(), pods, 2, NOW)
    assert failure is not None
    assert (failure.reason, failure.message) == (
        reason,
        f"pod news-1-1-x was removed from node node-1: {disruption}: test message",
    )
    assert REASONS[Reason(failure.reason)].disruption


def test_the_failure_of_an_evicted_pod_names_the_resource_that_its_node_lacked() -> None:
    failure = find_cause(build_child(), [build_pod(0, terminated=end(137, 3), evicted=LOW)], 1, NOW)
    assert failure is not None
    assert (failure.message, failure.exit_code) == (f"pod news-1-0-x was evicted by the kubelet of node-0: {LOW}", 137)
    assert "spec.pod.resources" in (failure.hint or "")


@pytest.mark.parametrize("message", [OWN_LIMIT, 'Container trainer exceeded its local ephemeral storage limit "1Gi". '])
def test_a_pod_that_exceeded_its_own_storage_is_told_which_limit_to_raise(message: str) -> None:
    failure = find_cause(build_child(), [build_pod(0, terminated=end(137, 3), evicted=message)], 1, NOW)
    assert failure is not None
    assert failure.reason == "DiskFull"
    assert "spec.pod.resources.limits.ephemeral-storage" in (failure.hint or "")
    assert "1Gi" in failure.message


@pytest.mark.parametrize(
    ("limit", "message", "field"),
    [
        ("300Mi", "pod news-1-0-x was killed: it reached its memory limit of 300Mi", "limits.memory"),
        (None, "pod news-1-0-x was killed because the memory of node-0 ran out: the pod has no memory limit", "requests.memory"),
    ],
)
def test_a_pod_that_was_killed_for_memory_is_told_what_to_raise(limit: str | None, message: str, field: str) -> None:
    pod = build_pod(0, terminated=end(137, 3, reason="OOMKilled"), memory_limit=limit)
    failure = find_cause(build_child(), [pod], 1, NOW)
    assert failure is not None
    assert failure.message == message
    assert f"spec.pod.resources.{field}" in (failure.hint or "")


def test_a_failure_keeps_what_the_first_failing_rank_reported() -> None:
    report = failed_with("CodeError", rank=5, traceback="KeyError: 'x'", exitCode=99)
    failure = find_cause(build_child(), [build_pod(0), build_pod(1, terminated=report)], 2, NOW)
    assert failure is not None
    assert (failure.rank, failure.node, failure.exit_code, failure.traceback) == (5, "node-1", 1, "KeyError: 'x'")
    assert failure.hint == REASONS[Reason.CODE_ERROR].hint


def test_a_pod_that_ended_with_its_node_is_no_failure_of_the_job() -> None:
    rebooted = build_pod(1, terminated=dataclasses.replace(end(255, 1), reason="Unknown"))
    failure = find_cause(build_child(), [build_pod(0, terminated=failed_with("CollectiveFailed")), rebooted], 2, NOW)
    assert failure is not None
    assert (failure.reason, failure.message) == ("NodeLost", "pod news-1-1-x ended when node node-1 went down")


@pytest.mark.parametrize(
    ("peer", "reason", "message"),
    [
        pytest.param(
            {"node_unreachable": True}, "NodeLost", "node node-1 of pod news-1-1-x does not answer", id="its node is unreachable"
        ),
        pytest.param({}, None, None, id="its grace period is not over"),
        pytest.param({"deletion_timestamp": ago(1)}, None, None, id="its grace period has just ended"),
        pytest.param({"deletion_timestamp": ago(31)}, "CollectiveFailed", "message of CollectiveFailed", id="no kubelet ends it"),
        pytest.param(
            {"deletion_timestamp": ago(19)}, "CollectiveFailed", "message of CollectiveFailed", id="it was deleted by force"
        ),
        pytest.param(
            {"deletion_requested_at": None, "deletion_timestamp": None},
            "CollectiveFailed",
            "message of CollectiveFailed",
            id="it keeps running",
        ),
        pytest.param(
            {"terminated": failed_with("CodeError", seconds_ago=1)},
            "CodeError",
            "message of CodeError",
            id="it reports the cause",
        ),
    ],
)
def test_a_failed_collective_is_explained_by_the_pod_that_has_not_ended(
    peer: dict[str, Any], reason: str | None, message: str | None
) -> None:
    failed_peer = build_pod(0, terminated=failed_with("CollectiveFailed", seconds_ago=20))
    terminating = build_pod(1, **{"deletion_requested_at": ago(19), "deletion_timestamp": ago(-41), **peer})
    failure = find_cause(build_child(failing=True), [failed_peer, terminating], 2, NOW)
    assert (failure and failure.reason) == reason
    assert (failure and failure.message) == message
