"""Restarts in place, final failures and stops of pods, with real launchers, torchrun and training processes."""

import pathlib
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from finetune_api import names
from finetune_trainer.runtime import heartbeat
from trainer.pod_processes import PodGroup

SLOW = {"seconds": 0.2}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, claim: pathlib.Path) -> Iterator[dict[int, bytes]]:
    """Weights of a training without failures, by number of processes."""
    made = PodGroup(tmp_path_factory.mktemp("undisturbed"), claim)
    weights = {}
    for processes in (1, 2):
        _, report = made.run(made.config(f"out-{processes}", processes=processes))
        assert report.phase == "Succeeded"
        weights[processes] = made.weights(f"out-{processes}")
    yield weights
    made.close()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_process_is_restarted_in_place_and_the_weights_are_the_same(
    pod_group: PodGroup, undisturbed: dict[int, bytes], processes: int
) -> None:
    pod = pod_group.start(pod_group.config("out", processes=processes), fault=SLOW)
    pod.wait_for_step(5)
    pod.signal_worker(processes - 1, signal.SIGKILL)
    report = pod.final_report()
    assert (report.phase, report.step, report.in_place) == ("Succeeded", 12, 1)
    assert pod_group.weights("out") == undisturbed[processes]


def test_only_the_pod_with_the_failure_counts_the_restart(pod_group: PodGroup, undisturbed: dict[int, bytes]) -> None:
    config = pod_group.config("out", nodes=2)
    pods = [pod_group.start(config, index, SLOW) for index in (0, 1)]
    pods[0].wait_for_step(5)
    pods[1].signal_worker(1, signal.SIGKILL)
    reports = [pod.final_report() for pod in pods]
    assert [(report.phase, report.in_place) for report in reports] == [("Succeeded", 0), ("Succeeded", 1)]
    assert [report.in_place_elsewhere for report in reports] == [1, 0], "the first pod reports the restarts of other pods"
    assert pod_group.weights("out") == undisturbed[2]


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_failure_that_no_retry_can_fix_is_not_retried(pod_group: PodGroup, gpus: int) -> None:
    # If a job requests GPUs, its processes are not forked. The test needs no GPU.
    config = pod_group.config("out", processes=2, distributed={"gpusPerNode": gpus})
    pod, report = pod_group.run(config, {"rank": 1, "step": 2, "error": "ConfigurationError"})
    assert report.failure is not None
    assert (report.failure.reason, report.failure.rank, report.in_place) == ("ConfigurationError", 1, 0)
    assert report.failure.message == "spec.training: this can't be"
    assert pod.process.returncode == names.EXIT_REFUSED


def test_a_crash_loop_stops_early_with_its_reason(pod_group: PodGroup) -> None:
    config = pod_group.config("out", recovery={"maxRestarts": 100}, checkpoint={"everySteps": 100})
    pod, report = pod_group.run(config, {"step": 2, "error": "RuntimeError"})
    assert report.failure is not None
    assert (report.failure.reason, report.in_place) == ("CodeError", 3)
    assert "this is a mistake of ours" in report.failure.message
    assert report.failure.traceback is not None
    assert 'raise RuntimeError("this is a mistake of ours")' in report.failure.traceback
    assert pod.process.returncode == names.EXIT_FAILED


@pytest.mark.parametrize("gpus", [0, 1])
def test_restarts_are_charged_up_to_the_budget_that_the_operator_sets(pod_group: PodGroup, gpus: int) -> None:
    pod = pod_group.start(
        pod_group.config("out", distributed={"gpusPerNode": gpus}),
        0,
        {"step": 2, "signal": signal.SIGSEGV},
        **{names.ENV_RESTARTS_LEFT: "1"},
    )
    report = pod.final_report()
    assert report.failure is not None
    assert (report.failure.reason, report.in_place, report.failure.rank) == ("WorkerDied", 1, 0)
    assert "was ended by SIGSEGV, which is a fault in native code" in report.failure.message


def test_out_of_memory_on_one_rank_halves_the_micro_batch_of_all_and_charges_no_restart(
    pod_group: PodGroup, undisturbed: dict[int, bytes]
) -> None:
    _, report = pod_group.run(pod_group.config("out", processes=2), {"rank": 1, "rows": 2})
    assert (report.phase, report.in_place) == ("Succeeded", 0)
    assert report.resolved is not None
    assert (report.resolved.global_batch_size, report.resolved.per_device_batch_size) == (8, 2)
    assert _close(pod_group.weights("out"), undisturbed[2])


