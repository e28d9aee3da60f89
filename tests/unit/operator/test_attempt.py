"""The next step for a job, in each state in which it can be observed."""

from typing import Any

import pytest

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.status import Attempt, FineTuneJobStatus, Progress, Resolved, Restarts
from finetune_api.wire import Report
from finetune_operator.observed import CreatedAttempt, Observation, write_time
from finetune_operator.policy.attempt import choose_image, decide, pods_to_poll
from finetune_operator.policy.status import attempt_created, is_write_due
from unit.operator.builders import (
    IMAGE,
    NOW,
    UID,
    ago,
    build_child,
    build_pod,
    build_record,
    build_spec,
    end,
    failed_with,
    observe,
    running,
    true_conditions,
)

RUNNING = FineTuneJobStatus(phase="Running", reason="Training", attempt=1, restarts=Restarts(), resolved=Resolved(image=IMAGE))
SUCCEEDED = {"phase": "Succeeded", "step": 300, "totalSteps": 300}


def in_restart(failures: int = 1, attempt: int = 1) -> FineTuneJobStatus:
    return FineTuneJobStatus(phase="Restarting", reason="PodLost", attempt=attempt, restarts=Restarts(failures=failures))


def test_a_new_job_gets_its_first_attempt() -> None:
    decision = decide(Observation(build_record()), None, NOW)
    assert decision.create_attempt == 1


def test_a_job_whose_children_were_created_has_started() -> None:
    status = attempt_created(FineTuneJobStatus(), build_spec(), CreatedAttempt(UID, 1, 1, NOW, IMAGE, 2))
    assert (status.phase, status.attempt, status.start_time) == ("Pending", 1, "2026-01-02T03:04:05Z")
    assert status.resolved == Resolved(image=IMAGE, nodes=2, processes=2)
    assert status.attempts == [Attempt(number=1, start_time="2026-01-02T03:04:05Z", nodes=2)]


def test_a_wrong_spec_fails_without_a_pod() -> None:
    wrong = FineTuneError(Reason.INVALID_SPEC, "spec.training.epochs: write a number")
    decision = decide(Observation(build_record(spec=wrong)), None, NOW)
    assert decision.create_attempt is None
    assert (decision.status.phase, decision.status.reason) == ("Failed", "InvalidSpec")
    assert decision.status.message == "spec.training.epochs: write a number"
    assert decision.status.failure is not None
    assert decision.status.failure.hint is not None


def test_a_job_that_was_created_before_its_status_was_written_is_created_again_and_not_duplicated() -> None:
    decision = decide(Observation(build_record(), jobs=[build_child()]), None, NOW)
    assert decision.create_attempt == 1
    later = decide(observe(status=in_restart(), jobs=[build_child(2)]), None, NOW)
    assert later.create_attempt == 2


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_final_phases_are_kept_although_children_are_gone(phase: Any) -> None:
    status = FineTuneJobStatus(phase=phase, attempt=1, observed_generation=1)
    decision = decide(observe(status=status, jobs=[]), None, NOW)
    assert (decision.create_attempt, decision.delete_child_job, decision.status) == (None, None, status)


def test_pods_that_still_run_after_the_failure_are_stopped_once_the_job_controller_had_time_to_stop_them() -> None:
    stuck = [build_pod(0), build_pod(1, terminated=end(1))]

    def failed(seconds_ago: float) -> FineTuneJobStatus:
        return FineTuneJobStatus(phase="Failed", attempt=1, completion_time=write_time(ago(seconds_ago)))

    soon = decide(Observation(build_record(failed(10)), [build_child()], stuck), None, NOW)
    assert soon.delete_child_job is None
    assert soon.requeue_after_seconds == 51
    late = decide(Observation(build_record(failed(61)), [build_child()], stuck), None, NOW)
    assert late.delete_child_job == build_child()


def test_terminated_pods_are_kept_for_their_logs() -> None:
    status = FineTuneJobStatus(phase="Failed", attempt=1)
    decision = decide(observe(build_pod(0, terminated=end(1)), build_pod(1, terminated=end(1)), status=status), None, NOW)
    assert decision.delete_child_job is None


