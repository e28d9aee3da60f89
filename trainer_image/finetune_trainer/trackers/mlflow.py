"""MLflow: a run on the server MLFLOW_TRACKING_URI, in the experiment MLFLOW_EXPERIMENT_NAME."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from finetune_trainer.trackers.base import LoggedSteps, Point, Run

_EXPERIMENT = "finetune"
_TAG = "finetune.id"
# The server's limits: metrics and parameters in one request, and characters of one value.
_MAX_METRICS, _MAX_PARAMS, _MAX_VALUE_LENGTH = 1000, 100, 6000
_STATUS = {"Succeeded": "FINISHED", "Failed": "FAILED", "Interrupted": "KILLED"}


class MLflow:
    """Asks the server which steps it already has, so that no step is missing and none is logged twice."""

    def __init__(self, run: Run) -> None:
        self._client = MlflowClient()
        self._run_id = self._find(run) or self._create(run)
        self._logged_steps = LoggedSteps()

    def log(self, points: Sequence[Point]) -> None:
        """Send new metrics in as few requests as the server allows."""
        metrics = [
            Metric(name, value, int(point.time * 1000), point.step)
            for point in points
            for name, value in self._new(point).items()
        ]
        for start in range(0, len(metrics), _MAX_METRICS):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + _MAX_METRICS])

    def finish(self, outcome: str) -> None:
        """Set the status of the run."""
        self._client.set_terminated(self._run_id, _STATUS[outcome])

    def _new(self, point: Point) -> dict[str, float]:
        for name in point.metrics:
            if not self._logged_steps.known(name):
                self._logged_steps.set(name, self._last_step(name))
        new = self._logged_steps.new(point)
        for name in new:
            self._logged_steps.set(name, point.step)
        return new

    def _last_step(self, name: str) -> int:
        try:
            return max((metric.step for metric in self._client.get_metric_history(self._run_id, name)), default=-1)
        except RestException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise
            return -1

    def _find(self, run: Run) -> str | None:
        """Return the id of the job's run if an earlier start created one, and set it to running."""
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
        except MlflowException:  # the experiment exists, or the next call shows the real problem
            experiment = self._client.get_experiment_by_name(_experiment())
            if experiment is None:
                raise
            experiment_id = experiment.experiment_id
        tags = {_TAG: run.id, "finetune.job": f"{run.namespace}/{run.job}"}
        run_id = str(self._client.create_run(experiment_id, run_name=run.job, tags=tags).info.run_id)
        params = [Param(name, str(value)[:_MAX_VALUE_LENGTH]) for name, value in flatten(run.config)]
        for start in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(run_id, params=params[start : start + _MAX_PARAMS])
        return run_id


def _experiment() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested fields with dotted names: training.learningRate. Lists of objects use indices: datasets.0.hub.name."""
    for name, value in config.items():
        items = value if isinstance(value, list) and any(isinstance(item, dict) for item in value) else None
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        elif items is not None:
            yield from flatten({str(number): item for number, item in enumerate(items)}, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
