"""Runs a script of this folder as one process, or as several that torch's launcher starts."""

import importlib
import os
import pathlib
import subprocess
import sys
import tempfile

from trainer import preloaded

_TIMEOUT_SECONDS = 900.0


def run_script(script: str, file: pathlib.Path, processes: int) -> "subprocess.CompletedProcess[str]":
    """Call ``main()`` of a module of this folder in each of the processes, and wait for the end. file: the script's argument."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as directory:
        log = pathlib.Path(directory) / "log"
        arguments = [f"trainer.{script}", str(file), str(processes)]
        process = preloaded.start("trainer.torchrun", arguments, environment, log)
        try:
            code = process.wait(_TIMEOUT_SECONDS)
        finally:
            process.kill()
        return subprocess.CompletedProcess([script, str(file)], code, log.read_text(), "")


def main() -> None:
    """Entry point in the preloaded process."""
    module, file, processes = sys.argv[1:]
    sys.argv[1:] = [file]
    script = importlib.import_module(module)
    if processes == "1":
        script.main()
        return
    from torch.distributed.launcher.api import LaunchConfig, launch_agent

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=int(processes), run_id="tests", rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        local_addr="localhost", max_restarts=0, start_method="fork",
    )  # fmt: skip
    launch_agent(config, script.main, [])
