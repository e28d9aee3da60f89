"""Starts a script of this folder as one process, or as a gang of them."""

import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def start_gang(script: str, file: pathlib.Path, processes: int) -> "subprocess.CompletedProcess[str]":
    """Run it to its end; imports take longer than a tiny training does, so it does many. file: its argument."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*(torchrun if processes > 1 else [sys.executable]), str(HERE / script), str(file)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=environment)