@pytest.mark.parametrize(
    ("waiting", "reason"),
    [
        (("Unschedulable", "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."), "Unschedulable"),
        (("Unschedulable", '0/2 nodes are available: persistentvolumeclaim "data" not found.'), "ClaimNotFound"),
        (("ErrImagePull", "no such image"), "ImagePullFailed"),
        (("ImagePullBackOff", "Back-off pulling image"), "ImagePullFailed"),
        (("CreateContainerConfigError", 'secret "hub" not found'), "SecretNotFound"),
        (("CreateContainerConfigError", "couldn't find key token in Secret team/hub"), "SecretNotFound"),
        (("ContainerCreating", ""), "ContainerCreating"),
        (None, "PodsPending"),
    ],
)
def test_the_status_says_what_pods_wait_for(waiting: tuple[str, str] | None, reason: str) -> None:
    status = FineTuneJobStatus(phase="Pending", attempt=1)
    pods = [build_pod(0), build_pod(1, started=False, waiting=waiting)]
    decision = decide(observe(*pods, status=status), None, NOW)
    assert (decision.status.phase, decision.status.reason) == ("Pending", reason)
    assert "news-1-1" in (decision.status.message or "")


def test_the_wait_of_a_new_pod_is_not_explained() -> None:
    pod = build_pod(1, started=False, waiting=("Unschedulable", "unbound claims"), created=ago(1))
    decision = decide(observe(build_pod(0), pod, status=FineTuneJobStatus(phase="Pending", attempt=1)), None, NOW)
    assert decision.status.reason == "PodsPending"


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        ('Error creating: pods "news-1-1" is forbidden: exceeded quota: gpus', "QuotaExceeded"),
        ('Error creating: pods "news-1-1" is forbidden: violates PodSecurity', "PodRejected"),
        ('Error creating: Internal error occurred: failed calling webhook "mpod.kb.io": refused', "WebhookFailed"),
        (None, "PodsPending"),
    ],
)
def test_the_status_says_why_pods_are_not_created(refusal: str | None, reason: str) -> None:
    observation = observe(build_pod(0), status=FineTuneJobStatus(phase="Pending", attempt=1), refusal=refusal)
    assert decide(observation, None, NOW).status.reason == reason


@pytest.mark.parametrize(
    ("report", "phase", "message"),
    [
        (None, "Initializing", "2 pods started"),
        (Report(attempt=1, phase="Initializing", message="loading the model"), "Initializing", "loading the model"),
        (Report(attempt=1, phase="Running", step=3, total_steps=10), "Running", "training on 2 nodes"),
        (Report(attempt=1, phase="Publishing", step=10, total_steps=10), "Publishing", "pushing the model to the Hub"),
        (Report(attempt=9, phase="Running", step=3, total_steps=10), "Initializing", "2 pods started"),
    ],
)
def test_the_phase_of_running_pods_is_the_phase_of_their_report(report: Report | None, phase: str, message: str) -> None:
    observation = observe(build_pod(0), build_pod(1), status=FineTuneJobStatus(phase="Pending", attempt=1))
    decision = decide(observation, report, NOW)
    assert (decision.status.phase, decision.status.message) == (phase, message)


def test_a_single_unanswered_poll_changes_nothing() -> None:
    observation = observe(build_pod(0), build_pod(1), status=RUNNING)
    decision = decide(observation, None, NOW)
    assert decision.status.phase == "Running"
    assert (decision.requeue_after_seconds, decision.check_after_seconds) == (None, 20)


def test_success_takes_its_metrics_from_the_final_report() -> None:
    report = end(0, evaluation={"step": 300, "metrics": {"accuracy": 0.98123456}}, **SUCCEEDED)
    decision = decide(observe(build_pod(0, terminated=report), build_pod(1, terminated=end(0)), status=RUNNING), None, NOW)
    status = decision.status
    assert (status.phase, status.reason) == ("Succeeded", "Completed")
    assert status.message == "trained 300 steps, accuracy 0.9812 on the held-out data"
    assert status.progress is not None
    assert (status.progress.display, status.progress.step) == ("100%", 300)
    assert true_conditions(status) == ["Complete"]
    assert status.completion_time == "2026-01-02T03:04:05Z"


