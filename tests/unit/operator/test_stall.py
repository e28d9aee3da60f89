"""Jobs whose pods no longer answer, and when the operator treats that as a stall."""

import dataclasses
from typing import Any

import pytest

from finetune_api.status import FineTuneJobStatus, Progress, Resolved
from finetune_api.wire import Report
from finetune_operator.observed import write_time
from finetune_operator.policy.attempt import decide
from unit.operator.builders import (
    KEY,
    NOW,
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
)
from unit.operator.harness import Harness


def training(**progress: Any) -> FineTuneJobStatus:
    values = {"step": 40, "total_steps": 100, "last_step_time": write_time(ago(900)), **progress}
    return running(seconds=3600, progress=Progress(**values), resolved=Resolved(global_batch_size=32))


def next_status(status: FineTuneJobStatus, unresponsive: float, *pods: Any, **recovery: Any) -> FineTuneJobStatus:
    observation = observe(*(pods or (build_pod(0), build_pod(1))), job=build_record(status, build_spec(recovery=recovery)))
    return decide(dataclasses.replace(observation, unresponsive_seconds=unresponsive), None, NOW).status


def test_a_job_that_has_not_answered_for_too_long_is_restarted() -> None:
    assert next_status(training(), 719).phase == "Running"
    status = next_status(training(), 720)
    assert (status.phase, status.reason) == ("Restarting", "Stalled")
    assert status.failure is not None
    assert status.failure.node == "node-0"
    assert status.failure.message == (
        f"pod news-1-0-x on node-0 has not answered for 12m00s; the last step that it reported was 40, at {write_time(ago(900))}"
    )
    assert status.restarts is not None
    assert (status.restarts.failures, status.restarts.charged) == (1, 1)


def test_a_slow_step_may_take_ten_times_its_usual_time() -> None:
    slow = training(samples_per_second=0.2)  # 160 s for a batch of 32
    assert next_status(slow, 1719).phase == "Running"
    assert next_status(slow, 1720).phase == "Restarting"


@pytest.mark.parametrize(
    ("status", "pods", "recovery"),
    [
        pytest.param(training(), (), {"stallTimeoutSeconds": 0}, id="the timeout is disabled"),
        pytest.param(training(), (), {"stallTimeoutSeconds": 10**6}, id="the timeout is not over"),
        pytest.param(training(last_step_time=None), (), {}, id="it never reported a step"),
        pytest.param(running(phase="Initializing", progress=training().progress), (), {}, id="it does not train"),
        pytest.param(running(phase="Publishing", progress=training().progress), (), {}, id="its training has finished"),
    ],
)
def test_an_unresponsive_pod_alone_is_no_stall(
    status: FineTuneJobStatus, pods: tuple[Any, ...], recovery: dict[str, Any]
) -> None:
    assert next_status(status, 5000, *pods, **recovery).phase == status.phase


def test_an_attempt_that_is_about_to_end_is_not_unresponsive() -> None:
    assert next_status(training(), 5000, build_pod(0), build_pod(1, terminated=end(0))).phase == "Running"


def add_training_job(harness: Harness) -> None:
    harness.add_objects(job_manifest(status=training()), [child_manifest()], [pod_manifest(0), pod_manifest(1)])


async def test_an_operator_that_has_just_started_waits_for_the_whole_timeout() -> None:
    harness = Harness()
    add_training_job(harness)
    await harness.reconcile()
    harness.poller._unanswered_polls[KEY] = 50
    harness.advance(719)
    await harness.reconcile()
    assert harness.status["phase"] == "Running"
    harness.advance(1)
    await harness.reconcile()
    assert (harness.status["phase"], harness.status["reason"]) == ("Restarting", "Stalled")


async def test_a_pod_that_was_hardly_polled_is_not_unresponsive() -> None:
    harness = Harness()
    add_training_job(harness)
    await harness.reconcile()
    harness.poller._unanswered_polls[KEY] = 9
    harness.advance(5000)
    await harness.reconcile()
    assert harness.status["phase"] == "Running"


async def test_an_answer_restarts_the_timeout() -> None:
    harness = Harness()
    add_training_job(harness)
    await harness.reconcile()
    harness.advance(700)
    harness.store.last_reports[KEY] = dataclasses.replace(
        harness.store.last_reports[KEY],
        report=Report(attempt=1, phase="Running", step=41, total_steps=100),
        received_at=harness.seconds,
    )
    harness.poller._unanswered_polls[KEY] = 50
    harness.advance(700)
    await harness.reconcile()
    assert harness.status["phase"] == "Running"


async def test_unresponsive_pods_are_no_stall_while_the_network_is_down() -> None:
    harness = Harness()
    add_training_job(harness)
    await harness.reconcile()
    other = dataclasses.replace(KEY, name="other")
    harness.poller._unanswered_polls |= {KEY: 500, other: 500}
    harness.advance(5000)
    await harness.reconcile()
    assert harness.status["phase"] == "Running"
    harness.poller._last_report_at = harness.seconds  # the network is back: the other pod has answered
    harness.advance(30)
    await harness.reconcile()
    assert harness.status["phase"] == "Running", "the timeout of this job starts again"
    harness.advance(25)
    harness.poller._last_report_at = harness.seconds
    harness.advance(20)
    await harness.reconcile()
    assert harness.status["phase"] == "Running"
