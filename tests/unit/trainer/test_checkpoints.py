"""Checkpoints are complete or not there, and hold what they were given to the last bit."""

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
from finetune_trainer.checkpoints import content, store, tensors
from finetune_trainer.checkpoints.store import Store
from finetune_trainer.checkpoints.writer import HostCopy, Writer, free_memory
from finetune_trainer.output.fence import Fence
from finetune_trainer.runtime.state import RunState


def make_fence(output: pathlib.Path, pod: pathlib.Path, attempt: int = 1) -> Fence:
    pod.mkdir(exist_ok=True)
    return Fence(output, RunState(pod), attempt)


@pytest.fixture
def fence(tmp_path: pathlib.Path) -> Fence:
    made = make_fence(tmp_path, tmp_path / "pod")
    made.take()
    return made


@pytest.fixture
def checkpoints(tmp_path: pathlib.Path, fence: Fence) -> Store:
    made = Store(tmp_path / "checkpoints", fence, keep=2)
    made.open()
    return made


def save(checkpoints: Store, step: int, best: int | None = None, text: str = "weights") -> pathlib.Path:
    chunks = iter([memoryview(text.encode()), memoryview(f" of {step}".encode())])
    return checkpoints.write(step, best, {"model": chunks}, [], lambda: None)


def steps(checkpoints: Store) -> list[int]:
    return [store.step_of(path) for path in store.complete_checkpoints(checkpoints.directory)]


def test_the_newest_is_found_by_number_and_older_ones_go(checkpoints: Store) -> None:
    for step in (8, 9, 10):
        save(checkpoints, step)
    assert steps(checkpoints) == [9, 10]
    newest, skipped = checkpoints.open()
    assert newest is not None
    assert (newest / "model").read_text() == "weights of 10"
    assert skipped == []


def test_a_save_that_was_cut_off_is_never_gone_on_from_and_is_removed(checkpoints: Store) -> None:
    left = checkpoints.directory / ".step-10.1-abcd"
    left.mkdir()
    (left / "model").write_text("half of it")
    assert checkpoints.open() == (None, [])
    assert list(checkpoints.directory.iterdir()) == []


def test_a_save_that_fails_leaves_nothing_and_takes_nothing_away(checkpoints: Store) -> None:
    for step in (1, 2):
        save(checkpoints, step)

    def fails() -> Iterator[memoryview]:
        yield memoryview(b"half of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        checkpoints.write(3, None, {"model": fails()}, [], lambda: None)
    assert steps(checkpoints) == [1, 2]
    assert len(list(checkpoints.directory.iterdir())) == 2


def test_a_step_saved_again_replaces_itself(checkpoints: Store) -> None:
    save(checkpoints, 5)
    save(checkpoints, 5, text="other weights")
    assert [path.name for path in checkpoints.directory.iterdir()] == ["step-5"]
    assert (checkpoints.directory / "step-5" / "model").read_text() == "other weights of 5"


def test_each_damage_is_found_and_set_aside_until_another_checkpoint_is_complete(checkpoints: Store) -> None:
    def empty(checkpoint: pathlib.Path) -> None:
        (checkpoint / "model").write_text("")

    def flip(checkpoint: pathlib.Path) -> None:
        (checkpoint / "model").write_text("Weights of 2")

    def lose(checkpoint: pathlib.Path) -> None:
        (checkpoint / "model").unlink()

    def tear(checkpoint: pathlib.Path) -> None:
        os.truncate(checkpoint / store.MANIFEST, 20)

    def old(checkpoint: pathlib.Path) -> None:
        (checkpoint / store.MANIFEST).write_text("[]")

    for damage in (empty, flip, lose, tear, old):
        good, bad = save(checkpoints, 1), save(checkpoints, 2)
        damage(bad)
        assert store.find_damage(bad), damage.__name__
        assert checkpoints.open() == (good, ["step-2"])
        assert checkpoints.open() == (good, []), "once is enough"
        assert (checkpoints.directory / "damaged-step-2").exists()
    save(checkpoints, 2)
    assert not (checkpoints.directory / "damaged-step-2").exists()


def test_the_best_models_that_checkpoints_know_of_are_told(checkpoints: Store) -> None:
    save(checkpoints, 1)
    save(checkpoints, 2, best=1)
    assert checkpoints.best_steps() == {1}


def test_who_lost_the_directory_writes_no_checkpoint_and_removes_none(tmp_path: pathlib.Path, checkpoints: Store) -> None:
    save(checkpoints, 1)
    make_fence(tmp_path, tmp_path / "other", attempt=2).take()
    with pytest.raises(FineTuneError, match=r"belongs to attempt 2 now, started after this one \(attempt 1\)"):
        save(checkpoints, 2)
    assert [path.name for path in checkpoints.directory.iterdir()] == ["step-1"]


def test_processes_that_start_again_in_their_pod_go_on_but_take_nothing_back(tmp_path: pathlib.Path) -> None:
    make_fence(tmp_path, tmp_path / "first").take()
    again = make_fence(tmp_path, tmp_path / "first")
    again.take()
    again.check()
    make_fence(tmp_path, tmp_path / "second", attempt=2).take()
    with pytest.raises(FineTuneError, match="belongs to attempt 2"):
        again.check()
    with pytest.raises(FineTuneError, match="belongs to attempt 2"):
        make_fence(tmp_path, tmp_path / "first").take()


def test_a_nested_state_comes_back_as_what_it_was(tmp_path: pathlib.Path) -> None:
    state: dict[str, Any] = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(3, 4)}, 1: {"half": torch.randn(5).bfloat16()}},
        "param_groups": [{"betas": (0.9, 0.999), "lr": 0.1 + 0.2, "fused": True, "none": None}],
        "bytes": torch.arange(7, dtype=torch.uint8), "empty": torch.zeros(0, 2), "turned": torch.randn(2, 3).T,
    }  # fmt: skip
    skeleton, found = tensors.flatten(state, "state")
    file = tmp_path / "state.safetensors"
    tensors.write(file, tensors.as_safetensors(found), lambda _: None)
    restored = tensors.restore(json.loads(json.dumps(skeleton)), tensors.load(file))
    assert restored["param_groups"] == state["param_groups"]
    assert isinstance(restored["param_groups"][0]["betas"], tuple)
    assert list(restored["state"]) == [0, 1]
    for one, other in ((restored["state"][0]["exp_avg"], state["state"][0]["exp_avg"]), (restored["turned"], state["turned"])):
        assert torch.equal(one, other)
    assert restored["state"][1]["half"].dtype == torch.bfloat16
    assert restored["empty"].shape == (0, 2)


