"""Every task takes the same steps for every split of its global batch and on both loops, and its losses equal the recorded ones.

A group of processes trains all the jobs one after the other, because starting it takes longer than the jobs.
"""

import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from trainer import small_jobs
from trainer.runner import comparable_history
from trainer.torchrun import run_script

HERE = pathlib.Path(__file__).parent
REFERENCE = HERE / "reference"
# Name → processes, micro-batch.
SPLITS = {"1x8": (1, 8), "8x1": (1, 1), "2x4": (2, 4)}
Runs = Callable[[str, str, str], pathlib.Path]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Return a function that finds the output of a job on a loop with a split. The first call trains all jobs of the split."""
    directory = tmp_path_factory.mktemp("tasks")
    small_jobs.write_all(directory / "small")
    done: set[str] = set()

    def find(name: str, loop: str, split: str) -> pathlib.Path:
        if split not in done:
            train_all(directory, split)
            done.add(split)
        return directory / split / loop / name

    return find


def train_all(directory: pathlib.Path, split: str) -> None:
    processes, micro = SPLITS[split]
    jobs = [("Trainer", name) for name in small_jobs.JOBS] + [("Native", name) for name in small_jobs.NATIVE]
    configs = [config(directory, split, loop, name, processes, micro) for loop, name in jobs]
    train_together(configs, directory / f"{split}.json", processes)


def train_together(configs: list[dict[str, Any]], file: pathlib.Path, processes: int) -> None:
    """Train all the jobs in one group of processes. file: the file from which the processes read them."""
    file.write_text(json.dumps(configs))
    ended = run_script("train_jobs", file, processes)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-6000:]


def config(directory: pathlib.Path, split: str, loop: str, name: str, processes: int, micro: int) -> dict[str, Any]:
    spec = json.loads(json.dumps(small_jobs.JOBS[name]))
    spec["training"] |= {"loop": loop, "perDeviceBatchSize": micro}
    return {
        "name": name,
        "namespace": "default",
        "spec": spec,
        "nodes": 1,
        "processesPerNode": processes,
        "claims": {"small": str(directory / "small")},
        "output": str(directory / split / loop / name),
    }


def history(output: pathlib.Path) -> list[dict[str, Any]]:
    return comparable_history([json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()])


def losses(output: pathlib.Path) -> list[float]:
    """Return the loss of each step."""
    return [entry["loss"] for entry in history(output) if "loss" in entry]


def weights(output: pathlib.Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    [file] = (output / "model").glob("*.safetensors")
    return load_file(file)


def distance(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """‖Δw‖ ÷ ‖w‖ over all weights together."""
    difference = sum(float((ours[name].double() - theirs[name].double()).pow(2).sum()) for name in theirs)
    return math.sqrt(difference / sum(float(weight.double().pow(2).sum()) for weight in theirs.values()))


def assert_same(ours: pathlib.Path, theirs: pathlib.Path) -> None:
    """Compare loss and gradient norm of each step, each evaluation, and the final weights."""
    entries, expected = history(ours), history(theirs)
    assert [entry["step"] for entry in entries] == [entry["step"] for entry in expected]
    for entry, reference in zip(entries, expected, strict=True):
        for field in ("loss", "gradientNorm"):
            if field in reference:
                assert entry[field] == pytest.approx(reference[field], rel=1e-5, abs=1e-7), (entry["step"], field)
        if "evaluation" in reference:
            metrics, others = reference["evaluation"], entry["evaluation"]
            # If the predictions hardly differ, a correlation depends on their last digits.
            loose = {name for name in ("pearson", "spearman") if name in metrics}
            for name, value in metrics.items():
                assert others[name] == pytest.approx(value, rel=1e-5, abs=1e-3 if name in loose else 1e-6), (entry["step"], name)
    assert distance(weights(ours), weights(theirs)) <= 1e-5


@pytest.mark.parametrize("split", ["8x1", "2x4"])
@pytest.mark.parametrize("name", list(small_jobs.JOBS))
def test_every_split_gives_the_same_steps(runs: Runs, name: str, split: str) -> None:
    assert_same(runs(name, "Trainer", split), runs(name, "Trainer", "1x8"))


@pytest.mark.parametrize("split", ["1x8", "2x4"])
@pytest.mark.parametrize("name", small_jobs.NATIVE)
def test_both_loops_give_the_same_steps(runs: Runs, name: str, split: str) -> None:
    assert_same(runs(name, "Native", split), runs(name, "Trainer", "1x8"))


@pytest.mark.parametrize("name", list(small_jobs.JOBS))
def test_the_losses_equal_the_recorded_ones(runs: Runs, name: str, request: pytest.FixtureRequest) -> None:
    """A commit that changes a number gives the reason (pytest --update-golden writes the numbers)."""
    found = losses(runs(name, "Trainer", "1x8"))
    assert len(found) == 20
    file = REFERENCE / f"{name}.json"
    if request.config.getoption("--update-golden"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps([round(loss, 6) for loss in found]) + "\n")
    assert found == pytest.approx(json.loads(file.read_text()), rel=1e-4, abs=1e-5)
