"""Records each start of a training in its output directory. The report shows the starts."""

import importlib.metadata
import json
import logging
import pathlib
import platform
import time
from collections.abc import Sequence

import torch

from finetune_api import __version__
from finetune_api.wire import RunConfig
from finetune_trainer.monitoring.progress import timestamp
from finetune_trainer.runtime import device

log = logging.getLogger(__name__)

_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "tokenizers", "peft", "trl")


def record_start(path: pathlib.Path, config: RunConfig, step: int, total_steps: int, data: Sequence[str]) -> None:
    """Append a line for this start (an attempt, or a restart within one), which begins after ``step`` optimizer steps.

    data: what was read, and for what its labels were taken, in sentences.
    """
    start = {
        "time": timestamp(time.time()),
        "attempt": config.attempt,
        "fromStep": step,
        "totalSteps": total_steps,
        "nodes": config.nodes,
        "processes": config.nodes * config.processes_per_node,
        "device": device.device_name(),
        "versions": versions(),
        "data": list(data),
    }
    try:
        with path.open("a") as stream:
            stream.write(json.dumps(start) + "\n")
    except OSError as error:  # only a report needs the file
        log.warning("%s: this start could not be recorded: %s", path, error.strerror)


def versions() -> dict[str, str]:
    """Return the versions of the trainer, of Python, of the main libraries and of CUDA."""
    found = {"finetune": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found
