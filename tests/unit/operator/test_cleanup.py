"""Cleanup after a job has ended, and what the operator never does to a finished job."""

from typing import Any

import pytest

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.status import FineTuneJobStatus, Progress, Published
from finetune_operator.observed import write_time
from finetune_operator.policy.attempt import decide
from finetune_operator.policy.cleanup import seconds_to_next_reconcile
from finetune_operator.policy.status import is_write_due
from unit.operator.builders import (
    NOW,
    ago,
    build_child,
    build_pod,
    build_record,
    build_spec,
    end,
    job_manifest,
    observe,
    running,
    spec_fields,
)

PUBLISHED = Published(url="https://hub/team/news", commit="abc")
DELETE: dict[str, Any] = {"volume": {"size": "1Gi"}, "retention": {"whenDeleted": "Delete"}}
DELETE_CLAIM: dict[str, Any] = {"output": {"retention": {"whenFinished": "Delete"}}, "publish": {"repository": "team/news"}}


def ended(seconds: float, phase: str = "Succeeded", reason: str = "Completed", **changes: Any) -> FineTuneJobStatus:
    """Return the status of a job that ended ``seconds`` ago."""
    return running(phase=phase, reason=reason, running_since=None, completion_time=write_time(ago(seconds)), **changes)


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
@pytest.mark.parametrize("spec", [build_spec(), build_spec(suspend=True), FineTuneError(Reason.INVALID_SPEC, "wrong")])
def test_a_final_phase_stays_whatever_happens_to_spec_and_children(phase: str, spec: Any) -> None:
    status = ended(1, phase=phase)
    for jobs in ([], [build_child()], [build_child(deleting=True)]):
        decision = decide(observe(jobs=jobs, job=build_record(status, spec)), None, NOW)
        assert (decision.create_attempt, decision.status) == (None, status)


@pytest.mark.parametrize(("ttl", "age", "again"), [(100, 40, 60), (None, 40, None), (86_400, 10, None)])
def test_a_finished_job_is_requeued_for_its_time_to_live(ttl: int | None, age: float, again: float | None) -> None:
    spec = build_spec(**({"ttlSecondsAfterFinished": ttl} if ttl is not None else {}))
    decision = decide(observe(jobs=[], job=build_record(ended(age), spec)), None, NOW)
    assert (decision.delete_job, decision.requeue_after_seconds) == (False, again)


@pytest.mark.parametrize("ttl", [0, 100])
@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_finished_job_is_deleted_when_its_time_to_live_is_over(ttl: int, phase: str) -> None:
    spec = build_spec(ttlSecondsAfterFinished=ttl)
    decision = decide(observe(jobs=[], job=build_record(ended(ttl, phase=phase), spec)), None, NOW)
    assert decision.delete_job
    assert decision.requires_live_read(decision.status)


@pytest.mark.parametrize(
    ("output", "status", "deleted"),
    [
        pytest.param({}, ended(100), True, id="the volume is kept"),
        pytest.param({"claim": {"claimName": "mine"}}, ended(100), True, id="the user provides the claim"),
        pytest.param(DELETE, ended(100, published=PUBLISHED), True, id="published"),
        pytest.param(DELETE, ended(100), False, id="not published"),
        pytest.param(DELETE, ended(100, "Failed", "HubPushFailed"), False, id="the push failed"),
        pytest.param(DELETE, ended(100, "Failed", "DataError"), True, id="there is no model"),
        pytest.param(
            DELETE,
            ended(100, "Failed", "DeadlineExceeded", progress=Progress(step=10, total_steps=10)),
            False,
            id="ended while it published",
        ),
    ],
)
def test_the_only_copy_of_a_model_is_never_deleted(output: dict[str, Any], status: FineTuneJobStatus, deleted: bool) -> None:
    spec = build_spec(ttlSecondsAfterFinished=0, output=output)
    decision = decide(observe(jobs=[], job=build_record(status, spec)), None, NOW)
    assert decision.delete_job == deleted
    if not deleted:
        [condition] = decision.status.conditions or ()
        assert (condition.type, condition.status, condition.reason) == ("Blocked", "True", "OnlyCopy")
        assert decision.requeue_after_seconds is None
        again = decide(observe(jobs=[], job=build_record(decision.status, spec)), None, NOW)
        assert not is_write_due(build_record(decision.status, spec, written=600), again.status, NOW)