def test_out_of_memory_with_a_single_row_ends_the_attempt(pod_group: PodGroup) -> None:
    pod, report = pod_group.run(pod_group.config("out", training={"perDeviceBatchSize": 2}), {"rows": 0})
    assert report.failure is not None
    assert report.failure.reason == "OutOfGPUMemory"
    assert "a single row" in report.failure.message
    assert report.in_place == 0
    assert pod.process.returncode == names.EXIT_REFUSED


def test_a_later_attempt_begins_with_the_micro_batch_that_fitted(pod_group: PodGroup) -> None:
    config = pod_group.config("out", steps=2)
    resolved = {"globalBatchSize": 8, "perDeviceBatchSize": 3, "processes": 1}
    later = config.model_validate(config.to_wire() | {"attempt": 2, "resolved": resolved})
    _, report = pod_group.run(later)
    assert report.resolved is not None
    assert report.resolved.per_device_batch_size == 3


def test_a_stopped_process_is_the_cause_of_the_stall_and_the_stacks_are_in_the_log(pod_group: PodGroup) -> None:
    pod = pod_group.start(pod_group.config("out", processes=2, steps=100, recovery={"stallTimeoutSeconds": 6}), fault=SLOW)
    pod.wait_for_step(3)
    pod.signal_worker(1, signal.SIGSTOP)
    report = pod.final_report()
    assert report.failure is not None
    assert (report.failure.reason, report.failure.rank) == ("Stalled", 1)
    assert "rank 1 does not answer, because a signal stopped it" in report.failure.message
    assert "rank 0: " in report.failure.message
    assert "most recent call first" in pod.log.read_text()
    assert pod.process.returncode == names.EXIT_FAILED
    assert [pid for pid in pod.state.pids().values() if (pathlib.Path("/proc") / str(pid)).exists()] == []


def test_a_process_that_is_stopped_while_it_waits_for_rank_0_is_named_and_not_rank_0(pod_group: PodGroup) -> None:
    config = pod_group.config("out", nodes=2, recovery={"stallTimeoutSeconds": 6})
    pods = [pod_group.start(config, index, {"stage": "checking", "stage_seconds": 4}) for index in (0, 1)]
    pods[0].wait_for_step(1)
    pods[1].wait_for(lambda _: pods[1].state.last_heartbeat()[1] == heartbeat.WAITING)
    pods[1].signal_worker(1, signal.SIGSTOP)
    report = pods[1].final_report()
    assert report.failure is not None
    assert (report.failure.reason, report.failure.rank) == ("Stalled", 1)
    assert "(waiting for rank 0): rank 1 does not answer, because a signal stopped it" in report.failure.message
    pods[0].final_report()
    ended = [(pod.state.directory / "final-report.json").stat().st_mtime for pod in pods]
    assert ended[1] <= ended[0], "the pod of rank 0 waits, so that the operator takes the first report as the cause"


def test_a_stop_of_one_pod_ends_all_pods_with_a_checkpoint(pod_group: PodGroup) -> None:
    config = pod_group.config("out", nodes=2, steps=200)
    pods = [pod_group.start(config, index, SLOW) for index in (0, 1)]
    pods[0].wait_for_step(3)
    pods[1].stop()
    reports = [pod.final_report() for pod in pods]
    assert [report.phase for report in reports] == ["Interrupted", "Interrupted"]
    assert [pod.process.returncode for pod in pods] == [names.EXIT_INTERRUPTED] * 2
    assert reports[0].checkpoint is not None
    assert reports[0].checkpoint.step == reports[0].step


