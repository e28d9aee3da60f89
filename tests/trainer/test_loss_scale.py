"""Against transformers issue 47688: neither accumulation nor world size may scale the loss. The rest is in test_tasks.py."""

import math
from collections.abc import Callable

import pytest

from trainer.runner import Runner


def test_the_loss_is_the_mean_over_the_global_batch(make_runner: Callable[..., Runner]) -> None:
    """The loss of a new head with five classes is near ln 5."""
    runner = make_runner(dropout=0.0)
    assert runner.run(runner.job(training={"perDeviceBatchSize": 1, "epochs": 0.01}), processes=2).returncode == 0
    assert runner.history()[1]["loss"] == pytest.approx(math.log(5), abs=0.3)
