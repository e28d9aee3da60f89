"""Trains several jobs in one process or one group of processes, because imports take longer than a tiny training.

`python train_jobs.py FILE`, or with torchrun in front of it. FILE: a JSON list of run configurations.
"""

import json
import os
import pathlib
import sys
import tempfile

from finetune_api.wire import RunConfig
from finetune_trainer.monitoring.progress import Reporter
from finetune_trainer.runtime.distributed import Coordinator, World, init_process_group
from finetune_trainer.runtime.state import RunState


def main() -> None:
    configs = [RunConfig.model_validate(entry) for entry in json.loads(pathlib.Path(sys.argv[1]).read_text())]
    # A worker writes metrics to files. Their directory must exist before the module of the metrics is imported.
    with tempfile.TemporaryDirectory() as directory:
        state = RunState(pathlib.Path(directory))
        state.create()
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(state.metrics_dir)
        from finetune_trainer.train import configure_logging, train

        world = World.from_environment()
        configure_logging(world.rank, configs[0])
        init_process_group(world, b"key", 300)
        coordinator = Coordinator(world)
        for config in configs:
            train(config, coordinator, state, Reporter(state, 1, writes=world.local_rank == 0))
        coordinator.close()


if __name__ == "__main__":
    main()
