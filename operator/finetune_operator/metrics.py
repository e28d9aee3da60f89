"""The operator's metrics: those of jobs, from the last known status of each job, and those of the operator itself."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from finetune_api import metrics as declared
from finetune_api.metrics import Metric
from finetune_api.reasons import FineTuneError
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FINAL_PHASES, PROBLEMS, Goodput, Phase, Restarts
from finetune_operator.observed import JobRecord, Key, Manifest, read_time
from finetune_operator.parsing import read_job, read_key, read_version

_PHASES = get_args(Phase)
# The phases in which pods run. In the other phases pods wait for nodes, or there are none.
_PHASES_WITH_GPUS: frozenset[Phase] = frozenset({"Initializing", "Running", "Publishing"})
_RESTART_KINDS = ("failures", "in_place", "preemptions")
# Everything that status.goodput counts in seconds.
_CAUSES = [name.removesuffix("_seconds") for name in Goodput.model_fields if name.endswith("_seconds")]
_MODEL_NAME_LIMIT = 128

# Values of the labels after namespace and name → value of the series.
_Series = Mapping[tuple[str, ...], float]


class Metrics(Collector):
    """Every metric of ``finetune_api.metrics.OPERATOR_METRICS``.

    ``forget`` ends the series of a job. Otherwise they end an hour after the job. Only the leader exports series of jobs, so that
    two replicas do not count them twice. now: Unix time.
    """

    def __init__(self, registry: CollectorRegistry, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._jobs: dict[Key, JobRecord] = {}
        self._leading = True
        registry.register(self)
        ProcessCollector(registry=registry)
        self._reconcile_duration, self._reconcile_work = (
            Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=registry)
            for metric in (declared.RECONCILE_DURATION, declared.RECONCILE_WORK)
        )
        for read in ("cache", "live"):  # so that all series exist from the start
            self._reconcile_duration.labels(read)
            self._reconcile_work.labels(read)
        self.reconcile_errors = Counter(declared.RECONCILE_ERRORS.name, declared.RECONCILE_ERRORS.help, registry=registry)
        self.workqueue_depth = Gauge(declared.WORKQUEUE_DEPTH.name, declared.WORKQUEUE_DEPTH.help, registry=registry)
        self._leader = Gauge(declared.LEADER.name, declared.LEADER.help, registry=registry)
        requests = declared.API_REQUESTS
        self._api_requests = Counter(requests.name, requests.help, requests.labels, registry=registry)
        self.watch_last_event = Gauge(declared.WATCH_LAST_EVENT.name, declared.WATCH_LAST_EVENT.help, registry=registry)

    def set_leading(self, leading: bool) -> None:
        """Set whether this operator is the leader."""
        self._leading = leading
        self._leader.set(leading)

    def track(self, job: JobRecord) -> None:
        """Export the status of this job from now on."""
        known = self._jobs.get(job.key)
        if known is None or known.version <= job.version:  # else the list began before the status was written
            self._jobs[job.key] = job

    def track_finished(self, manifest: Manifest) -> None:
        """Export the status of a finished job. Parse it only if it is new and ended recently, because there may be very many."""
        known = self._jobs.get(read_key(manifest))
        if not self._is_expired(manifest.get("status", {}).get("completionTime")) and (
            known is None or known.version < read_version(manifest)
        ):
            self.track(read_job(manifest))

    def observe_reconcile(self, read: str, seconds: float, working_seconds: float) -> None:
        """Count a reconcile. read: from where, the cache or live. working_seconds: without the time in which it waited."""
        self._reconcile_duration.labels(read).observe(seconds)
        self._reconcile_work.labels(read).observe(working_seconds)

    def count_request(self, verb: str, kind: str, code: int) -> None:
        """Count a response of the API server. code: 0 if there was none."""
        self._api_requests.labels(verb, kind, str(code)).inc()

    def forget(self, key: Key) -> None:
        """Drop the series of a job that is gone."""
        self._jobs.pop(key, None)

    def keep_only(self, keys: Iterable[Key]) -> None:
        """Drop every job that is not in keys, and those that ended long ago."""
        expired = {key for key, job in self._jobs.items() if self._is_expired(job.status.completion_time)}
        for key in (self._jobs.keys() - set(keys)) | expired:
            self.forget(key)

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Yield all series of jobs. Prometheus's client calls this at each scrape."""
        jobs = list(self._jobs.values()) if self._leading else []
        series_by_job = [(job.key, dict(_series(job))) for job in jobs if not self._is_expired(job.status.completion_time)]
        for metric in declared.JOB_METRICS:
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=metric.labels)
            for key, series in series_by_job:
                for labels, value in series.get(metric, {}).items():
                    family.add_metric((key.namespace, key.name, *labels), value)
            yield family

    def _is_expired(self, completion_time: str | None) -> bool:
        ended = _unix(completion_time)
        return ended is not None and self._now() - ended > declared.SERIES_RETENTION_SECONDS


