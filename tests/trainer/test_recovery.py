"""A training that is interrupted in any way, any number of times, ends with exactly the weights of an uninterrupted one."""

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

from finetune_trainer.checkpoints.directory import MANIFEST, checkpoint_step, list_checkpoints
from trainer import small_jobs
from trainer.runner import Runner
from trainer.test_stream import add_dropout
from trainer.test_tasks import config, distance, history, weights
from trainer.torchrun import run_script

STEPS, EVERY = 20, 3
JOBS = [("Trainer", name) for name in small_jobs.JOBS] + [("Native", name) for name in small_jobs.NATIVE]
LOOPS = ("Trainer", "Native")
Interruption = tuple[str, int]
Outcomes = list[dict[str, Any]]


class Workspace:
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

    def add(self, entry: dict[str, Any], *interruptions: Interruption, leave: bool = False) -> pathlib.Path:
        """Queue a job with its interruptions for the next run(); return its output directory."""
        self._jobs.append({"config": entry, "interruptions": interruptions, "leave": leave})
        return pathlib.Path(entry["output"])

    def run(self, processes: int = 1) -> Outcomes:
        """Train all queued jobs; return what rank 0 reported for each start."""
        file = self.directory / f"{time.monotonic_ns()}.json"
        file.write_text(json.dumps(self._jobs))
        self._jobs = []
        ended = run_script("train_with_interruptions", file, processes)
        assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-6000:]
        outcomes = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{"output"')]
        return [entry for entry in outcomes if entry["rank"] == 0]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    directory = tmp_path_factory.mktemp("recovery")
    small_jobs.write_all(directory / "small")
    shutil.copytree(directory / "small", directory / "plain")
    add_dropout(directory / "small" / "models")
    # The square of this label overflows single precision.
    ratings = directory / "small" / "data" / "ratings-train.jsonl"
    rows = [json.loads(line) for line in ratings.read_text().splitlines()]
    rows[17]["label"] = 1e30
    ratings.with_name("wrong-train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Workspace(directory)


def assert_same(ours: pathlib.Path, theirs: pathlib.Path) -> None:
    assert history(ours) == history(theirs), "no step is missing or repeated"
    found, expected = weights(ours), weights(theirs)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected), ours


def random_interruptions(draw: random.Random) -> list[Interruption]:
    steps = sorted(draw.sample(range(1, STEPS), draw.randint(1, 2)))
    return [(draw.choice(["stop", "die"]), step) for step in steps]


@pytest.mark.parametrize("processes", [1, 2])
def test_interruptions_at_any_step_change_no_bit_of_any_task_on_either_loop(workspace: Workspace, processes: int) -> None:
    draw = random.Random(processes)
    pairs = []
    for loop, name in JOBS:
        uninterrupted = workspace.add(workspace.job(f"uninterrupted-{processes}", loop, name, processes))
        pairs.append(
            (
                workspace.add(workspace.job(f"interrupted-{processes}", loop, name, processes), *random_interruptions(draw)),
                uninterrupted,
            )
        )
    for loop in LOOPS:  # checkpoints by time: train_with_interruptions shortens the interval to less than a step
        often = workspace.job(f"seconds-{processes}", loop, "masked-lm", processes, checkpoint={"everySeconds": 1})
        uninterrupted = workspace.directory / f"uninterrupted-{processes}" / loop / "masked-lm"
        pairs.append((workspace.add(often, ("die", 5), ("stop", 12)), uninterrupted))
    workspace.run(processes)
    for ours, theirs in pairs:
        assert_same(ours, theirs)
    assert [last_step(ours) for ours, _ in pairs[-2:]] == [STEPS, STEPS]


def last_step(output: pathlib.Path) -> int:
    return checkpoint_step(list_checkpoints(output / "checkpoints")[-1])


def test_three_processes_or_a_changed_number_of_processes_end_with_the_same_weights_up_to_rounding(workspace: Workspace) -> None:
    name = "text-classification"
    uninterrupted = workspace.add(workspace.job("one", "Trainer", name, dropout=False))
    started = workspace.job("other", "Trainer", name, dropout=False)
    workspace.add(started, ("stop", 10), leave=True)
    workspace.run()
    workspace.add(workspace.job("three", "Trainer", name, 3))
    workspace.add(workspace.job("three-broken", "Trainer", name, 3), ("die", 8), ("stop", 13))
    other = workspace.add({**started, "processesPerNode": 3})
    workspace.run(3)
    assert distance(weights(other), weights(uninterrupted)) <= 1e-5
    three, broken = (workspace.directory / split / "Trainer" / name for split in ("three", "three-broken"))
    assert distance(weights(broken), weights(three)) <= 1e-5


def truncate(checkpoint: pathlib.Path) -> None:
    file = checkpoint / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)


def flip_a_byte(checkpoint: pathlib.Path) -> None:
    file = checkpoint / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def remove_the_manifest(checkpoint: pathlib.Path) -> None:
    (checkpoint / MANIFEST).unlink()


