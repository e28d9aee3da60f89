"""Limits: the deadline, the start timeout, and the withdrawal of an attempt whose pods can't all be created."""

import dataclasses
from typing import Any

import pytest

from finetune_api.status import Attempt, FineTuneJobStatus, Restarts
from finetune_operator.observed import write_time
from finetune_operator.policy.attempt import PARTIAL_GANG_TIMEOUT, decide
from finetune_operator.policy.restart import WITHDRAWAL_DELAY
from finetune_operator.policy.status import is_write_due
from unit.operator.builders import NOW, ago, build_child, build_pod, build_record, build_spec, observe, running

QUOTA = 'Error creating: pods "news-1-1" is forbidden: exceeded quota: gpus, requested: 1, used: 4, limited: 4'
UNSCHEDULABLE = ("Unschedulable", "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.")
CREATING = ("ContainerCreating", "")


def pending(seconds: float, **changes: Any) -> FineTuneJobStatus:
    """Return the status of a job whose current attempt was created ``seconds`` ago."""
    attempts = [Attempt(number=1, start_time=write_time(ago(seconds)), nodes=2)]
    return running(
        **{"phase": "Pending", "reason": "PodsPending", "message": "", "running_since": None, "attempts": attempts, **changes}
    )


def waiting(index: int, why: tuple[str, str] | None = UNSCHEDULABLE) -> Any:
    return build_pod(index, started=False, waiting=why)


@pytest.mark.parametrize(
    ("before", "now", "over"),
    [(0, 99, False), (0, 100, True), (90, 9, False), (90, 10, True), (100, 0, True)],
)
def test_the_deadline_counts_the_running_time_of_all_attempts(before: int, now: int, over: bool) -> None:
    spec = build_spec(activeDeadlineSeconds=100)
    status = running(seconds=now, running_seconds=before or None)
    decision = decide(observe(build_pod(0), build_pod(1), job=build_record(status, spec)), None, NOW)
    assert decision.status.phase == ("Failed" if over else "Running")
    if over:
        assert decision.status.reason == "DeadlineExceeded"
        assert decision.status.message == "the job ran for 1m40s, activeDeadlineSeconds allows 1m40s"
        assert decision.status.running_seconds == 100
        assert decision.requires_live_read(status)


def test_a_job_is_requeued_in_time_for_its_deadline() -> None:
    spec = build_spec(activeDeadlineSeconds=70)
    decision = decide(observe(build_pod(0), build_pod(1), job=build_record(running(seconds=60), spec)), None, NOW)
    assert decision.requeue_after_seconds == 10.5


def test_time_before_all_pods_run_does_not_count() -> None:
    spec = build_spec(activeDeadlineSeconds=100)
    observation = observe(build_pod(0), waiting(1), job=build_record(pending(1000), spec))
    assert decide(observation, None, NOW).status.phase == "Pending"
    pods = [build_pod(0, started_at=ago(900)), build_pod(1, started_at=ago(30))]
    status = decide(observe(*pods, job=build_record(pending(1000), spec)), None, NOW).status
    assert (status.phase, status.bookkeeping.running_since) == ("Initializing", write_time(ago(30)))


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        (CREATING, "StartTimeout"),
        (("ImagePullBackOff", "Back-off pulling image"), "ImagePullFailed"),
        (("CreateContainerConfigError", 'secret "hub" not found'), "SecretNotFound"),
        (("Unschedulable", 'persistentvolumeclaim "data" not found'), "ClaimNotFound"),
    ],
)
def test_an_attempt_that_does_not_start_in_time_fails_with_its_cause(why: tuple[str, str], reason: str) -> None:
    spec = build_spec(recovery={"startTimeoutSeconds": 600})
    early = decide(observe(build_pod(0), waiting(1, why), job=build_record(pending(599), spec)), None, NOW)
    assert early.status.phase == "Pending"
    late = decide(observe(build_pod(0), waiting(1, why), job=build_record(pending(600), spec)), None, NOW)
    assert (late.status.phase, late.status.reason) == ("Failed", reason)
    assert (late.status.message or "").startswith("not started within 10m00s (recovery.startTimeoutSeconds): pod news-1-1-x")
    assert late.status.failure is not None
    assert late.status.failure.hint
    assert late.requires_live_read(pending(600))