@pytest.mark.parametrize("index", [0, 1])
def test_a_stop_while_waiting_for_the_other_pods_ends_at_once(pod_group: PodGroup, index: int) -> None:
    pod = pod_group.start(pod_group.config("out", nodes=2), index)
    deadline = time.monotonic() + 60
    while not (pod.state.directory / "run.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    requested_at = time.monotonic()
    pod.stop()
    assert pod.final_report().phase == "Interrupted"
    assert time.monotonic() - requested_at < 8


def test_a_stop_while_the_data_is_tokenised_ends_at_once(pod_group: PodGroup) -> None:
    pod = pod_group.start(pod_group.config("out"), fault={"stage": "tokenising", "stage_seconds": 60})
    pod.wait_for(lambda report: report.message == "loading the data")
    requested_at = time.monotonic()
    pod.stop()
    report = pod.final_report()
    assert (report.phase, report.message) == ("Interrupted", "stopped on request before the first step")
    assert time.monotonic() - requested_at < 5


def test_a_stop_during_a_save_completes_it_and_saves_the_last_step_too(
    pod_group: PodGroup, undisturbed: dict[int, bytes]
) -> None:
    # The steps after the save are slow, so the stop comes long before the next save, which would wait for this one.
    pod = pod_group.start(pod_group.config("out"), fault={"stage": "saving", "stage_seconds": 60, "seconds": 1.0, "after": 3})
    pod.wait_for_step(4)
    checkpoints = pod_group.directory / "out" / "checkpoints"
    assert [path for path in checkpoints.iterdir() if path.name == "step-3"] == [], "the checkpoint is being written"
    requested_at = time.monotonic()
    pod.stop()
    report = pod.final_report()
    assert time.monotonic() - requested_at < 8
    assert report.phase == "Interrupted"
    assert report.checkpoint is not None
    assert report.checkpoint.step == report.step >= 4
    assert sorted(path.name for path in checkpoints.iterdir()) == sorted(["step-3", f"step-{report.step}"])
    assert pod_group.start(pod_group.config("out")).final_report().phase == "Succeeded"
    assert pod_group.weights("out") == undisturbed[1]


def test_a_grace_period_too_short_for_a_checkpoint_is_reported_and_the_last_one_is_kept(pod_group: PodGroup) -> None:
    config = pod_group.config("out", checkpoint={"everySteps": 1}, pod={"terminationGracePeriodSeconds": 10})
    pod = pod_group.start(config, fault={"seconds": 60.0, "after": 2})
    pod.wait_for(lambda report: report.checkpoint is not None and report.step >= 2)
    requested_at = time.monotonic()
    pod.stop()
    report = pod.final_report()
    assert time.monotonic() - requested_at < 10
    assert report.phase == "Interrupted"
    assert report.message is not None
    assert "because 10 seconds were too short: the last checkpoint is that of step" in report.message
    assert report.checkpoint_problem is not None
    assert report.checkpoint_problem.reason == "GracePeriodTooShort"
    assert "spec.pod.terminationGracePeriodSeconds" in report.checkpoint_problem.message


def test_a_stop_during_the_push_keeps_the_model_and_the_next_attempt_only_pushes(pod_group: PodGroup) -> None:
    assert pod_group.start(pod_group.config("out", steps=2)).final_report().phase == "Succeeded"
    # A Hub that accepts every connection and never answers.
    with socket.create_server(("127.0.0.1", 0)) as hub:
        config = pod_group.config(
            "out",
            steps=2,
            publish={"repository": "team/model", "visibility": "Private"},
            hub={"endpoint": f"http://127.0.0.1:{hub.getsockname()[1]}"},
            pod={"terminationGracePeriodSeconds": 4},
        )
        pod = pod_group.start(config, fresh=True, HF_ENDPOINT=config.spec.hub.endpoint or "")
        hub.settimeout(60)
        with hub.accept()[0]:
            pod.stop()
            report = pod.final_report()
    assert (report.phase, pod.process.returncode) == ("Interrupted", names.EXIT_INTERRUPTED)
    assert report.message is not None
    assert "the next attempt only pushes it" in report.message
    assert (pod_group.directory / "out" / "model" / "model.safetensors").exists()
    assert (pod_group.directory / "out" / "report.json").exists()


def _close(first: bytes, second: bytes) -> bool:
    """Whether the weights of two models are the same, up to the rounding of another split of the batches."""
    import torch
    from safetensors.torch import load

    one, other = load(first), load(second)
    difference = sum(float((one[name] - other[name]).square().sum()) for name in other)
    size = sum(float(tensor.square().sum()) for tensor in other.values())
    assert all(isinstance(tensor, torch.Tensor) for tensor in one.values())
    return bool((difference / size) ** 0.5 <= 1e-5)
