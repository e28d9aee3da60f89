"""`finetune run` as people use it: results, Ctrl-C and resuming, and a clear message for each error."""

import json
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable

import pytest
import torch

from finetune_api import names
from trainer.runner import EXAMPLE, Runner, comparable_history


@pytest.mark.slow
def test_the_demo_learns_to_classify_the_news(make_runner: Callable[..., Runner], minilm: pathlib.Path) -> None:
    from transformers import pipeline

    runner = make_runner(model=minilm)
    done = runner.run(EXAMPLE)
    assert done.returncode == 0, done.stderr
    evaluation = json.loads((runner.directory / "out" / "evaluation.json").read_text())
    assert evaluation["metrics"]["accuracy"] >= 0.94
    assert sum(map(sum, evaluation["confusion"])) == 223
    for shown in ("Running: step", "samples/s", "left", "accuracy", "entertainment", "chip maker"):
        assert shown in done.stdout
    classify = pipeline("text-classification", str(runner.directory / "out" / "model"))
    assert classify("The striker scored twice in the last ten minutes of the match.")[0]["label"] == "sports"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_that_is_interrupted_and_run_again_ends_with_exactly_the_same_weights(
    make_runner: Callable[..., Runner], processes: int
) -> None:
    runner = make_runner(dropout=0.1)
    job = runner.job(training={"epochs": 6})
    assert runner.run(job, "uninterrupted", processes).returncode == 0
    for step in (3, 20):
        assert runner.interrupt_after(step, job, "interrupted", processes) == names.EXIT_INTERRUPTED
        assert not (runner.directory / "interrupted" / "model").exists()
    assert runner.run(job, "interrupted", processes).returncode == 0
    assert comparable_history(runner.history("interrupted")) == comparable_history(runner.history("uninterrupted")), (
        "no step is missing or repeated"
    )
    uninterrupted, interrupted = runner.weights("uninterrupted"), runner.weights("interrupted")
    assert all(torch.equal(uninterrupted[name], interrupted[name]) for name in uninterrupted)


def test_a_finished_job_does_not_train_again(make_runner: Callable[..., Runner]) -> None:
    runner = make_runner()
    job = runner.job()
    assert runner.run(job).returncode == 0
    written = (runner.directory / "out" / "model" / "model.safetensors").stat().st_mtime_ns
    again = runner.run(job)
    assert again.returncode == 0
    assert "accuracy" in again.stdout
    assert (runner.directory / "out" / "model" / "model.safetensors").stat().st_mtime_ns == written
    other = runner.run(runner.job(training={"seed": 1}))
    assert other.returncode == names.EXIT_REFUSED
    assert "holds the work of 'news'" in other.stderr


def test_workers_end_when_the_launcher_is_killed(make_runner: Callable[..., Runner]) -> None:
    runner = make_runner()
    job = runner.job(training={"epochs": 500})
    process = subprocess.Popen(runner.command(job, "out", 2), stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 240
    while not runner.history() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while processes_with(f"FINETUNE_LAUNCHER_PID={process.pid}") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_with(f"FINETUNE_LAUNCHER_PID={process.pid}") == []


def test_a_second_ctrl_c_ends_the_job_at_once(make_runner: Callable[..., Runner]) -> None:
    runner = make_runner()
    command = runner.command(runner.job(training={"epochs": 500}), "out", 2)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 240
    while not runner.history() and time.monotonic() < deadline:
        time.sleep(0.1)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == names.EXIT_INTERRUPTED
    assert "stopped on request" in shown
    assert processes_with(f"FINETUNE_LAUNCHER_PID={process.pid}") == []


def processes_with(variable: str) -> list[str]:
    """Processes that have a variable in their environment."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if variable.encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(entry.name)
        except OSError:
            continue
    return found


def test_a_user_error_is_one_sentence_without_a_traceback(make_runner: Callable[..., Runner]) -> None:
    runner = make_runner()
    wrong = runner.run(runner.job(dataset={"trainSplit": "training"}), processes=2)
    assert wrong.returncode == names.EXIT_REFUSED
    assert "error: spec.datasets[0].trainSplit: there is no split 'training'; write one of: train" in wrong.stderr
    assert "Traceback" not in wrong.stdout + wrong.stderr


def test_a_wrong_file_is_refused_before_anything_starts(make_runner: Callable[..., Runner], tmp_path: pathlib.Path) -> None:
    runner = make_runner()
    job = runner.job(trainings={})
    wrong = runner.run(job)
    assert wrong.returncode == names.EXIT_REFUSED
    line = job.read_text().splitlines().index("  trainings: {}") + 1
    assert f"{job}:{line}: spec.trainings: unknown field" in wrong.stderr
    del runner.claims["news"]
    missing = runner.run(runner.job())
    assert "add --claim news=DIR" in missing.stderr
