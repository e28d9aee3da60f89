"""Which of a gang's ends is the cause of its failure."""

import dataclasses
from typing import Any

import pytest

from finetune_api import names
from finetune_api.reasons import VERDICTS, Reason
from finetune_operator.policy.failure import find_cause
from unit.operator.builders import NOW, ago, build_child, build_pod, end, failed_with

DRAIN = "EvictionByEvictionAPI: Eviction API: evicting"
LOW = "The node was low on resource: ephemeral-storage."
RUNNING: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("first", "second", "ending", "reason", "node"),
    [
        pytest.param(RUNNING, RUNNING, False, None, None, id="nothing failed"),
        pytest.param(RUNNING, {"finished": failed_with("DataError", 64)}, True, "DataError", "node-1", id="reported"),
        pytest.param(
            {"finished": failed_with("CollectiveFailed", seconds_ago=9)},
            {"finished": failed_with("CodeError", seconds_ago=7)},
            True,
            "CodeError",
            "node-1",
            id="the culprit ended after its victim",
        ),
        pytest.param(
            {"finished": failed_with("CodeError", seconds_ago=7)},
            {"finished": failed_with("OutOfGPUMemory", seconds_ago=8)},
            True,
            "OutOfGPUMemory",
            "node-1",
            id="the first of two that report",
        ),
        pytest.param(
            {"finished": failed_with("CollectiveFailed", seconds_ago=2)}, RUNNING, False, None, None, id="a victim waits"
        ),
        pytest.param(
            {"finished": failed_with("CollectiveFailed", seconds_ago=6)},
            RUNNING,
            False,
            "CollectiveFailed",
            "node-0",
            id="a victim waits no longer than its time",
        ),
        pytest.param(
            {"finished": failed_with("CollectiveFailed", seconds_ago=1)},
            {"finished": failed_with("CollectiveFailed", seconds_ago=1)},
            True,
            "CollectiveFailed",
            "node-0",
            id="when all have ended nothing better can come",
        ),
        pytest.param(
            {"finished": failed_with("CollectiveFailed", seconds_ago=1)},
            {"finished": end(137, 1)},
            True,
            "WorkerDied",
            "node-1",
            id="a wordless end is better than a victim's",
        ),
        pytest.param(RUNNING, {"finished": end(137, 2)}, True, None, None, id="a wordless end waits"),
        pytest.param(RUNNING, {"finished": end(137, 6)}, True, "WorkerDied", "node-1", id="a wordless end"),
        pytest.param(
            RUNNING, {"finished": end(137, 1, reason="OOMKilled")}, True, "OutOfMemory", "node-1", id="killed for memory"
        ),
        pytest.param(
            RUNNING, {"finished": end(names.EXIT_REFUSED, 1)}, True, "ConfigurationError", "node-1", id="refused without a word"
        ),
        pytest.param(
            RUNNING,
            {"finished": end(names.EXIT_INTERRUPTED, 6, phase="Interrupted")},
            True,
            "Interrupted",
            "node-1",
            id="asked to stop by its machine",
        ),
        pytest.param(RUNNING, {"deleted_at": ago(0)}, False, "PodLost", "node-1", id="a deleted pod is lost at once"),
        pytest.param(
            RUNNING,
            {"deleted_at": ago(1), "finished": end(names.EXIT_INTERRUPTED, 0, phase="Interrupted")},
            True,
            "PodLost",
            "node-1",
            id="a deleted pod that saved",
        ),
        pytest.param(
            {"deleted_at": ago(8)},
            {"finished": failed_with("CodeError", seconds_ago=9)},
            True,
            "CodeError",
            "node-1",
            id="the Job deletes the others after a failure",
        ),
        pytest.param(
            {"deleted_at": ago(9)},
            {"finished": end(137, 9)},
            True,
            "WorkerDied",
            "node-1",
            id="the Job deletes the others after a wordless end",
        ),
        pytest.param(
            {"deleted_at": ago(9)},
            {"finished": failed_with("CollectiveFailed", seconds_ago=5)},
            True,
            "PodLost",
            "node-0",
            id="a pod deleted before its peers failed",
        ),
        pytest.param(
            {"deleted_at": ago(9)},
            {"finished": failed_with("CodeError", seconds_ago=5)},
            True,
            "PodLost",
            "node-0",
            id="what peers of a deleted pod report is its consequence",
        ),
        pytest.param(RUNNING, {"deleted_at": ago(0), "disruption": DRAIN}, False, "NodeLost", "node-1", id="evicted by a drain"),
        pytest.param(
            RUNNING,
            {"finished": end(None, 3, reason="Evicted"), "disruption": f"TerminationByKubelet: {LOW}", "evicted": LOW},
            False,
            "Evicted",
            "node-1",
            id="evicted by its kubelet",
        ),
        pytest.param(
            RUNNING,
            {"finished": end(137, 3), "disruption": f"TerminationByKubelet: {LOW}", "evicted": LOW},
            True,
            "Evicted",
            "node-1",
            id="killed when it was evicted by its kubelet",
        ),
        pytest.param(
            RUNNING,
            {"finished": end(75, 3, phase="Interrupted"), "disruption": "TerminationByKubelet: Pod was terminated: shutdown"},
            True,
            "NodeLost",
            "node-1",
            id="its machine shuts down",
        ),
        pytest.param(RUNNING, {"finished": end(None, 9, reason="OutOfcpu")}, True, "PodLost", "node-1", id="its kubelet refused"),
        pytest.param({"finished": end(0)}, RUNNING, False, None, None, id="the first one is through"),
        pytest.param(
            {"finished": end(0), "deleted_at": ago(1)}, RUNNING, False, None, None, id="a pod that is through may be deleted"
        ),
        pytest.param(
            RUNNING,
            {"finished": failed_with("NoSuchReason", seconds_ago=9)},
            True,
            "NoSuchReason",
            "node-1",
            id="a reason of tomorrow",
        ),
    ],
)
def test_the_cause_of_a_gangs_failure(
    first: dict[str, Any], second: dict[str, Any], ending: bool, reason: str | None, node: str | None
) -> None:
    failure = find_cause(build_child(ending=ending), [build_pod(0, **first), build_pod(1, **second)], 2, NOW)
    assert (failure.reason if failure else None, failure.node if failure else None) == (reason, node)


