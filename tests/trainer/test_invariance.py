"""The same model comes out however the global batch is split over processes and accumulation."""

import math
from collections.abc import Callable

import pytest
import torch

from trainer.runner import Runner

SPLITS = {"one process × 8": (1, 8), "two processes × 4": (2, 4), "accumulation 8 × 1": (1, 1), "two processes × 3": (2, 3)}


def test_every_split_takes_the_same_steps(make_runner: Callable[..., Runner]) -> None:
    runner = make_runner(dropout=0.0)
    for name, (processes, micro) in SPLITS.items():
        job = runner.job(training={"perDeviceBatchSize": micro, "precision": "fp32"})
        done = runner.run(job, name, processes)
        assert done.returncode == 0, done.stderr
    first, *others = SPLITS
    expected = runner.history(first)
    assert len(expected) == 2 * math.ceil(61 / 8) + 1, "every step is logged, and the evaluation"
    for name in others:
        for ours, theirs in zip(runner.history(name), expected, strict=True):
            for figure in ("loss", "gradientNorm"):
                if figure in theirs:
                    assert ours[figure] == pytest.approx(theirs[figure], rel=1e-5), (name, theirs["step"], figure)
        evaluation, reference = runner.history(name)[-1]["evaluation"], expected[-1]["evaluation"]
        assert evaluation == pytest.approx(reference, rel=1e-5)
        assert relative_distance(runner.weights(name), runner.weights(first)) <= 1e-5


def relative_distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """‖Δw‖ ÷ ‖w‖ over all weights together."""
    difference = sum(float((ours[name].double() - theirs[name].double()).pow(2).sum()) for name in theirs)
    return math.sqrt(difference / sum(float(weight.double().pow(2).sum()) for weight in theirs.values()))


def test_the_loss_is_the_mean_over_the_global_batch(make_runner: Callable[..., Runner]) -> None:
    """Against transformers issue 47688: neither accumulation nor world size may scale it. A fresh head is near ln 5."""
    runner = make_runner(dropout=0.0)
    assert runner.run(runner.job(training={"perDeviceBatchSize": 1, "epochs": 0.01}), processes=2).returncode == 0
    assert runner.history()[0]["loss"] == pytest.approx(math.log(5), abs=0.3)
