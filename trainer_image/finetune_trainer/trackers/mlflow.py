"""MLflow: a run on the server of MLFLOW_TRACKING_URI, in the experiment of MLFLOW_EXPERIMENT_NAME."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from finetune_trainer.trackers.base import Marks, Point, Run

_EXPERIMENT = "finetune"
_TAG = "finetune.id"
# The server's limits, of one request and of one value.
_MOST_METRICS, _MOST_PARAMS, _LONGEST_VALUE = 1000, 100, 6000
_STATUS = {"Succeeded": "FINISHED", "Failed": "FAILED", "Interrupted": "KILLED"}


class MLflow:
    """What the server has already is asked of the server itself, so nothing is there twice and nothing is missing."""

    def __init__(self, run: Run) -> None:
        self._client = MlflowClient()
        self._run_id = self._find(run) or self._create(run)
        self._marks = Marks()

    def log(self, points: Sequence[Point]) -> None:
        """In as few requests as the server takes."""
        metrics = [
            Metric(name, value, int(point.time * 1000), point.step)
            for point in points
            for name, value in self._new(point).items()
        ]
        for start in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + _MOST_METRICS])

    def finish(self, outcome: str) -> None:
        """Give the run its status."""
        self._client.set_terminated(self._run_id, _STATUS[outcome])

    def _new(self, point: Point) -> dict[str, float]:
        for name in point.figures:
            if not self._marks.known(name):
                self._marks.set(name, self._last_step(name))
        new = self._marks.new(point)
        for name in new:
            self._marks.set(name, point.step)
        return new

    def _last_step(self, name: str) -> int:
        try:
            return max((metric.step for metric in self._client.get_metric_history(self._run_id, name)), default=-1)
        except RestException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise
            return -1

    def _find(self, run: Run) -> str | None:
        """The job's run, if an earlier start made one; it goes on."""
        experiment = self._client.get_experiment_by_name(_experiment())
        if experiment is None:
            return None
        found = self._client.search_runs([experiment.experiment_id], f"tags.`{_TAG}` = '{run.id}'", max_results=1)
        if not found:
            return None
        run_id = str(found[0].info.run_id)
        self._client.update_run(run_id, status="RUNNING")
        return run_id

    def _create(self, run: Run) -> str:
        try:
            experiment_id = self._client.create_experiment(_experiment())
        except MlflowException:  # it is there; or nothing is, and the next call says so
            experiment = self._client.get_experiment_by_name(_experiment())
            if experiment is None:
                raise
            experiment_id = experiment.experiment_id
        tags = {_TAG: run.id, "finetune.job": f"{run.namespace}/{run.job}"}
        run_id = str(self._client.create_run(experiment_id, run_name=run.job, tags=tags).info.run_id)
        params = [Param(name, str(value)[:_LONGEST_VALUE]) for name, value in flat(run.config)]
        for start in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(run_id, params=params[start : start + _MOST_PARAMS])
        return run_id


def _experiment() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Fields of fields by names with dots: training.learningRate. Lists of objects by number: datasets.0.hub.name."""
    for name, value in config.items():
        items = value if isinstance(value, list) and any(isinstance(item, dict) for item in value) else None
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        elif items is not None:
            yield from flat({str(number): item for number, item in enumerate(items)}, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
