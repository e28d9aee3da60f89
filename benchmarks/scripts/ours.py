"""Run our worker on a run configuration, and record the time of each step: `ours.py FILE [SECONDS]`.

SECONDS: stop after the step that ends so long after the first one, but not before the fourth step. None: train to the end.
"""

import json
import math
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

from finetune_api.wire import RunConfig
from finetune_trainer.monitoring.progress import Reporter
from finetune_trainer.runtime.distributed import Coordinator, World, init_process_group
from finetune_trainer.runtime.state import RunState

_MIN_STEPS = 4


class TimedReporter(Reporter):
    """A reporter that records the time at which each step ends. seconds: when to stop."""

    ends: list[float]
    seconds: float

    def step(self, *arguments: Any) -> None:
        self.ends.append(time.perf_counter())
        super().step(*arguments)
        if len(self.ends) >= _MIN_STEPS and self.ends[-1] - self.ends[0] >= self.seconds:
            self._state.request_stop()


def main() -> None:
    config = RunConfig.model_validate_json(pathlib.Path(sys.argv[1]).read_text())
    with tempfile.TemporaryDirectory() as directory:
        state = RunState(pathlib.Path(directory))
        state.create()
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(state.metrics_dir)
        from finetune_trainer.train import train

        world = World.from_environment()
        init_process_group(world, b"key", 300)
        coordinator = Coordinator(world)
        reporter = TimedReporter(state, 1, writes=True)
        reporter.ends, reporter.seconds = [], float(sys.argv[2]) if len(sys.argv) > 2 else math.inf
        train(config, coordinator, state, reporter)
        report = reporter.report
        coordinator.close()
    batch = report.resolved.global_batch_size if report.resolved else 0
    rate = (batch or 0) * (len(reporter.ends) - 1) / (reporter.ends[-1] - reporter.ends[0])
    accuracy = report.evaluation.metrics.get("accuracy") if report.evaluation else None
    print("RESULT " + json.dumps({"rate": rate, "accuracy": accuracy, "first_step": reporter.ends[0], "ends": reporter.ends}))


if __name__ == "__main__":
    main()