def test_a_failed_job_whose_pod_is_gone_names_the_pod() -> None:
    child = build_child(ending=True, failed="Job has reached the specified backoff limit")
    failure = find_cause(child, [build_pod(0)], 2, NOW)
    assert failure is not None
    assert (failure.reason, failure.message) == ("PodLost", "pod news-1-1 disappeared")


def test_a_job_that_was_deleted_is_a_lost_attempt() -> None:
    failure = find_cause(None, [build_pod(0, deleted_at=ago(0)), build_pod(1, deleted_at=ago(0))], 2, NOW)
    assert failure is not None
    assert (failure.reason, failure.message) == ("PodLost", "the Job of this attempt was deleted, and its pods with it")


def test_every_failure_has_a_hint_and_the_pods_own_is_kept() -> None:
    told = find_cause(build_child(), [build_pod(1, finished=failed_with("DataError", 64, hint="Look at line 7."))], 1, NOW)
    silent = find_cause(build_child(), [build_pod(1, finished=failed_with("DataError", 64))], 1, NOW)
    assert told is not None
    assert silent is not None
    assert told.hint == "Look at line 7."
    assert silent.hint == VERDICTS[Reason.DATA_ERROR].hint
    assert silent.exit_code == 64


def test_a_long_traceback_keeps_its_end() -> None:
    text = "x" * 3500 + "ValueError: here"
    failure = find_cause(build_child(), [build_pod(0, finished=failed_with("CodeError", traceback=text))], 1, NOW)
    assert failure is not None
    assert failure.traceback is not None
    assert failure.traceback.endswith("ValueError: here")
    assert len(failure.traceback) == 3000


