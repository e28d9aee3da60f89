"""What breaks in a pod is healed there, and what can't be is named: real launchers, torchrun and training processes."""

import pathlib
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from finetune_api import names
from trainer import small
from trainer.pods import Gang

SLOW = {"seconds": 0.2}


@pytest.fixture(scope="module")
def claim(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("small")
    small.write_all(directory / "claim")
    return directory / "claim"


@pytest.fixture
def gang(tmp_path: pathlib.Path, claim: pathlib.Path) -> Iterator[Gang]:
    made = Gang(tmp_path, claim)
    yield made
    made.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, claim: pathlib.Path) -> Iterator[dict[int, bytes]]:
    """Weights after a life without trouble, by number of processes."""
    made = Gang(tmp_path_factory.mktemp("undisturbed"), claim)
    weights = {}
    for processes in (1, 2):
        _, report = made.run(made.config(f"out-{processes}", processes=processes))
        assert report.phase == "Succeeded"
        weights[processes] = made.weights(f"out-{processes}")
    yield weights
    made.close()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_process_is_started_again_in_place_and_the_weights_are_the_same(
    gang: Gang, undisturbed: dict[int, bytes], processes: int
) -> None:
    pod = gang.start(gang.config("out", processes=processes), fault=SLOW)
    pod.wait_for_step(5)
    pod.signal_worker(processes - 1, signal.SIGKILL)
    report = pod.last_word()
    assert (report.phase, report.step, report.in_place) == ("Succeeded", 12, 1)
    assert gang.weights("out") == undisturbed[processes]


def test_only_the_pod_with_the_failure_counts_the_restart(gang: Gang, undisturbed: dict[int, bytes]) -> None:
    config = gang.config("out", nodes=2)
    pods = [gang.start(config, index, SLOW) for index in (0, 1)]
    pods[0].wait_for_step(5)
    pods[1].signal_worker(1, signal.SIGKILL)
    reports = [pod.last_word() for pod in pods]
    assert [(report.phase, report.in_place) for report in reports] == [("Succeeded", 0), ("Succeeded", 1)]
    assert [report.in_place_elsewhere for report in reports] == [1, 0], "the first pod tells while it runs"
    assert gang.weights("out") == undisturbed[2]


@pytest.mark.parametrize("gpus", [0, 1])
def test_what_no_retry_heals_is_not_tried_again(gang: Gang, gpus: int) -> None:
    # Where GPUs are asked for the processes are not forked; there need be none.
    config = gang.config("out", processes=2, distributed={"gpusPerNode": gpus})
    pod, report = gang.run(config, {"rank": 1, "step": 2, "error": "ConfigurationError"})
    assert report.failure is not None
    assert (report.failure.reason, report.failure.rank, report.in_place) == ("ConfigurationError", 1, 0)
    assert report.failure.message == "spec.training: this can't be"
    assert pod.process.returncode == names.EXIT_REFUSED


def test_a_crash_loop_stops_early_with_its_reason(gang: Gang) -> None:
    config = gang.config("out", recovery={"maxRestarts": 100}, checkpoint={"everySteps": 100})
    pod, report = gang.run(config, {"step": 2, "error": "RuntimeError"})
    assert report.failure is not None
    assert (report.failure.reason, report.in_place) == ("CodeError", 3)
    assert "this is a mistake of ours" in report.failure.message
    assert report.failure.traceback is not None
    assert 'raise RuntimeError("this is a mistake of ours")' in report.failure.traceback
    assert pod.process.returncode == names.EXIT_FAILED


@pytest.mark.parametrize("gpus", [0, 1])
def test_restarts_are_charged_up_to_what_the_operator_leaves(gang: Gang, gpus: int) -> None:
    pod = gang.start(
        gang.config("out", distributed={"gpusPerNode": gpus}),
        0,
        {"step": 2, "signal": signal.SIGSEGV},
        **{names.ENV_RESTARTS_LEFT: "1"},
    )
    report = pod.last_word()
    assert report.failure is not None
    assert (report.failure.reason, report.in_place, report.failure.rank) == ("WorkerDied", 1, 0)
    assert "was ended by SIGSEGV, which is a fault in native code" in report.failure.message