def test_an_attempt_whose_pods_the_cluster_refuses_fails_in_time_too() -> None:
    observation = observe(
        job=build_record(pending(3601)), refusal='pods "news-1-0" is forbidden: violates PodSecurity "restricted"'
    )
    assert decide(observation, None, NOW).status.reason == "PodRejected"


def test_a_start_timeout_of_zero_never_expires() -> None:
    spec = build_spec(recovery={"startTimeoutSeconds": 0})
    observation = observe(build_pod(0), waiting(1, CREATING), job=build_record(pending(10**6), spec))
    assert decide(observation, None, NOW).status.phase == "Pending"


def test_a_job_waits_for_free_nodes_without_a_timeout_unless_its_user_sets_one() -> None:
    pods = [waiting(0), waiting(1)]
    status = pending(10**6)  # for example after a preemption, on a full cluster
    decision = decide(observe(*pods, job=build_record(status)), None, NOW)
    assert (decision.status.phase, decision.status.reason) == ("Pending", "Unschedulable")
    spec = build_spec(recovery={"scheduleTimeoutSeconds": 600})
    assert decide(observe(*pods, job=build_record(pending(599), spec)), None, NOW).status.phase == "Pending"
    late = decide(observe(*pods, job=build_record(pending(600), spec)), None, NOW).status
    assert (late.phase, late.reason) == ("Failed", "StartTimeout")
    assert (late.message or "").startswith("not started within 10m00s (recovery.scheduleTimeoutSeconds): pod news-1-0-x")


def test_a_job_waits_for_its_scheduling_gates_as_it_waits_for_nodes() -> None:
    pods = [waiting(index, ("SchedulingGated", "Scheduling is blocked")) for index in range(2)]
    decision = decide(observe(*pods, job=build_record(pending(10**6))), None, NOW)
    assert (decision.status.phase, decision.status.reason) == ("Pending", "SchedulingGated")


def test_a_half_placed_attempt_releases_its_nodes_after_ten_minutes() -> None:
    def decided(placed_seconds: float) -> FineTuneJobStatus:
        placed = build_pod(0, started_at=ago(placed_seconds), created=ago(5000))
        other = build_pod(1, node=None, address=None, started=False, waiting=UNSCHEDULABLE)
        return decide(observe(placed, other, job=build_record(pending(5000))), None, NOW).status

    assert decided(600).phase == "Pending", "an autoscaler may still add a node"
    status = decided(601)
    assert (status.phase, status.reason) == ("Queued", "Unschedulable")
    assert "there is room for some of the pods only" in (status.message or "")
    assert status.restarts == Restarts(), "it costs no restart"
    assert status.attempts is not None
    assert status.attempts[-1].reason == "Unschedulable"


def test_two_jobs_that_took_each_others_nodes_try_again_at_different_times() -> None:
    def seconds(uid: str, attempts: int) -> float:
        ended = [
            Attempt(
                number=number, start_time=write_time(ago(99)), completion_time=write_time(NOW), nodes=2, reason="Unschedulable"
            )
            for number in range(1, attempts + 1)
        ]
        status = pending(0, phase="Queued", reason="Unschedulable", attempt=attempts, attempts=ended)
        decision = decide(observe(jobs=[], job=dataclasses.replace(build_record(status), uid=uid)), None, NOW)
        assert decision.requeue_after_seconds is not None
        return decision.requeue_after_seconds

    pauses = [seconds(f"uid-{number}", 1) for number in range(20)]
    assert min(pauses) >= 60
    assert max(pauses) <= 90
    assert max(pauses) - min(pauses) > 15
    assert 240 <= seconds("uid-1", 3) <= 360