@pytest.mark.parametrize("message", ["", "garbage", "{", '{"attempt": 1}', '{"attempt": 1, "phase": "Failed", "loss": NaN}'])
def test_a_termination_message_that_is_no_report_counts_as_no_word(message: str) -> None:
    finished = end(1, 9)
    pod = build_pod(0, finished=type(finished)(1, "Error", message, finished.at))
    failure = find_cause(build_child(), [pod], 1, NOW)
    assert failure is not None
    assert failure.reason == "WorkerDied"


@pytest.mark.parametrize(
    ("taken_by", "reason"),
    [
        ("PreemptionByScheduler", "Preempted"),
        ("PreemptionByKueueManager", "Preempted"),
        ("DeletionByTaintManager", "NodeLost"),
        ("DeletionByPodGC", "NodeLost"),
        ("EvictionByEvictionAPI", "NodeLost"),
        ("SomethingOfTomorrow", "PodLost"),
    ],
)
def test_who_took_a_pod_away_says_what_became_of_it(taken_by: str, reason: str) -> None:
    pods = [build_pod(0), build_pod(1, deleted_at=ago(0), disruption=f"{taken_by}: so it is")]
    failure = find_cause(build_child(), pods, 2, NOW)
    assert failure is not None
    assert (failure.reason, failure.message) == (reason, f"pod news-1-1-x was taken from node-1: {taken_by}: so it is")
    assert VERDICTS[Reason(failure.reason)].disruption


def test_a_pod_that_its_kubelet_evicted_says_what_its_machine_ran_short_of() -> None:
    failure = find_cause(build_child(), [build_pod(0, finished=end(137, 3), evicted=LOW)], 1, NOW)
    assert failure is not None
    assert (failure.message, failure.exit_code) == (f"pod news-1-0-x was evicted by the kubelet of node-0: {LOW}", 137)
    assert "spec.pod.resources" in (failure.hint or "")


def test_a_failure_keeps_what_the_first_failing_rank_said() -> None:
    word = failed_with("CodeError", rank=5, traceback="KeyError: 'x'", exitCode=99)
    failure = find_cause(build_child(), [build_pod(0), build_pod(1, finished=word)], 2, NOW)
    assert failure is not None
    assert (failure.rank, failure.node, failure.exit_code, failure.traceback) == (5, "node-1", 1, "KeyError: 'x'")
    assert failure.hint == VERDICTS[Reason.CODE_ERROR].hint


def test_a_pod_that_ended_with_its_machine_is_no_failure_of_the_job() -> None:
    rebooted = build_pod(1, finished=dataclasses.replace(end(255, 1), reason="Unknown"))
    failure = find_cause(build_child(), [build_pod(0, finished=failed_with("CollectiveFailed")), rebooted], 2, NOW)
    assert failure is not None
    assert (failure.reason, failure.message) == ("NodeLost", "pod news-1-1-x ended when its machine node-1 went down")


@pytest.mark.parametrize(
    ("peer", "reason", "message"),
    [
        pytest.param({"silent": True}, "NodeLost", "machine node-1 of pod news-1-1-x does not answer", id="its machine is gone"),
        pytest.param({}, None, None, id="it has its time yet"),
        pytest.param({"due_at": ago(1)}, None, None, id="its time is over, and nobody has ended it yet"),
        pytest.param({"due_at": ago(31)}, "CollectiveFailed", "CollectiveFailed it was", id="nobody will"),
        pytest.param({"due_at": ago(19)}, "CollectiveFailed", "CollectiveFailed it was", id="it was deleted by force"),
        pytest.param({"deleted_at": None, "due_at": None}, "CollectiveFailed", "CollectiveFailed it was", id="it goes on"),
        pytest.param({"finished": failed_with("CodeError", seconds_ago=1)}, "CodeError", "CodeError it was", id="it says why"),
    ],
)
def test_what_a_victim_felt_is_explained_by_the_pod_that_is_still_there(
    peer: dict[str, Any], reason: str | None, message: str | None
) -> None:
    victim = build_pod(0, finished=failed_with("CollectiveFailed", seconds_ago=20))
    going = build_pod(1, **{"deleted_at": ago(19), "due_at": ago(-41), **peer})
    failure = find_cause(build_child(ending=True), [victim, going], 2, NOW)
    assert (failure and failure.reason) == reason
    assert (failure and failure.message) == message