def test_out_of_memory_on_one_rank_halves_the_forward_passes_of_all_uncharged(gang: Gang, undisturbed: dict[int, bytes]) -> None:
    _, report = gang.run(gang.config("out", processes=2), {"rank": 1, "rows": 2})
    assert (report.phase, report.in_place) == ("Succeeded", 0)
    assert report.resolved is not None
    assert (report.resolved.global_batch_size, report.resolved.per_device_batch_size) == (8, 2)
    assert _close(gang.weights("out"), undisturbed[2])


def test_out_of_memory_with_a_single_row_is_the_end(gang: Gang) -> None:
    pod, report = gang.run(gang.config("out", training={"perDeviceBatchSize": 2}), {"rows": 0})
    assert report.failure is not None
    assert report.failure.reason == "OutOfGPUMemory"
    assert "a single row" in report.failure.message
    assert report.in_place == 0
    assert pod.process.returncode == names.EXIT_REFUSED


def test_a_later_attempt_begins_with_the_forward_passes_that_fitted(gang: Gang) -> None:
    config = gang.config("out", steps=2)
    resolved = {"globalBatchSize": 8, "perDeviceBatchSize": 3, "processes": 1}
    later = config.model_validate(config.to_wire() | {"attempt": 2, "resolved": resolved})
    _, report = gang.run(later)
    assert report.resolved is not None
    assert report.resolved.per_device_batch_size == 3


def test_a_stopped_process_is_blamed_for_the_stall_and_the_stacks_are_in_the_log(gang: Gang) -> None:
    pod = gang.start(gang.config("out", processes=2, steps=100, recovery={"stallTimeoutSeconds": 6}), fault=SLOW)
    pod.wait_for_step(3)
    pod.signal_worker(1, signal.SIGSTOP)
    report = pod.last_word()
    assert report.failure is not None
    assert (report.failure.reason, report.failure.rank) == ("Stalled", 1)
    assert "rank 1 does not answer (stopped?)" in report.failure.message
    assert "rank 0: " in report.failure.message
    assert "most recent call first" in pod.log.read_text()
    assert pod.process.returncode == names.EXIT_FAILED
    assert [pid for pid in pod.state.pids().values() if (pathlib.Path("/proc") / str(pid)).exists()] == []


def test_a_stop_of_one_pod_ends_all_with_a_checkpoint(gang: Gang) -> None:
    config = gang.config("out", nodes=2, steps=200)
    pods = [gang.start(config, index, SLOW) for index in (0, 1)]
    pods[0].wait_for_step(3)
    pods[1].stop()
    reports = [pod.last_word() for pod in pods]
    assert [report.phase for report in reports] == ["Interrupted", "Interrupted"]
    assert [pod.process.returncode for pod in pods] == [names.EXIT_INTERRUPTED] * 2
    assert reports[0].checkpoint is not None
    assert reports[0].checkpoint.step == reports[0].step


