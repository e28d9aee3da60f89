"""What ends a job that runs too long or never starts, and makes a gang retreat that can't become whole."""

from typing import Any

import pytest

from finetune_api.status import Attempt, FineTuneJobStatus, Restarts
from finetune_operator.observed import write_time
from finetune_operator.policy.aside import QUOTA_PAUSE
from finetune_operator.policy.attempt import PARTIAL_GANG, decide
from finetune_operator.policy.status import is_due
from unit.operator.builders import NOW, ago, build_child, build_pod, build_record, build_spec, observe, running

QUOTA = 'Error creating: pods "news-1-1" is forbidden: exceeded quota: gpus, requested: 1, used: 4, limited: 4'
UNSCHEDULABLE = ("Unschedulable", "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.")


def pending(seconds: float, **changes: Any) -> FineTuneJobStatus:
    """A job whose present attempt was created so long ago."""
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
        assert decision.needs_a_fresh_look(status)


def test_a_job_is_looked_at_in_time_for_its_deadline() -> None:
    spec = build_spec(activeDeadlineSeconds=70)
    decision = decide(observe(build_pod(0), build_pod(1), job=build_record(running(seconds=60), spec)), None, NOW)
    assert decision.again_seconds == 10.5


def test_time_before_the_whole_gang_runs_does_not_count() -> None:
    spec = build_spec(activeDeadlineSeconds=100)
    seen = observe(build_pod(0), waiting(1), job=build_record(pending(1000), spec))
    assert decide(seen, None, NOW).status.phase == "Pending"
    pods = [build_pod(0, started_at=ago(900)), build_pod(1, started_at=ago(30))]
    status = decide(observe(*pods, job=build_record(pending(1000), spec)), None, NOW).status
    assert (status.phase, status.running_since) == ("Initializing", write_time(ago(30)))


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        (UNSCHEDULABLE, "StartTimeout"),
        (("ContainerCreating", ""), "StartTimeout"),
        (("ImagePullBackOff", "Back-off pulling image"), "ImagePullFailed"),
        (("CreateContainerConfigError", 'secret "hub" not found'), "SecretNotFound"),
        (("Unschedulable", 'persistentvolumeclaim "data" not found'), "ClaimNotFound"),
    ],
)
def test_a_gang_that_does_not_start_in_time_fails_with_its_cause(why: tuple[str, str], reason: str) -> None:
    spec = build_spec(recovery={"startTimeoutSeconds": 600})
    early = decide(observe(build_pod(0), waiting(1, why), job=build_record(pending(599), spec)), None, NOW)
    assert early.status.phase == "Pending"
    late = decide(observe(build_pod(0), waiting(1, why), job=build_record(pending(600), spec)), None, NOW)
    assert (late.status.phase, late.status.reason) == ("Failed", reason)
    assert (late.status.message or "").startswith("not started within 10m00s: pod news-1-1-x")
    assert late.status.failure is not None
    assert late.status.failure.hint
    assert late.needs_a_fresh_look(pending(600))


def test_pods_that_the_cluster_refuses_end_in_time_too() -> None:
    seen = observe(job=build_record(pending(3601)), refusal='pods "news-1-0" is forbidden: violates PodSecurity "restricted"')
    assert decide(seen, None, NOW).status.reason == "PodRejected"


def test_a_start_time_out_of_zero_waits_without_end() -> None:
    spec = build_spec(recovery={"startTimeoutSeconds": 0})
    seen = observe(build_pod(0), waiting(1), job=build_record(pending(10**6), spec))
    assert decide(seen, None, NOW).status.phase == "Pending"


def test_a_quota_is_waited_for_without_end() -> None:
    decision = decide(observe(job=build_record(pending(10**6)), refusal=QUOTA), None, NOW)
    assert (decision.status.phase, decision.status.reason) == ("Pending", "QuotaExceeded")


def test_time_in_a_queue_does_not_count_as_time_to_start() -> None:
    child = build_child(started_at=ago(100))
    pods = [build_pod(0), waiting(1)]
    seen = observe(*pods, jobs=[child], job=build_record(pending(10**6, phase="Queued")))
    assert decide(seen, None, NOW).status.phase == "Pending"
    late = observe(*pods, jobs=[build_child(started_at=ago(3700))], job=build_record(pending(10**6)))
    assert decide(late, None, NOW).status.reason == "StartTimeout"


def test_a_part_of_a_gang_gives_its_machines_back_when_a_quota_keeps_the_rest_away() -> None:
    early = decide(observe(build_pod(0), job=build_record(pending(30)), refusal=QUOTA), None, NOW)
    assert (early.status.phase, early.status.reason) == ("Pending", "QuotaExceeded")
    late = decide(observe(build_pod(0), job=build_record(pending(31)), refusal=QUOTA), None, NOW)
    assert PARTIAL_GANG.total_seconds() == 30
    assert (late.status.phase, late.status.reason) == ("Queued", "QuotaExceeded")
    assert "exceeded quota: gpus" in (late.status.message or "")
    assert late.status.attempts is not None
    assert (late.status.attempts[-1].completion_time, late.status.attempts[-1].reason) == (write_time(NOW), "QuotaExceeded")
    assert late.needs_a_fresh_look(pending(31))


def test_a_gang_of_which_nothing_is_there_holds_nothing_and_stays() -> None:
    assert decide(observe(job=build_record(pending(600)), refusal=QUOTA), None, NOW).status.phase == "Pending"


def test_a_gang_that_retreated_is_deleted_and_tried_again_a_minute_later_as_the_next_attempt() -> None:
    def withdrawn(seconds: float) -> FineTuneJobStatus:
        ended = Attempt(number=1, start_time=write_time(ago(99)), completion_time=write_time(ago(seconds)), nodes=2)
        return pending(0, phase="Queued", reason="QuotaExceeded", attempts=[ended])

    first = decide(observe(build_pod(0), job=build_record(withdrawn(1))), None, NOW)
    assert first.delete == build_child()
    second = decide(observe(build_pod(0), jobs=[], job=build_record(withdrawn(1), written=1)), None, NOW)
    assert (second.delete, second.create_attempt, second.status.phase) == (None, None, "Queued")
    third = decide(observe(jobs=[], job=build_record(withdrawn(10))), None, NOW)
    assert (third.create_attempt, third.again_seconds) == (None, 50)
    fourth = decide(observe(jobs=[], job=build_record(withdrawn(QUOTA_PAUSE.total_seconds()))), None, NOW)
    assert fourth.create_attempt == 2
    assert fourth.status.restarts == Restarts()


@pytest.mark.parametrize("refusal", [QUOTA, 'pods "news-1-0" is forbidden: violates PodSecurity "restricted"'])
def test_a_refusal_of_pods_is_not_forgotten_between_two_looks_at_the_events(refusal: str) -> None:
    told = decide(observe(job=build_record(pending(60)), refusal=refusal), None, NOW).status
    record = build_record(told, written=20)
    again = decide(observe(job=record, live=False), None, NOW).status
    assert not is_due(record, again, NOW)


def test_a_gang_that_ran_and_lost_a_pod_has_not_failed_to_start() -> None:
    status = running(seconds=7200)
    decision = decide(observe(build_pod(0), job=build_record(status)), None, NOW)
    assert decision.status.reason != "StartTimeout"
