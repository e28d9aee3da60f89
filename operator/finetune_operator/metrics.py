"""The operator's own metrics: those of jobs from what was last seen of each, those of itself counted."""

import dataclasses
import datetime
from collections.abc import Iterable, Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from finetune_api import metrics as declared
from finetune_api.status import Phase
from finetune_operator.observed import JobRecord, Key, Manifest, read_time
from finetune_operator.parsing import read_key

_PHASES = get_args(Phase)


@dataclasses.dataclass(frozen=True, slots=True)
class _Figures:
    """What is told of one job; times as Unix time."""

    phase: str
    created: float
    start: float | None
    completion: float | None
    final_loss: float | None
    restarts: int


class Metrics(Collector):
    """Every metric of ``finetune_api.metrics.OPERATOR_METRICS``. The series of a job end with ``forget``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._jobs: dict[Key, _Figures] = {}
        registry.register(self)
        duration = declared.RECONCILE_DURATION
        self.reconcile_duration = Histogram(duration.name, duration.help, buckets=duration.buckets, registry=registry)
        self.reconcile_errors = Counter(declared.RECONCILE_ERRORS.name, declared.RECONCILE_ERRORS.help, registry=registry)
        self.workqueue_depth = Gauge(declared.WORKQUEUE_DEPTH.name, declared.WORKQUEUE_DEPTH.help, registry=registry)
        self.leader = Gauge(declared.LEADER.name, declared.LEADER.help, registry=registry)
        requests = declared.API_REQUESTS
        self._api_requests = Counter(requests.name, requests.help, requests.labels, registry=registry)
        self.watch_last_event = Gauge(declared.WATCH_LAST_EVENT.name, declared.WATCH_LAST_EVENT.help, registry=registry)

    def remember(self, job: JobRecord) -> None:
        """Tell from now on what the job's status says."""
        status = job.status
        self._jobs[job.key] = _Figures(
            phase=status.phase or "Pending",
            created=job.created.timestamp(),
            start=_unix(read_time(status.start_time)),
            completion=_unix(read_time(status.completion_time)),
            final_loss=status.progress.loss if status.progress is not None and status.completion_time else None,
            restarts=status.restarts.failures if status.restarts is not None else 0,
        )

    def remember_finished(self, manifest: Manifest) -> None:
        """The same for a finished job, from the object as it is: there may be very many of them."""
        status, key = manifest.get("status", {}), read_key(manifest)
        created = _unix(read_time(manifest["metadata"]["creationTimestamp"]))
        assert created is not None
        self._jobs[key] = _Figures(
            phase=status.get("phase", ""),
            created=created,
            start=_unix(read_time(status.get("startTime"))),
            completion=_unix(read_time(status.get("completionTime"))),
            final_loss=status.get("progress", {}).get("loss"),
            restarts=status.get("restarts", {}).get("failures", 0),
        )

    def count_request(self, verb: str, kind: str, code: int) -> None:
        """An answer of the API server; code 0 if there was none."""
        self._api_requests.labels(verb, kind, str(code)).inc()

    def forget(self, key: Key) -> None:
        """The job is gone."""
        self._jobs.pop(key, None)

    def keep_only(self, keys: Iterable[Key]) -> None:
        """Forget every job that is not among them."""
        for key in self._jobs.keys() - set(keys):
            self.forget(key)

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Called at each scrape."""
        jobs = list(self._jobs.items())
        phases = GaugeMetricFamily(declared.JOB_PHASE.name, declared.JOB_PHASE.help, labels=declared.JOB_PHASE.labels)
        restarts = CounterMetricFamily(
            declared.JOB_RESTARTS.name, declared.JOB_RESTARTS.help, labels=declared.JOB_RESTARTS.labels
        )
        for key, figures in jobs:
            for phase in _PHASES:
                phases.add_metric((key.namespace, key.name, phase), float(phase == figures.phase))
            restarts.add_metric((key.namespace, key.name), figures.restarts)
        yield phases
        yield restarts
        for metric, field in (
            (declared.JOB_CREATED, "created"),
            (declared.JOB_START, "start"),
            (declared.JOB_COMPLETION, "completion"),
            (declared.JOB_FINAL_LOSS, "final_loss"),
        ):
            family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
            for key, figures in jobs:
                if (value := getattr(figures, field)) is not None:
                    family.add_metric((key.namespace, key.name), value)
            yield family


def _unix(moment: datetime.datetime | None) -> float | None:
    return moment.timestamp() if moment is not None else None