def test_a_damaged_checkpoint_is_skipped_and_reported_and_the_weights_are_the_same(workspace: Workspace) -> None:
    damages = (truncate, flip_a_byte, remove_the_manifest)
    name = "text-classification"
    uninterrupted = workspace.add(workspace.job("undamaged", "Trainer", name))
    started = [workspace.job(damage.__name__, "Trainer", name) for damage in damages]
    lost = workspace.job("lost", "Native", name)
    for entry in (*started, lost):
        workspace.add(entry, ("stop", 10), leave=True)
    native = workspace.add(workspace.job("undamaged", "Native", name))
    workspace.run()
    for damage, entry in zip(damages, started, strict=True):
        damage(list_checkpoints(pathlib.Path(entry["output"]) / "checkpoints")[-1])
    for checkpoint in list_checkpoints(pathlib.Path(lost["output"]) / "checkpoints"):
        truncate(checkpoint)
    outputs = [workspace.add(entry) for entry in (*started, lost)]
    outcomes = workspace.run()
    skipped = [entry["report"]["skippedCheckpoints"] for entry in outcomes]
    assert skipped == [["step-10"], ["step-10"], ["step-10"], ["step-10", "step-9", "step-6"]]
    for output in outputs[:-1]:
        assert_same(output, uninterrupted)
    assert_same(outputs[-1], native)  # it started from the beginning


def test_a_batch_with_a_non_finite_loss_is_skipped_on_both_loops_by_all_processes(workspace: Workspace) -> None:
    data = {
        "datasets": [{"claim": {"claimName": "small", "path": "data/wrong-train.jsonl", "evalPath": "data/ratings-eval.jsonl"}}]
    }
    skip = {**data, "recovery": {"onNonFiniteLoss": "SkipBatch"}}
    name = "text-classification-regression"
    outputs = {loop: workspace.add(workspace.job("skip", loop, name, 2, **skip)) for loop in LOOPS}
    for loop in LOOPS:
        workspace.add(workspace.job("fail", loop, name, 2, **data))
    outcomes = workspace.run(2)
    steps = {loop: json.loads((output / "skipped.json").read_text())["steps"] for loop, output in outputs.items()}
    assert steps["Trainer"] == steps["Native"]
    assert len(steps["Trainer"]) == 2, "once in each epoch; the third epoch ends before that batch"
    failed = [entry for entry in outcomes if "/fail/" in entry["output"]]
    for entry in failed:
        assert entry["reason"] == "NonFiniteLoss"
        assert f"the loss is NaN or infinite at step {steps['Trainer'][0]};" in entry["message"]
        for checkpoint in list_checkpoints(pathlib.Path(entry["output"]) / "checkpoints"):
            assert checkpoint_step(checkpoint) < steps["Trainer"][0], "no checkpoint is saved from the non-finite step on"
    # Compare with a run that skips the same steps from the start: no other step is affected.
    for loop in LOOPS:
        entry = workspace.job("known", loop, name, 2, **skip)
        pathlib.Path(entry["output"]).mkdir(parents=True)
        shutil.copy(outputs[loop] / "skipped.json", entry["output"])
        known = workspace.add(entry)
        outputs[f"known-{loop}"] = known
    workspace.run(2)
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


def test_a_full_disk_does_not_stop_a_training_and_is_reported_until_there_is_space(
    workspace: Workspace, tiny_disk: pathlib.Path
) -> None:
    uninterrupted, outputs = {}, {}
    for loop in LOOPS:
        uninterrupted[loop] = workspace.add(workspace.job("roomy", loop, "masked-lm"))
        entry = workspace.job("full", loop, "masked-lm") | {"output": str(tiny_disk / loop)}
        outputs[loop] = workspace.add(entry, ("full", 7))
    outcomes = {entry["output"]: entry for entry in workspace.run()}
    for loop, output in outputs.items():
        problems = outcomes[str(output)]["problems"]
        assert problems[0] is None
        assert "DiskFull" in problems
        assert problems[-1] is None
        assert last_step(output) == STEPS
        assert not [path for path in (output / "checkpoints").iterdir() if path.name.startswith(".")]
        assert_same(output, uninterrupted[loop])


def test_an_attempt_that_lost_the_directory_to_a_later_one_ends_and_writes_nothing_more(workspace: Workspace) -> None:
    outputs = [workspace.add(workspace.job("fenced", loop, "masked-lm"), ("fenced", 5)) for loop in LOOPS]
    outcomes = workspace.run()
    assert [entry["reason"] for entry in outcomes] == ["Interrupted", "Interrupted"]
    for entry, output in zip(outcomes, outputs, strict=True):
        assert "now belongs to attempt 2" in entry["message"]
        assert max(line["step"] for line in history(output)) < 5
        # The checkpoint of step 3 may still have been in progress.
        assert {path.name for path in (output / "checkpoints").iterdir()} <= {f"step-{EVERY}"}
        assert not (output / "model").exists()


def test_a_killed_job_ends_with_exactly_the_same_weights(make_runner: Callable[..., Runner]) -> None:
    runner = make_runner(dropout=0.1)
    job = runner.job(training={"epochs": 5}, checkpoint={"everySteps": 4})
    assert runner.run(job, "uninterrupted").returncode == 0
    process = subprocess.Popen(runner.command(job, "interrupted"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any(entry["step"] >= 10 for entry in runner.history("interrupted")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # The job starts again at once, while the worker of the killed launcher still runs for a moment.
    assert runner.run(job, "interrupted").returncode == 0
    interrupted = runner.directory / "interrupted"
    assert_same(interrupted, runner.directory / "uninterrupted")