class OnGpu(torch.Tensor):
    """A tensor that numpy can't see before it has been copied to the host."""

    def cpu(self, *_: Any, **__: Any) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


def test_tensors_of_which_there_was_no_room_for_a_copy_are_written_from_where_they_are(tmp_path: pathlib.Path) -> None:
    weight = torch.randn(3, 4)
    tensors.write(tmp_path / "w", tensors.as_safetensors({"w": weight.as_subclass(OnGpu)}), lambda _: None)
    assert torch.equal(tensors.load(tmp_path / "w")["w"], weight)


def test_a_state_that_is_neither_number_nor_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match="object in the state of optimizer"):
        tensors.flatten({"a": object()}, "optimizer")


def test_a_checkpoint_holds_what_is_trained_and_buffers_and_nothing_that_is_frozen() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    model[0].requires_grad_(False)
    model.register_buffer("positions", torch.arange(3), persistent=False)
    kept = content.model_tensors(model)
    assert set(kept) == {
        "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked", "2.weight", "2.bias",
    }  # fmt: skip
    with pytest.raises(FineTuneError, match="of a model with other weights"):
        content.load_model(model, {"1.weight": torch.zeros(3)})


def test_weights_that_are_no_numbers_are_seen() -> None:
    model = torch.nn.Linear(2, 2)
    assert content.is_finite(model)
    model.weight.data[0, 0] = float("inf")
    assert not content.is_finite(model)


def test_random_numbers_go_on_where_they_were() -> None:
    before = content.random_state()
    drawn = torch.rand(3)
    skeleton, found = tensors.flatten(before, "random")
    content.set_random_state(tensors.restore(json.loads(json.dumps(skeleton)), found))
    assert torch.equal(torch.rand(3), drawn)


def test_a_copy_is_of_that_moment_and_its_memory_is_used_again() -> None:
    weight = torch.ones(4)
    copy = HostCopy()
    assert copy.missing_bytes({"w": weight}) == 16
    first = copy.take({"w": weight})["w"]
    weight.zero_()
    assert first.tolist() == [1.0] * 4
    assert copy.missing_bytes({"w": weight}) == 0
    assert copy.take({"w": weight})["w"].data_ptr() == first.data_ptr()


def test_the_training_goes_on_while_it_is_written_and_waits_for_the_write_before() -> None:
    writer, go_on, written = Writer(), threading.Event(), threading.Event()

    def work() -> None:
        writer.pace()
        go_on.wait(10)
        written.set()

    writer.submit(work)
    assert not written.is_set(), "submit() returned before the work was through"
    assert not writer.wait(0.01)
    go_on.set()
    assert writer.wait()
    assert written.is_set()


def test_who_waits_for_a_write_gives_signs_of_life_while_it_gets_on(monkeypatch: pytest.MonkeyPatch) -> None:
    beats: list[str] = []
    monkeypatch.setattr("finetune_trainer.checkpoints.writer.heartbeat.beat", beats.append)
    monkeypatch.setattr("finetune_trainer.checkpoints.writer._LOOK_SECONDS", 0.01)
    writer, go_on = Writer(), threading.Event()

    def work() -> None:
        while not go_on.is_set():
            writer.pace()
            time.sleep(0.005)
        time.sleep(0.2)  # it hangs

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


def test_what_went_wrong_in_the_background_is_raised_where_it_is_waited_for() -> None:
    writer = Writer()

    def fail() -> None:
        raise FineTuneError("Interrupted", "another took it")  # type: ignore[arg-type]

    writer.submit(fail)
    with pytest.raises(FineTuneError, match="another took it"):
        writer.wait()
    assert writer.wait(), "once is enough"


def test_free_memory_is_what_the_container_may_still_take(tmp_path: pathlib.Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 600\ninactive_file 100\n")
    assert free_memory(tmp_path) == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) > 1 << 20