def test_a_complete_job_whose_pods_are_gone_has_succeeded() -> None:
    decision = decide(observe(jobs=[build_child(complete=True)], status=RUNNING), None, NOW)
    assert decision.status.phase == "Succeeded"


def test_success_of_the_first_pod_waits_for_the_other_pods() -> None:
    decision = decide(observe(build_pod(0, terminated=end(0, **SUCCEEDED)), build_pod(1), status=RUNNING), None, NOW)
    assert decision.status.phase == "Running"
    assert decision.requeue_after_seconds == 1


def test_a_job_that_was_too_quick_to_be_seen_in_training_is_not_pending_while_its_last_pod_ends() -> None:
    pods = [build_pod(0, terminated=end(0, **SUCCEEDED)), build_pod(1)]
    status = decide(observe(*pods, job=build_record(running(phase="Pending", running_since=None))), None, NOW).status
    assert (status.phase, status.message) == ("Running", "waiting for the other pods to end")


@pytest.mark.parametrize("phase", ["Initializing", "Running", "Publishing"])
def test_a_phase_never_goes_back_to_pending_within_an_attempt(phase: Any) -> None:
    waiting = build_pod(1, started=False, waiting=("ContainerCreating", ""))
    decision = decide(observe(build_pod(0), waiting, job=build_record(running(phase=phase))), None, NOW)
    assert (decision.status.phase, decision.status.message) == (phase, "pod news-1-1-x is being created on node-1")
    assert decision.pods_missing, "the reason is read live"


def test_a_published_model_is_a_condition() -> None:
    spec = build_spec(publish={"repository": "team/news"})
    report = end(0, published={"url": "https://hub/team/news", "commit": "abc"}, **SUCCEEDED)
    observation = observe(build_pod(0, terminated=report), build_pod(1, terminated=end(0)), job=build_record(RUNNING, spec))
    conditions = decide(observation, None, NOW).status.conditions or ()
    assert [(item.type, item.status, item.message) for item in conditions] == [
        ("Published", "True", "pushed to https://hub/team/news")
    ]


def test_a_retryable_failure_is_written_to_the_status_before_anything_is_deleted() -> None:
    decision = decide(observe(build_pod(0), build_pod(1, deletion_requested_at=ago(0)), status=RUNNING), None, NOW)
    assert (decision.delete_child_job, decision.create_attempt) == (None, None)
    assert (decision.status.phase, decision.status.reason, decision.status.attempt) == ("Restarting", "PodLost", 1)
    assert decision.status.restarts == Restarts(total=1, preemptions=1)
    assert decision.status.message == "preemption 1 of 100: pod news-1-1-x was deleted"


def test_a_failure_that_is_not_retryable_is_final() -> None:
    observation = observe(build_pod(0), build_pod(1, terminated=failed_with("DataError", 64)), status=RUNNING)
    status = decide(observation, None, NOW).status
    assert (status.phase, status.reason, status.message) == ("Failed", "DataError", "message of DataError")
    assert true_conditions(status) == ["Failed"]


def test_a_failure_after_the_last_restart_ends_the_job() -> None:
    status = running(restarts=Restarts(total=3, failures=3), counted=3)
    decision = decide(observe(build_pod(0), build_pod(1, terminated=end(137, 9)), status=status), None, NOW)
    assert decision.status.phase == "Failed"
    assert decision.status.message == "failed after 3 restarts: pod news-1-1-x ended with exit code 137 and no report"
    assert decision.status.restarts == Restarts(total=3, failures=3)


def test_a_restart_deletes_then_waits_then_creates() -> None:
    status = in_restart()
    first = decide(observe(build_pod(0), status=status), None, NOW)
    assert (first.delete_child_job, first.create_attempt, first.status) == (
        build_child(),
        None,
        status.model_copy(update={"observed_generation": 1}),
    )
    second = decide(observe(build_pod(0), jobs=[], job=build_record(status, written=5)), None, NOW)
    assert (second.delete_child_job, second.create_attempt, second.status.message) == (None, None, None)
    third = decide(observe(jobs=[], status=status), None, NOW)
    assert third.create_attempt == 2


