"""Jobs in a queue: Kueue suspends and resumes the Job, and the attempt stays the same."""

import datetime
from typing import Any

import pytest

from finetune_api.status import FineTuneJobStatus, Restarts
from finetune_operator.observed import Key
from finetune_operator.parsing import read_child_job, read_workload, read_workload_key
from finetune_operator.policy.attempt import decide
from finetune_operator.policy.status import is_write_due
from unit.operator.builders import (
    NOW,
    ago,
    build_child,
    build_pod,
    build_record,
    child_manifest,
    end,
    failed_with,
    observe,
    running,
    true_conditions,
    workload_manifest,
)

SUSPENDED = build_child(suspended=True)
QUEUEING = ("Pending", "couldn't assign flavors to pod set main: insufficient quota for cpu")


def pending(**changes: Any) -> FineTuneJobStatus:
    return running(**{"phase": "Pending", "reason": "PodsPending", "running_since": None, **changes})


def test_a_suspended_job_is_queued_with_the_reason_of_kueue() -> None:
    decision = decide(observe(jobs=[SUSPENDED], job=build_record(pending()), queueing=QUEUEING), None, NOW)
    assert (decision.status.phase, decision.status.reason, decision.status.message) == ("Queued", *QUEUEING)
    assert (decision.delete_child_job, decision.create_attempt, decision.status.attempt) == (None, None, 1)
    assert decision.requires_live_read(pending())
    again = decide(observe(jobs=[SUSPENDED], job=build_record(decision.status), queueing=QUEUEING), None, NOW)
    assert not is_write_due(build_record(decision.status, written=600), again.status, NOW)


def test_a_suspended_job_is_queued_even_without_a_reason_of_kueue() -> None:
    status = decide(observe(jobs=[SUSPENDED], job=build_record(pending())), None, NOW).status
    assert (status.phase, status.reason) == ("Queued", "WaitingForQueue")


def test_a_queue_that_does_not_exist_is_a_condition_until_it_exists() -> None:
    missing_queue = ("Inadmissible", "LocalQueue nope doesn't exist")
    blocked = decide(observe(jobs=[SUSPENDED], job=build_record(pending()), queueing=missing_queue), None, NOW).status
    assert [(item.type, item.status, item.reason, item.message) for item in blocked.conditions or ()] == [
        ("Blocked", "True", *missing_queue),
        ("QuotaReserved", "False", *missing_queue),
    ]
    unblocked = decide(observe(jobs=[SUSPENDED], job=build_record(blocked), queueing=QUEUEING), None, NOW).status
    assert (unblocked.phase, true_conditions(unblocked)) == ("Queued", [])


@pytest.mark.parametrize(
    "pod",
    [
        {"deletion_requested_at": ago(1)},
        {"terminated": end(75, 1, phase="Interrupted")},
        {"terminated": end(137, 9)},
        {"deletion_requested_at": ago(1), "disruption": "PreemptionByKueueManager: preempted"},
    ],
)
def test_pods_that_end_while_the_job_is_suspended_are_no_failure(pod: dict[str, Any]) -> None:
    observation = observe(
        build_pod(0, **pod), build_pod(1, **pod), jobs=[SUSPENDED], job=build_record(running(seconds=125)), queueing=QUEUEING
    )
    status = decide(observation, None, NOW).status
    assert (status.phase, status.restarts, status.running_seconds, status.bookkeeping.running_since) == (
        "Queued",
        Restarts(),
        125,
        None,
    )
    assert status.message == f"evicted after 2m05s of running, will continue from its last checkpoint: {QUEUEING[1]}"
    assert status.attempts is not None
    assert status.attempts[-1].completion_time is None


def test_time_in_the_queue_does_not_count_as_running_time() -> None:
    queued = running(phase="Queued", running_seconds=125, running_since=None)
    later = NOW + datetime.timedelta(hours=1)
    status = decide(observe(jobs=[SUSPENDED], job=build_record(queued), queueing=QUEUEING), None, later).status
    assert status.running_seconds == 125


def test_an_admitted_job_waits_for_its_pods_and_runs_as_the_same_attempt() -> None:
    queued = running(phase="Queued", running_seconds=125, running_since=None)
    child = build_child(started_at=ago(10))
    pending = decide(observe(jobs=[child], job=build_record(queued)), None, NOW).status
    assert (pending.phase, pending.attempt) == ("Pending", 1)
    pods = [build_pod(index, created=ago(9), started_at=ago(3)) for index in (0, 1)]
    status = decide(observe(*pods, jobs=[child], job=build_record(pending)), None, NOW).status
    assert (status.phase, status.attempt, status.running_seconds) == ("Initializing", 1, 125)


