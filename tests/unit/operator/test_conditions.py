"""The conditions of a job in each phase, as `kubectl wait`, kstatus (Flux), and Argo CD read them."""

import datetime
from typing import Any, get_args

import pytest

from finetune_api import names
from finetune_api.status import CONDITIONS, Condition, ConditionType, FineTuneJobStatus, Phase
from finetune_operator.observed import JobRecord, write_time
from finetune_operator.policy.attempt import decide
from finetune_operator.policy.conditions import complete_conditions
from finetune_operator.policy.status import blocked, is_write_due
from unit.operator.builders import NOW, ago, build_child, build_pod, build_record, build_spec, job_manifest, observe, running

JOB = build_record()
# Phase and reason of a status → the condition that is true with the phase, and the status by kstatus' rules.
PHASES: dict[tuple[Phase, str], tuple[str | None, str]] = {
    ("Queued", "Pending"): (None, "InProgress"),
    ("Pending", "PodsPending"): (None, "InProgress"),
    ("Initializing", "Initializing"): (None, "InProgress"),
    ("Running", "Training"): ("Running", "Current"),
    ("Restarting", "NodeLost"): (None, "InProgress"),
    ("Suspended", "Stopping"): (None, "InProgress"),
    ("Suspended", "Suspended"): ("Suspended", "Current"),
    ("Publishing", "Publishing"): (None, "Current"),
    ("Succeeded", "Completed"): ("Complete", "Current"),
    ("Failed", "DataError"): ("Failed", "Failed"),
}


def kstatus(manifest: dict[str, Any]) -> str:
    """Return the status that kstatus computes for an object whose kind it does not know (cli-utils, pkg/kstatus/status)."""
    metadata, status = manifest["metadata"], manifest.get("status", {})
    if "deletionTimestamp" in metadata:
        return "Terminating"
    if status.get("observedGeneration", metadata["generation"]) != metadata["generation"]:
        return "InProgress"
    conditions = status.get("conditions", ())
    for condition in conditions:
        if condition["type"] == "Reconciling" and condition["status"] == "True":
            return "InProgress"
        if condition["type"] == "Stalled" and condition["status"] == "True":
            return "Failed"
    ready = [condition["status"] for condition in conditions if condition["type"] == "Ready"]
    return "Current" if ready in ([], ["True"]) else "InProgress"


def completed(status: FineTuneJobStatus, job: JobRecord = JOB, now: datetime.datetime = NOW) -> dict[str, Condition]:
    return {item.type: item for item in complete_conditions(job, status, now).conditions or ()}


def values(status: FineTuneJobStatus, job: JobRecord = JOB) -> dict[str, str]:
    return {kind: item.status for kind, item in completed(status, job).items()}


def test_the_tables_have_every_phase_and_every_condition() -> None:
    assert {phase for phase, _ in PHASES} == set(get_args(Phase))
    assert set(CONDITIONS) == set(get_args(ConditionType))


@pytest.mark.parametrize(("phase", "reason"), PHASES)
def test_every_phase_has_all_conditions_with_true_or_false(phase: Phase, reason: str) -> None:
    true = PHASES[phase, reason][0]
    found = values(running(phase=phase, reason=reason))
    outcomes = {kind: found[kind] for kind in ("Complete", "Failed", "Running", "Suspended", "Blocked")}
    assert outcomes == {kind: "True" if kind == true else "False" for kind in outcomes}
    assert sorted(found[kind] for kind in ("Ready", "Reconciling", "Stalled")) == ["False", "False", "True"]


@pytest.mark.parametrize(("phase", "reason"), PHASES)
def test_kstatus_reads_each_phase_as_it_reads_a_job_of_kubernetes(phase: Phase, reason: str) -> None:
    assert kstatus(job_manifest(status=running(phase=phase, reason=reason))) == PHASES[phase, reason][1]


def test_a_change_of_the_spec_is_in_progress_for_kstatus_until_it_is_observed_even_after_the_end() -> None:
    status = running(phase="Succeeded", reason="Completed", completion_time=write_time(ago(900)))
    assert kstatus(job_manifest(status=status, generation=2)) == "InProgress"
    after = decide(observe(job=build_record(status, generation=2)), None, NOW).status
    assert kstatus(job_manifest(status=after, generation=2)) == "Current"


def test_a_blocked_job_is_stalled_for_kstatus_with_the_cause() -> None:
    status = blocked(running(), JOB, "Pending", "NameTaken", "Service news-gang is there", NOW)
    assert kstatus(job_manifest(status=status)) == "Failed"
    stalled = completed(status)["Stalled"]
    assert (stalled.reason, stalled.message) == ("NameTaken", "Service news-gang is there")


def test_a_condition_that_is_over_is_false_with_a_reason_and_the_time_of_the_change() -> None:
    status = blocked(running(), JOB, "Pending", "NameTaken", "Service news-gang is there", NOW)
    before = complete_conditions(JOB, status, ago(60))
    after = complete_conditions(build_record(before), running(), NOW)
    again = completed(after, build_record(after), ago(-60))
    assert (again["Blocked"].status, again["Blocked"].reason) == ("False", "NotBlocked")
    assert again["Blocked"].last_transition_time == write_time(NOW), "the time of the change, not of the last write"
    assert again["Complete"].last_transition_time == write_time(ago(60))


@pytest.mark.parametrize("kind", ["CheckpointFailing", "TrainingStalled"])
def test_a_problem_of_the_training_is_listed_from_its_first_time_on(kind: Any) -> None:
    assert kind not in values(running())
    now = write_time(ago(60))
    condition = Condition(type=kind, status="True", reason="Why", message="", last_transition_time=now, observed_generation=1)
    problem = complete_conditions(JOB, running(conditions=[condition]), ago(60))
    assert values(problem)[kind] == "True"
    assert values(running(), build_record(problem))[kind] == "False"


def test_a_resumed_job_says_so() -> None:
    before = complete_conditions(JOB, running(phase="Suspended", reason="Suspended"), ago(60))
    resumed = complete_conditions(build_record(before), running(phase="Pending", reason="PodsPending"), NOW)
    later = completed(running(), build_record(resumed))["Suspended"]
    assert (later.status, later.reason, later.last_transition_time) == ("False", "Resumed", write_time(NOW))
    assert completed(running())["Suspended"].reason == "NotSuspended"


def test_a_job_of_a_queue_has_quota_while_its_job_is_not_suspended() -> None:
    job = build_record(running(), kueue_labels={names.LABEL_KUEUE_QUEUE: "team"})
    assert values(running(phase="Pending"), job)["QuotaReserved"] == "False"
    pods = [build_pod(0), build_pod(1)]
    admitted = decide(observe(*pods, job=job), None, NOW).status
    assert values(admitted, job)["QuotaReserved"] == "True"
    evicted = decide(observe(*pods, jobs=[build_child(suspended=True)], job=build_record(admitted)), None, NOW).status
    assert values(evicted, job)["QuotaReserved"] == "False"
    assert "QuotaReserved" not in values(running()), "a job without a queue needs none"


def test_a_job_that_publishes_is_not_published_until_it_is() -> None:
    job = build_record(running(), build_spec(publish={"repository": "team/news"}))
    assert values(running(), job)["Published"] == "False"
    assert "Published" not in values(running())


def test_a_status_without_a_change_is_not_written_again() -> None:
    before = complete_conditions(JOB, running(), ago(600))
    after = complete_conditions(build_record(before), before, NOW)
    assert after == before
    assert not is_write_due(build_record(before, written=600), after, NOW)
