"""A checkpoint is either complete or absent, and it restores the exact state."""

import json
import os
import pathlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from finetune_api.reasons import FineTuneError
from finetune_trainer.checkpoints import content, tensors
from finetune_trainer.checkpoints.directory import MANIFEST, CheckpointDirectory, checkpoint_step, find_damage, list_checkpoints
from finetune_trainer.checkpoints.writer import HostCopy, Writer
from finetune_trainer.output.fence import Fence
from finetune_trainer.runtime.state import RunState


def make_fence(output: pathlib.Path, pod: pathlib.Path, attempt: int = 1) -> Fence:
    pod.mkdir(exist_ok=True)
    return Fence(output, RunState(pod), attempt)


@pytest.fixture
def fence(tmp_path: pathlib.Path) -> Fence:
    made = make_fence(tmp_path, tmp_path / "pod")
    made.acquire()
    return made


@pytest.fixture
def checkpoints(tmp_path: pathlib.Path, fence: Fence) -> CheckpointDirectory:
    made = CheckpointDirectory(tmp_path / "checkpoints", fence, keep=2)
    made.find_latest()
    return made


def save(checkpoints: CheckpointDirectory, step: int, best: int | None = None, text: str = "weights") -> pathlib.Path:
    chunks = iter([memoryview(text.encode()), memoryview(f" of {step}".encode())])
    return checkpoints.write(step, best, {"model": chunks}, [], lambda: None)


def steps(checkpoints: CheckpointDirectory) -> list[int]:
    return [checkpoint_step(path) for path in list_checkpoints(checkpoints.directory)]


def test_the_newest_checkpoint_is_found_by_number_and_older_ones_are_removed(checkpoints: CheckpointDirectory) -> None:
    for step in (8, 9, 10):
        save(checkpoints, step)
    assert steps(checkpoints) == [9, 10]
    newest, skipped = checkpoints.find_latest()
    assert newest is not None
    assert (newest / "model").read_text() == "weights of 10"
    assert skipped == []


def test_an_incomplete_save_is_never_resumed_and_is_removed(checkpoints: CheckpointDirectory) -> None:
    left = checkpoints.directory / ".step-10.1-abcd"
    left.mkdir()
    (left / "model").write_text("half of it")
    assert checkpoints.find_latest() == (None, [])
    assert list(checkpoints.directory.iterdir()) == []


def test_a_failed_save_leaves_no_file_and_removes_no_checkpoint(checkpoints: CheckpointDirectory) -> None:
    for step in (1, 2):
        save(checkpoints, step)

    def fails() -> Iterator[memoryview]:
        yield memoryview(b"half of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        checkpoints.write(3, None, {"model": fails()}, [], lambda: None)
    assert steps(checkpoints) == [1, 2]
    assert len(list(checkpoints.directory.iterdir())) == 2


def test_saving_a_step_again_replaces_its_checkpoint(checkpoints: CheckpointDirectory) -> None:
    save(checkpoints, 5)
    save(checkpoints, 5, text="other weights")
    assert [path.name for path in checkpoints.directory.iterdir()] == ["step-5"]
    assert (checkpoints.directory / "step-5" / "model").read_text() == "other weights of 5"


def test_each_damaged_checkpoint_is_found_and_kept_under_another_name_until_a_save_is_complete(
    checkpoints: CheckpointDirectory,
) -> None:
    def empty(checkpoint: pathlib.Path) -> None:
        (checkpoint / "model").write_text("")

    def flip(checkpoint: pathlib.Path) -> None:
        (checkpoint / "model").write_text("Weights of 2")

    def lose(checkpoint: pathlib.Path) -> None:
        (checkpoint / "model").unlink()

    def tear(checkpoint: pathlib.Path) -> None:
        os.truncate(checkpoint / MANIFEST, 20)

    def old(checkpoint: pathlib.Path) -> None:
        (checkpoint / MANIFEST).write_text("[]")

    for damage in (empty, flip, lose, tear, old):
        good, bad = save(checkpoints, 1), save(checkpoints, 2)
        damage(bad)
        assert find_damage(bad), damage.__name__
        assert checkpoints.find_latest() == (good, ["step-2"])
        assert checkpoints.find_latest() == (good, []), "a damaged checkpoint is reported once"
        assert (checkpoints.directory / "damaged-step-2").exists()
    save(checkpoints, 2)
    assert not (checkpoints.directory / "damaged-step-2").exists()


def test_best_steps_lists_the_best_models_of_all_checkpoints(checkpoints: CheckpointDirectory) -> None:
    save(checkpoints, 1)
    save(checkpoints, 2, best=1)
    assert checkpoints.best_steps() == {1}


def test_an_attempt_that_lost_the_directory_writes_and_removes_no_checkpoint(
    tmp_path: pathlib.Path, checkpoints: CheckpointDirectory
) -> None:
    save(checkpoints, 1)
    make_fence(tmp_path, tmp_path / "other", attempt=2).acquire()
    with pytest.raises(FineTuneError, match=r"now belongs to attempt 2, which started after this one: attempt 1 ends"):
        save(checkpoints, 2)
    assert [path.name for path in checkpoints.directory.iterdir()] == ["step-1"]


def test_restarted_processes_keep_the_directory_but_cannot_take_it_back_from_a_later_attempt(tmp_path: pathlib.Path) -> None:
    make_fence(tmp_path, tmp_path / "first").acquire()
    again = make_fence(tmp_path, tmp_path / "first")
    again.acquire()
    again.check()
    make_fence(tmp_path, tmp_path / "second", attempt=2).acquire()
    with pytest.raises(FineTuneError, match="belongs to attempt 2"):
        again.check()
    with pytest.raises(FineTuneError, match="belongs to attempt 2"):
        make_fence(tmp_path, tmp_path / "first").acquire()


def test_a_nested_state_is_restored_with_the_same_types_and_values(tmp_path: pathlib.Path) -> None:
    state: dict[str, Any] = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(3, 4)}, 1: {"half": torch.randn(5).bfloat16()}},
        "param_groups": [{"betas": (0.9, 0.999), "lr": 0.1 + 0.2, "fused": True, "none": None}],
        "bytes": torch.arange(7, dtype=torch.uint8), "empty": torch.zeros(0, 2), "transposed": torch.randn(2, 3).T,
    }  # fmt: skip
    skeleton, found = tensors.flatten(state, "state")
    file = tmp_path / "state.safetensors"
    tensors.write(file, tensors.as_safetensors(found), lambda _: None)
    restored = tensors.restore(json.loads(json.dumps(skeleton)), tensors.load(file))
    assert restored["param_groups"] == state["param_groups"]
    assert isinstance(restored["param_groups"][0]["betas"], tuple)
    assert list(restored["state"]) == [0, 1]
    for one, other in (
        (restored["state"][0]["exp_avg"], state["state"][0]["exp_avg"]),
        (restored["transposed"], state["transposed"]),
    ):
        assert torch.equal(one, other)
    assert restored["state"][1]["half"].dtype == torch.bfloat16
    assert restored["empty"].shape == (0, 2)


