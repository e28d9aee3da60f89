"""A worker's Prometheus metrics, as declared in finetune_api.

prometheus-client keeps them in files that the launcher serves (multi-process mode: PROMETHEUS_MULTIPROC_DIR, set by the
launcher for its workers), so a scrape never waits for a training step.
"""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from finetune_api import metrics as declared
from finetune_api.metrics import Metric


def instrument(metric: Metric, registry: CollectorRegistry) -> Any:
    """The prometheus-client object of a declaration."""
    common: dict[str, Any] = {"labelnames": metric.labels, "registry": registry}
    if metric.kind == "counter":
        return Counter(metric.name.removesuffix("_total"), metric.help, **common)
    if metric.kind == "histogram":
        return Histogram(metric.name, metric.help, buckets=metric.buckets, **common)
    return Gauge(metric.name, metric.help, multiprocess_mode="mostrecent", **common)


class WorkerMetrics:
    """What one rank counts. Rank 0 alone speaks for the job; no value is ever read from the GPU for a metric's sake."""

    def __init__(self, namespace: str, job: str, rank: int) -> None:
        self._registry = CollectorRegistry()
        self._job = {"namespace": namespace, "finetunejob": job}
        ranked = {**self._job, "rank": str(rank)}
        self._speaks = rank == 0
        self._step_duration = self._make(declared.STEP_DURATION).labels(**ranked)
        self._last_step = self._make(declared.LAST_STEP).labels(**ranked)
        self._tokens = self._make(declared.TRAINING_TOKENS).labels(**ranked)
        self._gauges = {
            metric.name: self._make(metric)
            for metric in (
                declared.TRAINING_LOSS,
                declared.TRAINING_EVAL_LOSS,
                declared.TRAINING_LEARNING_RATE,
                declared.TRAINING_GRADIENT_NORM,
                declared.TRAINING_STEP,
                declared.TRAINING_MAX_STEPS,
                declared.TRAINING_INFO,
                declared.CHECKPOINT_LAST_SUCCESS,
                declared.CHECKPOINT_DURATION,
            )
        }

    def _make(self, metric: Metric) -> Any:
        return instrument(metric, self._registry)

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Set one of the job's gauges; does nothing on other ranks than 0."""
        if self._speaks:
            self._gauges[metric.name].labels(**self._job, **labels).set(value)

    def step(self, seconds: float, now: float) -> None:
        """Count an optimizer step that took ``seconds`` and ended at the Unix time ``now``."""
        self._step_duration.observe(seconds)
        self._last_step.set(now)

    def tokens(self, count: int) -> None:
        """Count tokens of a forward pass, padding left out."""
        self._tokens.inc(count)