def _series(job: JobRecord) -> Iterator[tuple[Metric, _Series]]:
    """Yield the series of a job. A value that its status omits has no series."""
    status = job.status
    phase, progress = status.phase or "Pending", status.progress
    goodput, restarts = status.goodput, status.restarts or Restarts()
    yield declared.JOB_PHASE, {(name,): float(name == phase) for name in _PHASES}
    yield declared.JOB_INFO, {_task_and_model(job.spec): 1.0}
    yield declared.JOB_GPUS, {(): float(_gpu_count(job)) if phase in _PHASES_WITH_GPUS else 0.0}
    yield declared.JOB_RESTARTS, {(kind,): float(getattr(restarts, kind)) for kind in _RESTART_KINDS}
    true_conditions = {condition.type for condition in status.conditions or () if condition.status == "True"}
    yield declared.JOB_CONDITION, {(name,): float(name in true_conditions) for name in PROBLEMS}
    yield declared.JOB_FINDING, {(finding.type,): 1.0 for finding in status.findings or ()}
    if status.failure is not None:
        yield declared.JOB_FAILURE, {(status.failure.reason,): 1.0}
    if goodput is not None:
        yield declared.JOB_TIME, {(cause,): float(getattr(goodput, f"{cause}_seconds")) for cause in _CAUSES}
    done = progress.step / progress.total_steps if progress is not None and progress.total_steps else None
    single: dict[Metric, float | None] = {
        declared.JOB_CREATED: job.created.timestamp(),
        declared.JOB_START: _unix(status.start_time),
        declared.JOB_COMPLETION: _unix(status.completion_time),
        declared.JOB_PHASE_SINCE: _unix(goodput.since) if goodput is not None else None,
        declared.JOB_GOODPUT: goodput.ratio if goodput is not None else None,
        declared.JOB_PROGRESS: min(done, 1.0) if done is not None else None,
        declared.JOB_ETA: _unix(progress.estimated_completion_time) if progress is not None else None,
        declared.JOB_LAST_STEP: _unix(progress.last_step_time) if progress is not None else None,
        declared.JOB_CHECKPOINT: _unix(status.checkpoint.time) if status.checkpoint is not None else None,
        declared.JOB_FINAL_LOSS: progress.loss if progress is not None and phase in FINAL_PHASES else None,
    }
    for metric, value in single.items():
        if value is not None:
            yield metric, {(): value}


def _task_and_model(spec: FineTuneJobSpec | FineTuneError) -> tuple[str, str]:
    """Return the task and the model: a repository, or a claim and a path in it."""
    if isinstance(spec, FineTuneError):
        return "", ""
    if spec.model.hub is not None:
        return spec.task, spec.model.hub.name[:_MODEL_NAME_LIMIT]
    claim = spec.model.claim
    assert claim is not None
    return spec.task, "/".join(part for part in (claim.claim_name, claim.path) if part)[:_MODEL_NAME_LIMIT]


def _gpu_count(job: JobRecord) -> int:
    """Return the number of GPUs of the present attempt, which may have fewer nodes than the spec asks for."""
    attempts = job.status.attempts
    return attempts[-1].nodes * job.spec.distributed.gpus_per_node if attempts and not isinstance(job.spec, FineTuneError) else 0


def _unix(moment: str | None) -> float | None:
    parsed = read_time(moment)
    return parsed.timestamp() if parsed is not None else None
