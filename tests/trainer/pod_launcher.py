"""Runs the launcher of one pod on this machine, without its HTTP port: `pod_launcher.py RUN_FILE STATE_DIR INDEX [--preloaded]`.

It writes its final report to STATE_DIR/final-report.json. Workers run trainer/faulty_worker.py, which reads the variable FAULT.
With the variable WITHOUT_KEY the launcher gets no key for the rendezvous.
"""

import logging
import os
import pathlib
import signal
import sys

from finetune_api.wire import RunConfig
from finetune_trainer.pod import processes
from finetune_trainer.pod.launch import Launcher, exit_immediately
from finetune_trainer.pod.termination_message import exit_code
from finetune_trainer.runtime.state import RunState
from trainer import preloaded

KEY = "as the operator would choose it"


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    run_file, directory, index = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
    config = RunConfig.model_validate_json(run_file.read_text())
    processes._WORKER = "trainer.faulty_worker"
    if "--preloaded" in sys.argv:
        processes.start = preloaded.fork  # type: ignore[assignment]
    if config.nodes > 1:  # one CPU per node, so that a node uses as many threads as one of two processes
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {processors[index % len(processors)]})
    key = None if "WITHOUT_KEY" in os.environ else KEY
    state = RunState(directory)
    state.create()
    pod = processes.PodRank(index, "localhost", "127.0.0.1") if config.nodes > 1 else processes.PodRank()
    launcher = Launcher(config, pod, state, config.spec.pod.termination_grace_period_seconds, key)
    signal.signal(signal.SIGTERM, lambda *_: launcher.request_stop())
    report = launcher.run()
    (directory / "final-report.json").write_text(report.model_dump_json(by_alias=True, exclude_none=True))
    exit_immediately(exit_code(report))


if __name__ == "__main__":
    main()