def test_a_job_waits_for_a_quota_without_a_timeout() -> None:
    decision = decide(observe(job=build_record(pending(10**6)), refusal=QUOTA), None, NOW)
    assert (decision.status.phase, decision.status.reason) == ("Pending", "QuotaExceeded")


def test_time_in_a_queue_does_not_count_as_time_to_start() -> None:
    child = build_child(started_at=ago(100))
    pods = [build_pod(0), waiting(1, CREATING)]
    observation = observe(*pods, jobs=[child], job=build_record(pending(10**6, phase="Queued")))
    assert decide(observation, None, NOW).status.phase == "Pending"
    late = observe(*pods, jobs=[build_child(started_at=ago(3700))], job=build_record(pending(10**6)))
    assert decide(late, None, NOW).status.reason == "StartTimeout"


def test_a_partial_attempt_releases_its_nodes_if_a_quota_refuses_its_other_pods() -> None:
    early = decide(observe(build_pod(0), job=build_record(pending(30)), refusal=QUOTA), None, NOW)
    assert (early.status.phase, early.status.reason) == ("Pending", "QuotaExceeded")
    late = decide(observe(build_pod(0), job=build_record(pending(31)), refusal=QUOTA), None, NOW)
    assert PARTIAL_GANG_TIMEOUT.total_seconds() == 30
    assert (late.status.phase, late.status.reason) == ("Queued", "QuotaExceeded")
    assert "exceeded quota: gpus" in (late.status.message or "")
    assert late.status.attempts is not None
    assert (late.status.attempts[-1].completion_time, late.status.attempts[-1].reason) == (write_time(NOW), "QuotaExceeded")
    assert late.requires_live_read(pending(31))


def test_an_attempt_without_pods_is_not_withdrawn() -> None:
    assert decide(observe(job=build_record(pending(600)), refusal=QUOTA), None, NOW).status.phase == "Pending"


def test_a_withdrawn_attempt_is_deleted_and_retried_a_minute_later_as_the_next_attempt() -> None:
    def withdrawn(seconds: float) -> FineTuneJobStatus:
        ended = Attempt(number=1, start_time=write_time(ago(99)), completion_time=write_time(ago(seconds)), nodes=2)
        return pending(0, phase="Queued", reason="QuotaExceeded", attempts=[ended])

    first = decide(observe(build_pod(0), job=build_record(withdrawn(1))), None, NOW)
    assert first.delete_child_job == build_child()
    second = decide(observe(build_pod(0), jobs=[], job=build_record(withdrawn(1), written=1)), None, NOW)
    assert (second.delete_child_job, second.create_attempt, second.status.phase) == (None, None, "Queued")
    third = decide(observe(jobs=[], job=build_record(withdrawn(10))), None, NOW)
    assert third.create_attempt is None
    assert 50 <= (third.requeue_after_seconds or 0) <= 80
    fourth = decide(observe(jobs=[], job=build_record(withdrawn(1.5 * WITHDRAWAL_DELAY.total_seconds()))), None, NOW)
    assert fourth.create_attempt == 2
    assert fourth.status.restarts == Restarts()


@pytest.mark.parametrize("refusal", [QUOTA, 'pods "news-1-0" is forbidden: violates PodSecurity "restricted"'])
def test_a_refusal_of_pods_is_not_forgotten_between_two_checks(refusal: str) -> None:
    first = decide(observe(job=build_record(pending(60)), refusal=refusal), None, NOW).status
    record = build_record(first, written=20)
    again = decide(observe(job=record, live=False), None, NOW).status
    assert not is_write_due(record, again, NOW)


def test_an_attempt_that_ran_and_lost_a_pod_has_not_failed_to_start() -> None:
    status = running(seconds=7200)
    decision = decide(observe(build_pod(0), job=build_record(status)), None, NOW)
    assert decision.status.reason != "StartTimeout"
