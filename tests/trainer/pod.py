"""The launcher of one pod, on this machine and without its port: `python pod.py RUN_FILE STATE_DIR INDEX`.

Its last word goes to STATE_DIR/last-word.json. Workers run trainer/faulty.py, which does what the variable FAULT says.
"""

import logging
import os
import pathlib
import signal
import sys

from finetune_api.wire import RunConfig
from finetune_trainer.pod import processes as workers
from finetune_trainer.pod.launch import Launcher, leave
from finetune_trainer.pod.termination_message import exit_code
from finetune_trainer.runtime.state import RunState


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    run_file, directory, index = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
    config = RunConfig.model_validate_json(run_file.read_text())
    workers._WORKER = "trainer.faulty"
    if config.nodes > 1:  # a processor for each node, so that it computes with as many threads as one of two processes does
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {processors[index % len(processors)]})
    state = RunState(directory)
    state.create()
    gang = workers.Gang(index, "localhost", "127.0.0.1") if config.nodes > 1 else workers.Gang()
    launcher = Launcher(config, gang, state, config.spec.pod.termination_grace_period_seconds)
    signal.signal(signal.SIGTERM, lambda *_: launcher.request_stop())
    report = launcher.run()
    (directory / "last-word.json").write_text(report.model_dump_json(by_alias=True, exclude_none=True))
    leave(exit_code(report))


if __name__ == "__main__":
    main()