@pytest.mark.parametrize(
    ("status", "claim", "deleted"),
    [
        (ended(5, published=PUBLISHED), "claim-uid", "claim-uid"),
        (ended(5, published=PUBLISHED), None, None),
        (ended(5), "claim-uid", None),
        (ended(5, "Failed", "HubPushFailed"), "claim-uid", None),
    ],
)
def test_the_volume_is_deleted_once_the_model_is_on_the_hub(
    status: FineTuneJobStatus, claim: str | None, deleted: str | None
) -> None:
    observation = observe(jobs=[], job=build_record(status, build_spec(**DELETE_CLAIM)), output_claim=claim)
    decision = decide(observation, None, NOW)
    assert (decision.delete_claim, decision.status) == (deleted, status)


def test_a_volume_stays_unless_the_spec_says_that_it_is_deleted() -> None:
    spec = build_spec(publish={"repository": "team/news"})
    observation = observe(jobs=[], job=build_record(ended(5, published=PUBLISHED), spec), output_claim="claim-uid")
    assert decide(observation, None, NOW).delete_claim is None


@pytest.mark.parametrize(
    "reason", ["DeadlineExceeded", "StartTimeout", "ImagePullFailed", "SecretNotFound", "ClaimNotFound", "PodRejected"]
)
def test_pods_of_a_job_that_the_operator_ended_are_stopped_at_once(reason: str) -> None:
    record = build_record(ended(0, "Failed", reason))
    assert decide(observe(build_pod(0), build_pod(1), job=record), None, NOW).delete_child_job == build_child()
    assert decide(observe(job=record), None, NOW).delete_child_job == build_child(), "the Job would create further pods"
    assert decide(observe(jobs=[build_child(deleting=True)], job=record), None, NOW).delete_child_job is None


def test_nothing_is_deleted_while_pods_may_still_end_by_themselves() -> None:
    spec = build_spec(ttlSecondsAfterFinished=0)
    pods = [build_pod(0), build_pod(1, terminated=end(1))]
    decision = decide(observe(*pods, job=build_record(ended(10, "Failed", "CodeError"), spec)), None, NOW)
    assert (decision.delete_child_job, decision.delete_job, decision.requeue_after_seconds) == (None, False, 51)


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
@pytest.mark.parametrize(("sidecar_running", "age", "stopped"), [(True, 10, False), (True, 61, True), (False, 61, False)])
def test_a_sidecar_that_never_ends_does_not_occupy_a_node(phase: str, sidecar_running: bool, age: float, stopped: bool) -> None:
    """A service mesh injects such a sidecar. The trainer has ended, but its pod and its Job have not."""
    pods = [build_pod(index, terminated=end(0), sidecar_running=sidecar_running) for index in (0, 1)]
    decision = decide(observe(*pods, job=build_record(ended(age, phase, "Completed"))), None, NOW)
    assert decision.delete_child_job == (build_child() if stopped else None)


def test_the_deletion_does_not_wait_for_a_sidecar_that_runs_a_moment_longer() -> None:
    record = build_record(ended(1, "Succeeded", "Completed"), build_spec(ttlSecondsAfterFinished=1))
    assert decide(observe(build_pod(0, terminated=end(0), sidecar_running=True), job=record), None, NOW).delete_job


@pytest.mark.parametrize(
    ("ttl", "age", "conditions", "seconds"),
    [
        pytest.param(None, 119, (), 0.0, id="its pods may still have to be stopped"),
        pytest.param(None, 120, (), None, id="nothing is left to do"),
        pytest.param(1000, 400, (), 600.0, id="deleted later"),
        pytest.param(1000, 1100, (), -100.0, id="deleted now"),
        pytest.param(1000, 1100, ("OnlyCopy",), None, id="never deleted"),
    ],
)
def test_the_time_until_the_next_reconcile_of_a_finished_job(
    ttl: int | None, age: float, conditions: tuple[str, ...], seconds: Any
) -> None:
    spec = spec_fields(**({"ttlSecondsAfterFinished": ttl} if ttl else {}))
    manifest = job_manifest(spec, ended(age))
    manifest["status"]["conditions"] = [{"type": "Blocked", "reason": reason} for reason in conditions]
    assert seconds_to_next_reconcile(manifest, NOW) == seconds


def test_a_finished_job_whose_spec_changed_needs_a_reconcile() -> None:
    assert seconds_to_next_reconcile(job_manifest(status=ended(400), generation=2), NOW) == 0.0


def test_a_finished_job_that_waits_for_a_finalizer_needs_no_reconcile() -> None:
    manifest = job_manifest(spec_fields(ttlSecondsAfterFinished=1), ended(400), generation=2)
    manifest["metadata"]["deletionTimestamp"] = write_time(NOW)
    assert seconds_to_next_reconcile(manifest, NOW) is None


def test_a_finished_job_without_a_completion_time_needs_no_reconcile() -> None:
    assert seconds_to_next_reconcile(job_manifest(status={"phase": "Failed"}), NOW) is None
