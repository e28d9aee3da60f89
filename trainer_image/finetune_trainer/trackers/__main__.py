"""The trackers' process: reads the history, hands it on, and ends when the launcher says how the training ended.

Standard input is its line to the launcher: one word, the outcome; its end without a word means that the launcher is gone.
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
from finetune_trainer.output.directory import Output
from finetune_trainer.publish.upload_filter import secret_words, shareable_spec
from finetune_trainer.runtime import logs
from finetune_trainer.runtime.state import write_atomically
from finetune_trainer.trackers.base import Point, Run, Tracker, point_of
from finetune_trainer.trackers.deliver import Delivery
from finetune_trainer.trackers.follow import Follower
from finetune_trainer.trackers.process import FLUSH_SECONDS

_PACKAGE = "finetune_trainer.trackers"
_LOOK_SECONDS = 1.0
# Name in the spec → module of this package, class. Imported late: each brings its library.
_TRACKERS = {"tensorboard": "TensorBoard", "wandb": "WeightsAndBiases", "mlflow": "MLflow"}


def run_id(directory: pathlib.Path) -> str:
    """The id of this job's run at every tracker: made up once, kept in the output directory, in trackers.json."""
    path = directory / "trackers.json"
    try:
        return str(json.loads(path.read_text())["id"])
    except (OSError, ValueError, KeyError):
        made_up = uuid.uuid4().hex
        write_atomically(path, json.dumps({"id": made_up}), durable=True)
        return made_up


def open_tracker(name: str, config: RunConfig) -> Tracker:
    """Raises whatever the library does."""
    module = importlib.import_module(f"{_PACKAGE}.{name}")
    output = Output(pathlib.Path(config.output))
    known: dict[str, Any] = {"spec": shareable_spec(config.spec), "resolved": output.resolved() or {}}
    run = Run(run_id(output.directory), config.name, config.namespace, known, output.directory)
    made: Tracker = getattr(module, _TRACKERS[name])(run)
    return made


def final_point(output: Output, last: Point | None) -> list[Point]:
    """The figures of the finished model, as of the last step."""
    try:
        metrics = json.loads(output.evaluation.read_text())["metrics"]
    except (OSError, ValueError, KeyError):
        return []
    figures = {f"final/{name}": float(value) for name, value in metrics.items() if isinstance(value, int | float)}
    return [Point(last.step if last else 0, figures, time.time())] if figures else []


def follow(config: RunConfig, deliveries: list[Delivery], ended: threading.Event) -> Point | None:
    """Hand on what the history holds and gets, until the end; the last point."""
    follower = Follower(pathlib.Path(config.output) / "history.jsonl")
    last = None
    while True:
        over = ended.wait(_LOOK_SECONDS)  # asked before the last look, so that nothing comes after it
        points = [point for entry in follower.new_entries() if (point := point_of(entry)).figures]
        for delivery in deliveries:
            delivery.put(points)
        last = points[-1] if points else last
        if over:
            return last


def main() -> None:
    """Entry point."""
    config = RunConfig.model_validate_json(pathlib.Path(os.environ[names.ENV_RUN_FILE]).read_text())
    logs.configure(logs.speaker_of(config, "trackers"), config.spec.logging.format)
    secrets = sorted(secret_words(os.environ), key=len, reverse=True)
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
        with contextlib.suppress(ImportError):  # told when it is opened
            importlib.import_module(f"{_PACKAGE}.{name}")  # now, while the training starts, too
    last = follow(config, deliveries, ended)
    if outcome[0] == "Succeeded":
        for delivery in deliveries:
            delivery.put(final_point(Output(pathlib.Path(config.output)), last))
    for delivery in deliveries:
        delivery.close(outcome[0] or None)
    deadline = time.monotonic() + FLUSH_SECONDS
    for delivery in deliveries:
        delivery.wait(max(0.0, deadline - time.monotonic()))
    # Not sys.exit: an exit hook of a library may wait for its server for ever.
    os._exit(0)


if __name__ == "__main__":
    main()
