"""A worker's Prometheus metrics, as declared in finetune_api.

prometheus-client writes the values to files, and the launcher serves them (multi-process mode: the launcher sets
PROMETHEUS_MULTIPROC_DIR for its workers). So a scrape never waits for a training step.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from finetune_api import metrics as declared
from finetune_api.metrics import Metric

if TYPE_CHECKING:  # the module imports torch, which the launcher does not need
    from finetune_trainer.monitoring.device_stats import DeviceStats


def instrument(metric: Metric, registry: CollectorRegistry) -> Any:
    """Return the prometheus-client object of a declaration."""
    common: dict[str, Any] = {"labelnames": metric.labels, "registry": registry}
    if metric.kind == "counter":
        return Counter(metric.name.removesuffix("_total"), metric.help, **common)
    if metric.kind == "histogram":
        return Histogram(metric.name, metric.help, buckets=metric.buckets, **common)
    return Gauge(metric.name, metric.help, multiprocess_mode="mostrecent", **common)


class WorkerMetrics:
    """The metrics of one rank. Only rank 0 has metrics of the job. No value is read from the GPU just for a metric."""

    def __init__(self, namespace: str, job: str, rank: int) -> None:
        registry = CollectorRegistry()
        self._job_labels = {"namespace": namespace, "finetunejob": job}
        self._rank_labels = {**self._job_labels, "rank": str(rank)}
        self._rank_metrics = {metric: instrument(metric, registry) for metric in declared.RANK_METRICS}
        self._job_metrics = {metric: instrument(metric, registry) for metric in declared.RANK_0_METRICS} if rank == 0 else {}
        for labels, instruments in ((self._rank_labels, self._rank_metrics), (self._job_labels, self._job_metrics)):
            for metric, made in instruments.items():
                if metric.kind == "counter":
                    made.labels(**labels)  # starts at zero, so that the first failure is an increase
        self._device_stats: DeviceStats | None = None
        self._tokens, self._seconds = 0, 0.0  # since the last log line

    def attach(self, device_stats: "DeviceStats") -> None:
        """Also report these device statistics from now on."""
        self._device_stats = device_stats

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Set one of the job's gauges. Does nothing on ranks other than 0."""
        if self._job_metrics:
            self._job_metrics[metric].labels(**self._job_labels, **labels).set(value)

    def inc(self, metric: Metric, amount: float = 1) -> None:
        """Add to one of the job's counters. Does nothing on ranks other than 0."""
        if self._job_metrics:
            self._job_metrics[metric].labels(**self._job_labels).inc(amount)

    def observe_step(self, seconds: float, now: float) -> None:
        """Count an optimizer step that took ``seconds`` and ended at the Unix time ``now``."""
        self._seconds += seconds
        self._of_this_rank(declared.STEP_DURATION).observe(seconds)
        self._of_this_rank(declared.LAST_STEP).set(now)

    def add_tokens(self, count: int) -> None:
        """Count tokens of a forward pass, without padding."""
        self._tokens += count
        self._of_this_rank(declared.TRAINING_TOKENS).inc(count)

    def add_data_wait(self, seconds: float) -> None:
        """Count the time until a batch arrived."""
        self._of_this_rank(declared.DATA_WAIT).inc(seconds)

    def set_evaluation(self, metrics: Mapping[str, float]) -> None:
        """Set the metrics of an evaluation."""
        for name, value in metrics.items():
            self.set(declared.TRAINING_EVALUATION, value, figure=name)
        if "loss" in metrics:  # absent if it is NaN or infinite
            self.set(declared.TRAINING_EVAL_LOSS, metrics["loss"])

    def set_device_stats(self) -> None:
        """Set the device statistics of the steps since the last log line. Every rank calls this when a line is logged."""
        tokens, seconds, self._tokens, self._seconds = self._tokens, self._seconds, 0, 0.0
        if self._device_stats is None:
            return
        reading = self._device_stats.read(tokens, seconds)
        if reading.mfu is not None:
            self.set(declared.TRAINING_MFU, reading.mfu)
        for metric, value in (
            (declared.FORWARD_DURATION, reading.forward_seconds),
            (declared.GPU_MEMORY_ALLOCATED, reading.memory_allocated),
            (declared.GPU_MEMORY_PEAK, reading.memory_peak),
            (declared.GPU_MEMORY_TOTAL, reading.memory_total),
        ):
            if value is not None:
                self._of_this_rank(metric).set(value)

    def _of_this_rank(self, metric: Metric) -> Any:
        return self._rank_metrics[metric].labels(**self._rank_labels)