@pytest.mark.parametrize("index", [0, 1])
def test_a_stop_while_waiting_for_the_other_pods_ends_at_once(gang: Gang, index: int) -> None:
    pod = gang.start(gang.config("out", nodes=2), index)
    deadline = time.monotonic() + 60
    while not (pod.state.directory / "run.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    asked = time.monotonic()
    pod.stop()
    assert pod.last_word().phase == "Interrupted"
    assert time.monotonic() - asked < 8


def test_a_stop_while_the_data_is_tokenised_ends_at_once(gang: Gang) -> None:
    pod = gang.start(gang.config("out"), fault={"stage": "tokenising", "stage_seconds": 60})
    pod.wait_for(lambda report: report.message == "loading the data")
    asked = time.monotonic()
    pod.stop()
    report = pod.last_word()
    assert (report.phase, report.message) == ("Interrupted", "stopped on request before the first step")
    assert time.monotonic() - asked < 5


def test_a_stop_during_a_save_completes_it_and_saves_the_last_step_too(gang: Gang, undisturbed: dict[int, bytes]) -> None:
    # The steps behind the save are slow: the next save, which would wait for this one, is far from the stop.
    pod = gang.start(gang.config("out"), fault={"stage": "saving", "stage_seconds": 60, "seconds": 1.0, "after": 3})
    pod.wait_for_step(4)
    checkpoints = gang.directory / "out" / "checkpoints"
    assert [path for path in checkpoints.iterdir() if path.name == "step-3"] == [], "it is being written"
    asked = time.monotonic()
    pod.stop()
    report = pod.last_word()
    assert time.monotonic() - asked < 8
    assert report.phase == "Interrupted"
    assert report.checkpoint is not None
    assert report.checkpoint.step == report.step >= 4
    assert sorted(path.name for path in checkpoints.iterdir()) == sorted(["step-3", f"step-{report.step}"])
    assert gang.start(gang.config("out")).last_word().phase == "Succeeded"
    assert gang.weights("out") == undisturbed[1]


def test_too_short_a_time_for_a_checkpoint_is_said_and_the_last_one_counts(gang: Gang) -> None:
    config = gang.config("out", checkpoint={"everySteps": 1}, pod={"terminationGracePeriodSeconds": 10})
    pod = gang.start(config, fault={"seconds": 60.0, "after": 2})
    pod.wait_for(lambda report: report.checkpoint is not None and report.step >= 2)
    asked = time.monotonic()
    pod.stop()
    report = pod.last_word()
    assert time.monotonic() - asked < 10
    assert report.phase == "Interrupted"
    assert report.message is not None
    assert "as 10 seconds were too short: the checkpoint of step" in report.message
    assert report.checkpoint_problem is not None
    assert report.checkpoint_problem.reason == "GracePeriodTooShort"
    assert "spec.pod.terminationGracePeriodSeconds" in report.checkpoint_problem.message


def test_a_stop_during_the_push_keeps_the_model_and_the_next_attempt_only_pushes(gang: Gang) -> None:
    assert gang.start(gang.config("out", steps=2), 0).last_word().phase == "Succeeded"
    # A Hub that takes every connection and answers nothing.
    with socket.create_server(("127.0.0.1", 0)) as hub:
        config = gang.config(
            "out",
            steps=2,
            publish={"repository": "team/model", "visibility": "Private"},
            hub={"endpoint": f"http://127.0.0.1:{hub.getsockname()[1]}"},
            pod={"terminationGracePeriodSeconds": 4},
        )
        pod = gang.start(config, 0, HF_ENDPOINT=config.spec.hub.endpoint or "")
        hub.settimeout(60)
        with hub.accept()[0]:
            pod.stop()
            report = pod.last_word()
    assert (report.phase, pod.process.returncode) == ("Interrupted", names.EXIT_INTERRUPTED)
    assert report.message is not None
    assert "the next attempt only pushes it" in report.message
    assert (gang.directory / "out" / "model" / "model.safetensors").exists()
    assert (gang.directory / "out" / "report.json").exists()


def _close(first: bytes, second: bytes) -> bool:
    """Whether two models' weights are the same within what another split of the batches rounds."""
    import torch
    from safetensors.torch import load

    one, other = load(first), load(second)
    difference = sum(float((one[name] - other[name]).square().sum()) for name in other)
    size = sum(float(tensor.square().sum()) for tensor in other.values())
    assert all(isinstance(tensor, torch.Tensor) for tensor in one.values())
    return bool((difference / size) ** 0.5 <= 1e-5)