@pytest.mark.parametrize("pod", [{"deletion_requested_at": ago(20)}, {"terminated": end(75, 15, phase="Interrupted")}])
def test_pods_of_an_earlier_admission_are_no_failure(pod: dict[str, Any]) -> None:
    old = [build_pod(index, name=f"old-{index}", created=ago(300), **pod) for index in (0, 1)]
    new = [build_pod(index, created=ago(9)) for index in (0, 1)]
    observation = observe(*old, *new, jobs=[build_child(started_at=ago(10))], job=build_record(running(seconds=5)))
    assert decide(observation, None, NOW).status.phase == "Running"
    assert [pod.name for pod in observation.pods_of(1)] == ["news-1-0-x", "news-1-1-x"]


def test_a_node_whose_clock_is_behind_does_not_hide_a_terminated_pod() -> None:
    pod = build_pod(0, created=ago(9), terminated=failed_with("ConfigurationError", 64, seconds_ago=12))
    observation = observe(pod, build_pod(1), jobs=[build_child(started_at=ago(10))], job=build_record(running()))
    status = decide(observation, None, NOW).status
    assert (status.phase, status.reason) == ("Failed", "ConfigurationError")


def test_pods_that_are_slightly_older_than_the_start_of_the_job_count() -> None:
    pods = [build_pod(index, created=ago(11)) for index in (0, 1)]
    assert len(observe(*pods, jobs=[build_child(started_at=ago(10))]).pods_of(1)) == 2


def test_pods_that_were_created_long_before_the_start_of_a_large_job_was_written_count() -> None:
    pods = [build_pod(index, created=ago(50 - index)) for index in (0, 1)]
    assert len(observe(*pods, jobs=[build_child(started_at=ago(10))]).pods_of(1)) == 2


def test_a_resumed_job_counts_as_suspended_until_its_controller_has_seen_the_change() -> None:
    conditions = [{"type": "Suspended", "status": "True"}]
    child = read_child_job(child_manifest(spec={"completions": 2, "suspend": False}, status={"conditions": conditions}))
    assert child.suspended


@pytest.mark.parametrize("change", [{"deleting": True}, {"failed": "BackoffLimitExceeded", "failing": True}])
def test_a_job_that_is_being_deleted_or_has_failed_is_not_queued(change: dict[str, Any]) -> None:
    decision = decide(observe(jobs=[build_child(suspended=True, **change)], job=build_record(running())), None, NOW)
    assert decision.status.phase == "Restarting"


def test_a_queued_job_keeps_what_kueue_said_last_until_it_says_something_else() -> None:
    queued = running(phase="Queued", reason=QUEUEING[0], message=QUEUEING[1], running_since=None)
    observation = observe(jobs=[SUSPENDED], job=build_record(queued), live=False)
    decision = decide(observation, None, NOW)
    assert (decision.status.reason, decision.status.message) == QUEUEING
    assert not decision.requires_live_read(queued)


@pytest.mark.parametrize(
    ("conditions", "queueing"),
    [
        pytest.param([], None, id="no condition yet"),
        pytest.param([("QuotaReserved", "False", "Pending", "no quota")], ("Pending", "no quota"), id="waits for quota"),
        pytest.param(
            [("QuotaReserved", "False", "Inadmissible", "LocalQueue nope doesn't exist")],
            ("Inadmissible", "LocalQueue nope doesn't exist"),
            id="no such queue",
        ),
        pytest.param(
            [("QuotaReserved", "True", "QuotaReserved", ""), ("Admitted", "False", "Waiting", "for a check")],
            ("Waiting", "for a check"),
            id="waits for a check",
        ),
        pytest.param(
            [("QuotaReserved", "True", "QuotaReserved", ""), ("Evicted", "True", "Preempted", "by another")],
            ("Preempted", "by another"),
            id="evicted",
        ),
        pytest.param([("QuotaReserved", "False", "", "")], ("WaitingForQueue", "waiting in the queue"), id="without a reason"),
        pytest.param([("QuotaReserved", "True", "QuotaReserved", ""), ("Admitted", "True", "", "")], None, id="just admitted"),
    ],
)
def test_the_reason_why_kueue_suspends_a_job_is_read_from_its_workload(
    conditions: list[tuple[str, str, str, str]], queueing: tuple[str, str] | None
) -> None:
    workload = read_workload(workload_manifest(*conditions))
    assert (workload.job_uid, workload.waiting) == ("job-1", queueing)


@pytest.mark.parametrize(
    ("owner", "key"),
    [
        pytest.param({"kind": "Job", "name": "news-de-12"}, Key("team", "news-de"), id="the last part is the attempt"),
        pytest.param({"kind": "Job", "name": "news"}, None, id="not of an attempt"),
        pytest.param({"kind": "Job", "name": "7"}, None, id="only a number"),
        pytest.param({"kind": "RayJob", "name": "news-1"}, None, id="not of a Job"),
    ],
)
def test_a_workload_belongs_to_the_job_whose_attempt_owns_it(owner: dict[str, str], key: Key | None) -> None:
    manifest = workload_manifest()
    manifest["metadata"]["ownerReferences"] = [{**owner, "uid": "job-1", "controller": True}]
    assert read_workload_key(manifest) == key