def test_a_restart_that_waits_long_names_the_pod() -> None:
    observation = observe(build_pod(1), jobs=[], job=build_record(in_restart(), written=31))
    assert decide(observation, None, NOW).status.message == "waiting for pod news-1-1-x on node-1 of attempt 1 to end"


def test_later_attempts_keep_the_image_unless_the_spec_names_another() -> None:
    spec = build_spec(pod={"image": "mine:2"})
    assert choose_image(spec, FineTuneJobStatus(), "default:3") == "mine:2"
    assert choose_image(build_spec(), FineTuneJobStatus(), "default:3") == "default:3"
    assert choose_image(build_spec(), RUNNING, "default:3") == IMAGE
    assert choose_image(spec, RUNNING, "default:3") == "mine:2"


@pytest.mark.parametrize(
    ("status", "pod", "polled"),
    [
        (RUNNING, {}, True),
        (RUNNING, {"started": False}, False),
        (RUNNING, {"terminated": end(0)}, False),
        (RUNNING, {"deletion_requested_at": ago(0)}, False),
        (RUNNING, {"address": None}, False),
        (RUNNING, {"job_uid": "another"}, False),
        (in_restart(), {}, False),
        (FineTuneJobStatus(phase="Failed", attempt=1), {}, False),
    ],
)
def test_only_jobs_whose_own_first_pod_runs_are_polled(status: FineTuneJobStatus, pod: dict[str, Any], polled: bool) -> None:
    found = pods_to_poll(observe(build_pod(0, **pod), build_pod(1), status=status))
    assert [pod.index for pod in found] == ([0, 1] if polled else [])


@pytest.mark.parametrize("pod", [{"started": False}, {"terminated": end(0)}, {"address": None}])
def test_only_other_pods_that_run_are_polled(pod: dict[str, Any]) -> None:
    assert [pod.index for pod in pods_to_poll(observe(build_pod(0), build_pod(1, **pod), build_pod(2), status=RUNNING))] == [0, 2]


def test_a_stable_job_costs_no_write() -> None:
    observation = observe(build_pod(0), build_pod(1), status=RUNNING)
    first = decide(observation, None, NOW).status
    again = decide(observe(build_pod(0), build_pod(1), status=first), None, NOW).status
    assert not is_write_due(build_record(first, written=600), again, NOW)


def test_progress_is_written_every_ten_seconds_and_a_phase_at_once() -> None:
    status = RUNNING.model_copy(update={"progress": Progress(step=1, total_steps=10)})
    further = status.model_copy(update={"progress": Progress(step=2, total_steps=10)})
    assert not is_write_due(build_record(status, written=9), further, NOW)
    assert is_write_due(build_record(status, written=10), further, NOW)
    assert is_write_due(build_record(status, written=1), status.model_copy(update={"phase": "Publishing"}), NOW)
    assert is_write_due(build_record(FineTuneJobStatus(), written=None), further, NOW)


def test_only_pods_with_the_uid_of_the_job_count() -> None:
    observation = observe(build_pod(0, job_uid="another"), build_pod(1), status=RUNNING)
    assert [pod.index for pod in observation.pods_of(1)] == [1]
    assert observation.job.uid == UID


def test_an_attempt_whose_failure_is_not_explained_yet_says_so_and_charges_no_restart() -> None:
    failed_peer = build_pod(0, terminated=failed_with("CollectiveFailed", seconds_ago=20))
    terminating = build_pod(1, deletion_requested_at=ago(19), deletion_timestamp=ago(-41))
    observation = observe(failed_peer, terminating, status=RUNNING, jobs=[build_child(failing=True)])
    decision = decide(observation, None, NOW)
    assert (decision.status.phase, decision.status.message) == (
        "Running",
        "a pod has failed: waiting for the reports of the other pods to find the cause",
    )
    assert (decision.status.restarts, decision.delete_child_job) == (Restarts(), None)
