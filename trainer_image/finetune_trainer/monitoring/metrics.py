"""A worker's Prometheus metrics, as declared in finetune_api.

prometheus-client keeps them in files that the launcher serves (multi-process mode: PROMETHEUS_MULTIPROC_DIR, set by the
launcher for its workers), so a scrape never waits for a training step.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from finetune_api import metrics as declared
from finetune_api.metrics import Metric

if TYPE_CHECKING:  # it needs torch, which the launcher does without
    from finetune_trainer.monitoring.device_stats import Meter


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
        registry = CollectorRegistry()
        self._job = {"namespace": namespace, "finetunejob": job}
        self._rank = {**self._job, "rank": str(rank)}
        self._own = {metric: instrument(metric, registry) for metric in declared.OF_EVERY_RANK}
        self._of_job = {metric: instrument(metric, registry) for metric in declared.OF_RANK_0} if rank == 0 else {}
        for labels, instruments in ((self._rank, self._own), (self._job, self._of_job)):
            for metric, made in instruments.items():
                if metric.kind == "counter":
                    made.labels(**labels)  # there from the start, at zero: the first failure is an increase
        self._meter: Meter | None = None
        self._tokens, self._seconds = 0, 0.0  # since the last log line

    def attach(self, meter: "Meter") -> None:
        """Tell from now on what it measures, too."""
        self._meter = meter

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Set one of the job's gauges; does nothing on other ranks than 0."""
        if self._of_job:
            self._of_job[metric].labels(**self._job, **labels).set(value)

    def count(self, metric: Metric, amount: float = 1) -> None:
        """Add to one of the job's counters; does nothing on other ranks than 0."""
        if self._of_job:
            self._of_job[metric].labels(**self._job).inc(amount)

    def step(self, seconds: float, now: float) -> None:
        """Count an optimizer step that took ``seconds`` and ended at the Unix time ``now``."""
        self._seconds += seconds
        self._mine(declared.STEP_DURATION).observe(seconds)
        self._mine(declared.LAST_STEP).set(now)

    def tokens(self, count: int) -> None:
        """Count tokens of a forward pass, padding left out."""
        self._tokens += count
        self._mine(declared.TRAINING_TOKENS).inc(count)

    def waited(self, seconds: float) -> None:
        """Count time that went by until a batch was there."""
        self._mine(declared.DATA_WAIT).inc(seconds)

    def evaluated(self, figures: Mapping[str, float]) -> None:
        """Tell the figures of an evaluation."""
        for name, value in figures.items():
            self.set(declared.TRAINING_EVALUATION, value, figure=name)
        if "loss" in figures:  # not where it is no number
            self.set(declared.TRAINING_EVAL_LOSS, figures["loss"])

    def logged(self) -> None:
        """Tell what is measured over the steps since the last log line; to be called when one is written, by every rank."""
        tokens, seconds, self._tokens, self._seconds = self._tokens, self._seconds, 0, 0.0
        if self._meter is None:
            return
        reading = self._meter.read(tokens, seconds)
        if reading.mfu is not None:
            self.set(declared.TRAINING_MFU, reading.mfu)
        for metric, value in (
            (declared.FORWARD_DURATION, reading.forward),
            (declared.GPU_MEMORY_ALLOCATED, reading.memory_allocated),
            (declared.GPU_MEMORY_PEAK, reading.memory_peak),
            (declared.GPU_MEMORY_TOTAL, reading.memory_total),
        ):
            if value is not None:
                self._mine(metric).set(value)

    def _mine(self, metric: Metric) -> Any:
        return self._own[metric].labels(**self._rank)
