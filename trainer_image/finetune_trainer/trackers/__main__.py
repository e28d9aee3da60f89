"""The process of the trackers: reads the history, passes it to the trackers, and ends when the launcher sends the outcome.

The launcher writes one word to standard input: the outcome of the training. End of file without a word means that the launcher
has died.
"""

import contextlib
import importlib
import json
import os
import pathlib
import sys
import threading
import time
import uuid
from typing import Any

from finetune_api import names
from finetune_api.wire import RunConfig
from finetune_trainer.output.directory import OutputDirectory
from finetune_trainer.publish.upload_filter import secret_values, shareable_spec
from finetune_trainer.runtime import logs
from finetune_trainer.runtime.state import write_atomically
from finetune_trainer.trackers.base import Point, Run, Tracker, point_from_entry
from finetune_trainer.trackers.deliver import Delivery
from finetune_trainer.trackers.follow import HistoryReader
from finetune_trainer.trackers.process import FLUSH_SECONDS

_PACKAGE = "finetune_trainer.trackers"
_POLL_SECONDS = 1.0
# Name in the spec, which is also the module in this package → class. Imported late, because each imports its library.
_TRACKERS = {"tensorboard": "TensorBoard", "wandb": "WeightsAndBiases", "mlflow": "MLflow"}


def run_id(directory: pathlib.Path) -> str:
    """Return the id of this job's run in every tracker. It is generated once and kept in trackers.json in the output."""
    path = directory / "trackers.json"
    try:
        return str(json.loads(path.read_text())["id"])
    except (OSError, ValueError, KeyError):
        new_id = uuid.uuid4().hex
        write_atomically(path, json.dumps({"id": new_id}), durable=True)
        return new_id


def open_tracker(name: str, config: RunConfig) -> Tracker:
    """Open a tracker. Raise the errors of its library."""
    module = importlib.import_module(f"{_PACKAGE}.{name}")
    output = OutputDirectory(pathlib.Path(config.output))
    known: dict[str, Any] = {"spec": shareable_spec(config.spec), "resolved": output.resolved() or {}}
    run = Run(run_id(output.directory), config.name, config.namespace, known, output.directory)
    made: Tracker = getattr(module, _TRACKERS[name])(run)
    return made


def final_point(output: OutputDirectory, last: Point | None) -> list[Point]:
    """Return the metrics of the finished model, as a point at the last step; empty if there are none."""
    try:
        evaluated: dict[str, Any] = json.loads(output.evaluation.read_text())["metrics"]
    except (OSError, ValueError, KeyError):
        return []
    metrics = {f"final/{name}": float(value) for name, value in evaluated.items() if isinstance(value, int | float)}
    return [Point(last.step if last else 0, metrics, time.time())] if metrics else []


def follow(config: RunConfig, deliveries: list[Delivery], ended: threading.Event) -> Point | None:
    """Pass all present and new points of the history to the trackers until ``ended`` is set. Return the last point."""
    follower = HistoryReader(pathlib.Path(config.output) / "history.jsonl")
    last = None
    while True:
        over = ended.wait(_POLL_SECONDS)  # checked before the last read of the history, so that this read misses nothing
        points = [point for entry in follower.new_entries() if (point := point_from_entry(entry)).metrics]
        for delivery in deliveries:
            delivery.put(points)
        last = points[-1] if points else last
        if over:
            return last


def main() -> None:
    """Run the process."""
    config = RunConfig.model_validate_json(pathlib.Path(os.environ[names.ENV_RUN_FILE]).read_text())
    logs.configure(logs.log_source(config, "trackers"), config.spec.logging.format)
    secrets = sorted(secret_values(os.environ), key=len, reverse=True)
    deliveries = [
        Delivery(name, lambda name=name: open_tracker(name, config), secrets)  # type: ignore[misc]
        for name in dict.fromkeys(config.spec.logging.report_to or ())
    ]
    ended, outcome = threading.Event(), [""]

    def listen() -> None:
        outcome[0] = sys.stdin.readline().strip()
        ended.set()

    threading.Thread(target=listen, daemon=True).start()
    for name in config.spec.logging.report_to or ():
        with contextlib.suppress(ImportError):  # Delivery reports the error when it opens the tracker
            importlib.import_module(f"{_PACKAGE}.{name}")  # while the training starts
    last = follow(config, deliveries, ended)
    if outcome[0] == "Succeeded":
        for delivery in deliveries:
            delivery.put(final_point(OutputDirectory(pathlib.Path(config.output)), last))
    for delivery in deliveries:
        delivery.close(outcome[0] or None)
    deadline = time.monotonic() + FLUSH_SECONDS
    for delivery in deliveries:
        delivery.wait(max(0.0, deadline - time.monotonic()))
    # Not sys.exit(), because an exit hook of a library may wait for its server for ever.
    os._exit(0)


if __name__ == "__main__":
    main()
