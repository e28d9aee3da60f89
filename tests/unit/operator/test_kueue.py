"""Jobs that a queue holds back: Kueue suspends and resumes the Job, and the attempt stays the same."""

import datetime
from typing import Any

import pytest

from finetune_api.status import FineTuneJobStatus, Restarts
from finetune_operator.parsing import read_child_job
from finetune_operator.policy.attempt import decide
from finetune_operator.policy.status import is_due
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
)

HELD = build_child(suspended=True)
WAITS = ("Pending", "couldn't assign flavors to pod set main: insufficient quota for cpu")


def pending(**changes: Any) -> FineTuneJobStatus:
    return running(**{"phase": "Pending", "reason": "PodsPending", "running_since": None, **changes})


def test_a_job_that_is_held_back_is_queued_for_kueues_reason() -> None:
    decision = decide(observe(jobs=[HELD], job=build_record(pending()), queueing=WAITS), None, NOW)
    assert (decision.status.phase, decision.status.reason, decision.status.message) == ("Queued", *WAITS)
    assert (decision.delete, decision.create_attempt, decision.status.attempt) == (None, None, 1)
    assert decision.needs_a_fresh_look(pending())
    again = decide(observe(jobs=[HELD], job=build_record(decision.status), queueing=WAITS), None, NOW)
    assert not is_due(build_record(decision.status, written=600), again.status, NOW)


def test_a_job_of_which_kueue_says_nothing_is_queued_all_the_same() -> None:
    status = decide(observe(jobs=[HELD], job=build_record(pending())), None, NOW).status
    assert (status.phase, status.reason) == ("Queued", "WaitingForQueue")


def test_a_queue_that_does_not_exist_is_a_condition_until_it_is_there() -> None:
    wrong = ("Inadmissible", "LocalQueue nope doesn't exist")
    told = decide(observe(jobs=[HELD], job=build_record(pending()), queueing=wrong), None, NOW).status
    assert [(item.type, item.status, item.reason, item.message) for item in told.conditions or ()] == [
        ("Blocked", "True", *wrong)
    ]
    healed = decide(observe(jobs=[HELD], job=build_record(told), queueing=WAITS), None, NOW).status
    assert (healed.phase, healed.conditions) == ("Queued", None)


@pytest.mark.parametrize(
    "pod",
    [
        {"deleted_at": ago(1)},
        {"finished": end(75, 1, phase="Interrupted")},
        {"finished": end(137, 9)},
        {"deleted_at": ago(1), "disruption": "PreemptionByKueueManager: preempted"},
    ],
)
def test_pods_that_end_while_the_job_is_held_back_are_no_failure(pod: dict[str, Any]) -> None:
    seen = observe(build_pod(0, **pod), build_pod(1, **pod), jobs=[HELD], job=build_record(running(seconds=125)), queueing=WAITS)
    status = decide(seen, None, NOW).status
    assert (status.phase, status.restarts, status.running_seconds, status.running_since) == ("Queued", Restarts(), 125, None)
    assert status.message == f"evicted after 2m05s of running, goes on from its last checkpoint: {WAITS[1]}"
    assert status.attempts is not None
    assert status.attempts[-1].completion_time is None


def test_time_in_the_queue_is_not_added_up_as_running() -> None:
    queued = running(phase="Queued", running_seconds=125, running_since=None)
    later = NOW + datetime.timedelta(hours=1)
    status = decide(observe(jobs=[HELD], job=build_record(queued), queueing=WAITS), None, later).status
    assert status.running_seconds == 125


def test_an_admitted_job_waits_for_its_pods_and_runs_as_the_same_attempt() -> None:
    queued = running(phase="Queued", running_seconds=125, running_since=None)
    child = build_child(started_at=ago(10))
    pending = decide(observe(jobs=[child], job=build_record(queued)), None, NOW).status
    assert (pending.phase, pending.attempt) == ("Pending", 1)
    pods = [build_pod(index, created=ago(9), started_at=ago(3)) for index in (0, 1)]
    status = decide(observe(*pods, jobs=[child], job=build_record(pending)), None, NOW).status
    assert (status.phase, status.attempt, status.running_seconds) == ("Initializing", 1, 125)


@pytest.mark.parametrize("pod", [{"deleted_at": ago(20)}, {"finished": end(75, 15, phase="Interrupted")}])
def test_pods_of_an_earlier_admission_are_nobodys_failure(pod: dict[str, Any]) -> None:
    old = [build_pod(index, name=f"old-{index}", created=ago(300), **pod) for index in (0, 1)]
    new = [build_pod(index, created=ago(9)) for index in (0, 1)]
    seen = observe(*old, *new, jobs=[build_child(started_at=ago(10))], job=build_record(running(seconds=5)))
    assert decide(seen, None, NOW).status.phase == "Running"
    assert [pod.name for pod in seen.pods_of(1)] == ["news-1-0-x", "news-1-1-x"]


def test_a_machine_whose_clock_is_behind_hides_no_end() -> None:
    pod = build_pod(0, created=ago(9), finished=failed_with("ConfigurationError", 64, seconds_ago=12))
    seen = observe(pod, build_pod(1), jobs=[build_child(started_at=ago(10))], job=build_record(running()))
    status = decide(seen, None, NOW).status
    assert (status.phase, status.reason) == ("Failed", "ConfigurationError")


def test_pods_that_are_a_little_older_than_the_jobs_start_count() -> None:
    pods = [build_pod(index, created=ago(11)) for index in (0, 1)]
    assert len(observe(*pods, jobs=[build_child(started_at=ago(10))]).pods_of(1)) == 2


def test_pods_of_a_large_gang_count_that_were_created_long_before_the_jobs_start_was_written() -> None:
    pods = [build_pod(index, created=ago(50 - index)) for index in (0, 1)]
    assert len(observe(*pods, jobs=[build_child(started_at=ago(10))]).pods_of(1)) == 2


def test_a_job_that_was_let_go_a_moment_ago_is_held_back_until_its_controller_has_seen_it() -> None:
    conditions = [{"type": "Suspended", "status": "True"}]
    child = read_child_job(child_manifest(spec={"completions": 2, "suspend": False}, status={"conditions": conditions}))
    assert child.suspended


@pytest.mark.parametrize("change", [{"deleting": True}, {"failed": "BackoffLimitExceeded", "ending": True}])
def test_a_job_that_is_gone_or_has_failed_is_not_queued(change: dict[str, Any]) -> None:
    decision = decide(observe(jobs=[build_child(suspended=True, **change)], job=build_record(running())), None, NOW)
    assert decision.status.phase == "Restarting"
