"""A training that was broken off, however and however often, ends with the very weights of one that never was."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from finetune_trainer.checkpoints import store
from trainer import small
from trainer.gang import start_gang
from trainer.runner import Runner
from trainer.test_stream import add_dropout
from trainer.test_tasks import config, distance, history, weights

STEPS, EVERY = 20, 3
JOBS = [("trainer", name) for name in small.JOBS] + [("native", name) for name in small.NATIVE]
LOOPS = ("trainer", "native")
Break = tuple[str, int]
Told = list[dict[str, Any]]


class Place:
    """A directory with data and models, and jobs on them."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self._jobs: list[dict[str, Any]] = []

    def job(self, split: str, loop: str, name: str, processes: int = 1, dropout: bool = True, **changes: Any) -> dict[str, Any]:
        entry = config(self.directory, split, loop, name, processes, micro=3)
        entry["spec"] |= {"checkpoint": {"everySteps": EVERY, "keep": 3}} | changes
        if not dropout:
            entry["claims"] = {"small": str(self.directory / "plain")}
        return entry

    def add(self, entry: dict[str, Any], *breaks: Break, leave: bool = False) -> pathlib.Path:
        """Have it trained by the next run(), with its breaks; its output."""
        self._jobs.append({"config": entry, "breaks": breaks, "leave": leave})
        return pathlib.Path(entry["output"])

    def run(self, processes: int = 1) -> Told:
        """Train all that were added; what rank 0 told of each start."""
        file = self.directory / f"{time.monotonic_ns()}.json"
        file.write_text(json.dumps(self._jobs))
        self._jobs = []
        ended = start_gang("broken.py", file, processes)
        assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-6000:]
        told = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{"output"')]
        return [entry for entry in told if entry["rank"] == 0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    directory = tmp_path_factory.mktemp("recovery")
    small.write_all(directory / "small")
    shutil.copytree(directory / "small", directory / "plain")
    add_dropout(directory / "small" / "models")
    # The square of this is no number in single precision.
    ratings = directory / "small" / "data" / "ratings-train.jsonl"
    rows = [json.loads(line) for line in ratings.read_text().splitlines()]
    rows[17]["label"] = 1e30
    ratings.with_name("wrong-train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Place(directory)


def assert_same(ours: pathlib.Path, theirs: pathlib.Path) -> None:
    assert history(ours) == history(theirs), "no step is missing, none is there twice"
    found, expected = weights(ours), weights(theirs)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected), ours


def some_breaks(draw: random.Random) -> list[Break]:
    steps = sorted(draw.sample(range(1, STEPS), draw.randint(1, 2)))
    return [(draw.choice(["stop", "die"]), step) for step in steps]


@pytest.mark.parametrize("processes", [1, 2])
def test_breaks_at_any_step_change_no_bit_of_any_task_on_either_loop(place: Place, processes: int) -> None:
    draw = random.Random(processes)
    pairs = []
    for loop, name in JOBS:
        whole = place.add(place.job(f"whole-{processes}", loop, name, processes))
        pairs.append((place.add(place.job(f"parts-{processes}", loop, name, processes), *some_breaks(draw)), whole))
    for loop in LOOPS:  # as often as the clock says: each step is slower than this
        often = place.job(f"minutes-{processes}", loop, "masked-lm", processes, checkpoint={"everyMinutes": 0.0002})
        whole = place.directory / f"whole-{processes}" / loop / "masked-lm"
        pairs.append((place.add(often, ("die", 5), ("stop", 12)), whole))
    place.run(processes)
    for ours, theirs in pairs:
        assert_same(ours, theirs)
    assert [step_of(ours) for ours, _ in pairs[-2:]] == [STEPS, STEPS]


def step_of(output: pathlib.Path) -> int:
    return store.step_of(store.complete_checkpoints(output / "checkpoints")[-1])


def test_three_processes_and_another_number_of_them_end_within_rounding(place: Place) -> None:
    name = "text-classification"
    whole = place.add(place.job("one", "trainer", name, dropout=False))
    started = place.job("other", "trainer", name, dropout=False)
    place.add(started, ("stop", 10), leave=True)
    place.run()
    place.add(place.job("three", "trainer", name, 3))
    place.add(place.job("three-broken", "trainer", name, 3), ("die", 8), ("stop", 13))
    other = place.add({**started, "processesPerNode": 3})
    place.run(3)
    assert distance(weights(other), weights(whole)) <= 1e-5
    three, broken = (place.directory / split / "trainer" / name for split in ("three", "three-broken"))
    assert distance(weights(broken), weights(three)) <= 1e-5


def truncate(checkpoint: pathlib.Path) -> None:
    file = checkpoint / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)


def flip_a_byte(checkpoint: pathlib.Path) -> None:
    file = checkpoint / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def lose_the_manifest(checkpoint: pathlib.Path) -> None:
    (checkpoint / store.MANIFEST).unlink()


def test_a_damaged_checkpoint_is_passed_over_and_named_and_the_end_is_the_same(place: Place) -> None:
    damages = (truncate, flip_a_byte, lose_the_manifest)
    name = "text-classification"
    whole = place.add(place.job("undamaged", "trainer", name))
    started = [place.job(damage.__name__, "trainer", name) for damage in damages]
    lost = place.job("lost", "native", name)
    for entry in (*started, lost):
        place.add(entry, ("stop", 10), leave=True)
    native = place.add(place.job("undamaged", "native", name))
    place.run()
    for damage, entry in zip(damages, started, strict=True):
        damage(store.complete_checkpoints(pathlib.Path(entry["output"]) / "checkpoints")[-1])
    for checkpoint in store.complete_checkpoints(pathlib.Path(lost["output"]) / "checkpoints"):
        truncate(checkpoint)
    outputs = [place.add(entry) for entry in (*started, lost)]
    told = place.run()
    skipped = [entry["report"]["skippedCheckpoints"] for entry in told]
    assert skipped == [["step-10"], ["step-10"], ["step-10"], ["step-10", "step-9", "step-6"]]
    for output in outputs[:-1]:
        assert_same(output, whole)
    assert_same(outputs[-1], native)  # which began anew


def test_a_batch_whose_loss_is_no_number_is_left_out_on_both_loops_by_all_processes(place: Place) -> None:
    data = {
        "datasets": [{"claim": {"claimName": "small", "path": "data/wrong-train.jsonl", "evalPath": "data/ratings-eval.jsonl"}}]
    }
    skip = {**data, "recovery": {"onNonFiniteLoss": "SkipBatch"}}
    name = "text-classification-regression"
    outputs = {loop: place.add(place.job("skip", loop, name, 2, **skip)) for loop in LOOPS}
    for loop in LOOPS:
        place.add(place.job("fail", loop, name, 2, **data))
    told = place.run(2)
    steps = {loop: json.loads((output / "skipped.json").read_text())["steps"] for loop, output in outputs.items()}
    assert steps["trainer"] == steps["native"]
    assert len(steps["trainer"]) == 2, "once in each pass over the data, of which the third ends before it"
    failed = [entry for entry in told if "/fail/" in entry["output"]]
    for entry in failed:
        assert entry["reason"] == "NonFiniteLoss"
        assert f"the loss is no number at step {steps['trainer'][0]};" in entry["message"]
        for checkpoint in store.complete_checkpoints(pathlib.Path(entry["output"]) / "checkpoints"):
            assert store.step_of(checkpoint) < steps["trainer"][0], "nothing is saved that went astray"
    # The same steps left out from the start: no other step was touched.
    for loop in LOOPS:
        entry = place.job("known", loop, name, 2, **skip)
        pathlib.Path(entry["output"]).mkdir(parents=True)
        shutil.copy(outputs[loop] / "skipped.json", entry["output"])
        known = place.add(entry)
        outputs[f"known-{loop}"] = known
    place.run(2)
    for loop in LOOPS:
        assert_same(outputs[loop], outputs[f"known-{loop}"])
        assert all(bool(weight.isfinite().all()) for weight in weights(outputs[loop]).values())
        assert [entry["step"] for entry in history(outputs[loop]) if entry.get("skipped")] == steps[loop]


@pytest.fixture
def tiny_disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file system of a few MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small file system: " + mounted.stderr.decode().strip())
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_does_not_stop_a_training_and_is_told_until_there_is_room(place: Place, tiny_disk: pathlib.Path) -> None:
    whole, outputs = {}, {}
    for loop in LOOPS:
        whole[loop] = place.add(place.job("roomy", loop, "masked-lm"))
        entry = place.job("full", loop, "masked-lm") | {"output": str(tiny_disk / loop)}
        outputs[loop] = place.add(entry, ("full", 7))
    told = {entry["output"]: entry for entry in place.run()}
    for loop, output in outputs.items():
        problems = told[str(output)]["problems"]
        assert problems[0] is None
        assert "DiskFull" in problems
        assert problems[-1] is None
        assert step_of(output) == STEPS
        assert not [path for path in (output / "checkpoints").iterdir() if path.name.startswith(".")]
        assert_same(output, whole[loop])


def test_who_lost_the_directory_to_a_later_attempt_ends_and_writes_nothing_more(place: Place) -> None:
    outputs = [place.add(place.job("robbed", loop, "masked-lm"), ("robbed", 5)) for loop in LOOPS]
    told = place.run()
    assert [entry["reason"] for entry in told] == ["Interrupted", "Interrupted"]
    for entry, output in zip(told, outputs, strict=True):
        assert "belongs to attempt 2 now" in entry["message"]
        assert max(line["step"] for line in history(output)) < 5
        # That of step 3 may have been on its way still.
        assert {path.name for path in (output / "checkpoints").iterdir()} <= {f"step-{EVERY}"}
        assert not (output / "model").exists()


def test_a_job_that_was_killed_outright_ends_with_the_very_same_weights(make_runner: Callable[..., Runner]) -> None:
    runner = make_runner(dropout=0.1)
    job = runner.job(training={"epochs": 5}, checkpoint={"everySteps": 4})
    assert runner.run(job, "whole").returncode == 0
    process = subprocess.Popen(runner.command(job, "parts"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any(entry["step"] >= 10 for entry in runner.history("parts")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # At once: the worker that the launcher left behind lives on for a moment.
    assert runner.run(job, "parts").returncode == 0
    parts = runner.directory / "parts"
    assert_same(parts, runner.directory / "whole")