class OnGpu(torch.Tensor):
    """A fake GPU tensor: numpy can't read it before it is copied to the host."""

    def cpu(self, *_: Any, **__: Any) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


def test_tensors_without_a_host_copy_are_written_from_the_device(tmp_path: pathlib.Path) -> None:
    weight = torch.randn(3, 4)
    tensors.write(tmp_path / "w", tensors.as_safetensors({"w": weight.as_subclass(OnGpu)}), lambda _: None)
    assert torch.equal(tensors.load(tmp_path / "w")["w"], weight)


def test_a_state_that_is_neither_number_nor_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match="object in the state of optimizer"):
        tensors.flatten({"a": object()}, "optimizer")


def test_a_checkpoint_holds_trained_weights_and_buffers_and_no_frozen_weights() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    model[0].requires_grad_(False)
    model.register_buffer("positions", torch.arange(3), persistent=False)
    kept = content.model_tensors(model)
    assert set(kept) == {
        "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked", "2.weight", "2.bias",
    }  # fmt: skip
    with pytest.raises(FineTuneError, match="of a model with other weights"):
        content.load_model(model, {"1.weight": torch.zeros(3)})


def test_non_finite_weights_are_detected() -> None:
    model = torch.nn.Linear(2, 2)
    assert content.is_finite(model)
    model.weight.data[0, 0] = float("inf")
    assert not content.is_finite(model)


def test_the_random_state_is_restored() -> None:
    before = content.get_rng_state()
    drawn = torch.rand(3)
    skeleton, found = tensors.flatten(before, "random")
    content.set_rng_state(tensors.restore(json.loads(json.dumps(skeleton)), found))
    assert torch.equal(torch.rand(3), drawn)


def test_a_host_copy_is_a_snapshot_and_its_memory_is_reused() -> None:
    weight = torch.ones(4)
    copy = HostCopy()
    assert copy.missing_bytes({"w": weight}) == 16
    first = copy.copy({"w": weight})["w"]
    weight.zero_()
    assert first.tolist() == [1.0] * 4
    assert copy.missing_bytes({"w": weight}) == 0
    assert copy.copy({"w": weight})["w"].data_ptr() == first.data_ptr()


def test_the_training_continues_during_a_write_and_can_wait_for_it() -> None:
    writer, go_on, written = Writer(), threading.Event(), threading.Event()

    def work() -> None:
        writer.throttle()
        go_on.wait(10)
        written.set()

    writer.submit(work)
    assert not written.is_set(), "submit() returns before the work is done"
    assert not writer.wait(0.01)
    go_on.set()
    assert writer.wait()
    assert written.is_set()


def test_waiting_for_a_write_sends_heartbeats_while_the_write_makes_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    beats: list[str] = []
    monkeypatch.setattr("finetune_trainer.checkpoints.writer.heartbeat.beat", beats.append)
    monkeypatch.setattr("finetune_trainer.checkpoints.writer._POLL_SECONDS", 0.01)
    writer, go_on = Writer(), threading.Event()

    def work() -> None:
        while not go_on.is_set():
            writer.throttle()
            time.sleep(0.005)
        time.sleep(0.2)  # the write hangs

    writer.submit(work)
    deadline = time.monotonic() + 10
    while not beats and time.monotonic() < deadline:
        assert not writer.wait(0.2)
    assert beats
    go_on.set()
    time.sleep(0.05)
    beats.clear()
    assert writer.wait()
    assert len(beats) <= 1


def test_an_error_of_a_background_write_is_raised_by_wait() -> None:
    writer = Writer()

    def fail() -> None:
        raise FineTuneError("Interrupted", "another took it")  # type: ignore[arg-type]

    writer.submit(fail)
    with pytest.raises(FineTuneError, match="another took it"):
        writer.wait()
    assert writer.wait(), "the error is raised once"
