"""Reconciles one job: observe, decide, build, apply, write the status.

This is level-triggered: a reconcile decides from the state that it observes, never from an event.
"""

import dataclasses
import datetime
import logging
import time
from collections.abc import Callable

from finetune_api import names
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FINAL_PHASES, FineTuneJobStatus, Phase
from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.cluster.children import ChildrenReader
from finetune_operator.cluster.events import EventRecorder
from finetune_operator.cluster.lease import NotLeadingError
from finetune_operator.cluster.observe import observe_job, observe_refusal
from finetune_operator.cluster.status import apply_status
from finetune_operator.creations import Creations
from finetune_operator.defaults import OperatorDefaults
from finetune_operator.execute import SOON_SECONDS, Executor
from finetune_operator.metrics import Metrics
from finetune_operator.observed import JobRecord, Key, Observation
from finetune_operator.policy.attempt import decide, pods_to_poll
from finetune_operator.policy.conditions import complete_conditions
from finetune_operator.policy.decision import Decision
from finetune_operator.policy.elastic import nodes_of_attempt
from finetune_operator.policy.events import build_events
from finetune_operator.policy.goodput import update_goodput
from finetune_operator.policy.status import (
    PROGRESS_INTERVAL,
    blocked,
    is_write_due,
)
from finetune_operator.poller import Poller
from finetune_operator.queue import RetryLaterError
from finetune_operator.stopwatch import Stopwatch
from finetune_operator.store import Store

logger = logging.getLogger(__name__)

# If something else changed the job before a write, the operator reads the job again after this delay.
_CONFLICT_RETRY_SECONDS = 0.2
# While pods are missing, the operator reads the reason from events at this interval. Nothing else reports it.
_REFUSAL_CHECK_SECONDS = 15.0
# The intervals of what is not due per job grow with the number of jobs, so that all jobs together stay below this rate.
_JOBS_PER_SECOND = 20
# Kueue's messages have numbers that change for all jobs of a queue whenever one of them starts or ends.
_QUEUE_MESSAGES_PER_SECOND = 2
_POLLED_PHASES: tuple[Phase, ...] = ("Initializing", "Running", "Publishing")
# During a backlog, the first status of a job waits at most this long, because the operator creates children of other jobs first.
_MAX_FIRST_STATUS_DELAY = datetime.timedelta(seconds=20)
_BACKLOG_RETRY_SECONDS = 2.0


class Reconciler:
    """Reconciles jobs. now: the current time in UTC. clock: monotonic seconds. has_backlog: whether keys wait in the queue."""

    def __init__(
        self,
        api: Api,
        store: Store,
        poller: Poller,
        events: EventRecorder,
        metrics: Metrics,
        defaults: OperatorDefaults,
        now: Callable[[], datetime.datetime],
        clock: Callable[[], float] = time.monotonic,
        has_backlog: Callable[[], bool] = lambda: False,
    ) -> None:
        self._api = api
        self._children = ChildrenReader(api)
        self._creations = Creations()
        self._executor = Executor(api, store, self._creations, defaults, now)
        self._store = store
        self._poller = poller
        self._events = events
        self._metrics = metrics
        self._now = now
        self._clock = clock
        self._has_backlog = has_backlog
        self._reads: dict[Key, str] = {}  # of reconciles in progress: from the cache, or live

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile the job once. Return the seconds until the next reconcile, or None if only an event should cause it."""
        if self._can_wait_for_others(key):
            return _BACKLOG_RETRY_SECONDS
        self._reads[key], stopwatch = "live", Stopwatch(self._clock)
        try:
            return await stopwatch.run(self._reconcile(key))
        except NotLeadingError as error:
            raise RetryLaterError(str(error), SOON_SECONDS) from None
        except ApiError as error:
            self._metrics.reconcile_errors.inc()
            await self._report_missing_permission(key, error)
            raise RetryLaterError(str(error), error.retry_after_seconds) from error
        except Exception:
            self._metrics.reconcile_errors.inc()
            raise
        finally:
            self._metrics.observe_reconcile(self._reads.pop(key), stopwatch.total_seconds, stopwatch.working_seconds)

    async def _reconcile(self, key: Key) -> float | None:
        known = await self._decide_from_cache(key)
        if known is None:
            return await self._reconcile_live(key)
        if not known[0].refusal_checked:
            self._reads[key] = "cache"
        return await self._act_from_cache(*known)

    async def _decide_from_cache(self, key: Key) -> tuple[Observation, Decision] | None:
        """Decide from what the store knows. Return None if this reconcile needs a live read."""
        observation = self._read_from_cache(key)
        if observation is None:
            return None
        if _is_missing_pods(observation) and self._is_refusal_check_due(key):
            observation = dataclasses.replace(await observe_refusal(self._children, observation), refusal_checked=True)
        decision = self._decide(observation)
        if decision.create_attempt is not None and self._store.can_start(observation.job):
            return observation, decision
        return None if decision.requires_live_read(observation.job.status) else (observation, decision)

    async def _act_from_cache(self, observation: Observation, decision: Decision) -> float | None:
        """Carry out a decision that needs no live read. If a new job can't be created, the next reconcile reads live why."""
        if decision.create_attempt is None:
            return await self._write_status(observation, decision)
        done = await self._executor.execute(observation, decision)
        if done.status.attempt is not None:
            self._store.last_refusal_check[observation.job.key] = self._clock()
            return await self._write_status(observation, done)
        if done.status.phase is not None:
            self._store.used_names.add(observation.job.key)
        return SOON_SECONDS

    async def _reconcile_live(self, key: Key) -> float | None:
        observation = await observe_job(self._api, self._children, key)
        if observation is None:
            self._forget(key)
            return None
        self._store.put_observation(observation, self._clock())
        observation = self._store.complete(observation)
        decision = self._decide(observation)
        if decision.delete_job:
            await self._api.delete(names.KIND, key.namespace, key.name, observation.job.uid)
            logger.info("%s: deleted because ttlSecondsAfterFinished is over", key)
            self._forget(key)
            return None
        return await self._write_status(observation, await self._executor.execute(observation, decision))

    def _read_from_cache(self, key: Key) -> Observation | None:
        """Return the job as the store knows it, or None if this reconcile needs a live read."""
        observation = self._store.observation(key)
        if observation is None or key in self._store.requires_live_read or observation.job.status.phase == "Restarting":
            return None
        return observation

    def _is_refusal_check_due(self, key: Key) -> bool:
        interval = _scale_interval(_REFUSAL_CHECK_SECONDS, len(self._store.jobs))
        due = self._clock() - self._store.last_refusal_check.get(key, 0.0) > interval
        if due:
            self._store.last_refusal_check[key] = self._clock()
        return due

    def _decide(self, observation: Observation) -> Decision:
        """Return the decision, based on the last report of the pod with index 0. Start to poll if it runs."""
        pods, key = pods_to_poll(observation), observation.job.key
        if not pods:
            return decide(observation, None, self._now())
        self._poller.start_polling(key)
        last_report = self._store.last_reports.get(key)
        report = last_report.report if last_report is not None and last_report.pod == pods[0].name else None
        return decide(dataclasses.replace(observation, silent=self._poller.silent_pods(key)), report, self._now())

    def _forget(self, key: Key) -> None:
        self._store.drop_job(key)
        self._creations.forget(key)
        self._metrics.forget(key)

    async def _write_status(self, observation: Observation, decision: Decision) -> float | None:
        """Write the status if that is due. Record events only after the write. Return the seconds until the next reconcile."""
        job, now = observation.job, self._now()
        if self._can_wait_for_others(job.key) and decision.status.phase not in FINAL_PHASES:
            return _BACKLOG_RETRY_SECONDS
        status = complete_conditions(job, decision.status, now)
        if not is_write_due(job, status, now, self._status_interval(job.status)):
            self._metrics.track(job)
            return self._schedule_next(observation, decision, wrote=False)
        status = update_goodput(job.status, status, now)
        written = await apply_status(self._api, job, status)
        if written is None:
            self._store.requires_live_read.add(job.key)
            return _CONFLICT_RETRY_SECONDS
        self._store.put_job(written)
        self._metrics.track(written)
        _log_transition(job, status)
        self._events.record(job, build_events(job.status, status), now)
        return self._schedule_next(dataclasses.replace(observation, job=written), decision, wrote=True)

    def _can_wait_for_others(self, key: Key) -> bool:
        """Return whether the first status of a job can wait, because creating the children of other new jobs comes first.

        A pod that has ended can't wait: its evidence may be lost.
        """
        job = self._store.jobs.get(key)
        created = self._store.created_attempt(job) if job is not None else None
        if job is None or created is None or job.status.phase is not None or created.generation != job.generation or job.deleting:
            return False
        ended = any(pod.terminated is not None for pod in self._store.pods.by_job(key))
        return self._has_backlog() and not ended and self._now() - created.created_at < _MAX_FIRST_STATUS_DELAY

    def _status_interval(self, status: FineTuneJobStatus) -> datetime.timedelta:
        """Return how often at most to write progress, or the message of a job that waits in a queue."""
        seconds = PROGRESS_INTERVAL.total_seconds()
        if status.phase == "Queued":
            return datetime.timedelta(seconds=max(seconds, len(self._store.jobs) / _QUEUE_MESSAGES_PER_SECOND))
        return datetime.timedelta(seconds=_scale_interval(seconds, self._poller.polled_jobs()))

    def _schedule_next(self, observation: Observation, decision: Decision, wrote: bool) -> float | None:
        """Return the seconds until the next reconcile. Drop a finished job from the store: its next reconcile is live."""
        job = observation.job
        if job.status.phase not in FINAL_PHASES:
            return self._seconds_to_next_reconcile(job.status, decision)
        self._store.drop_job(job.key)
        next_decision = decide(observation, None, self._now())
        if next_decision.requires_live_read(job.status) or (wrote and job.should_delete_output_claim()):
            return decision.requeue_after_seconds or SOON_SECONDS
        return next_decision.requeue_after_seconds

    def _seconds_to_next_reconcile(self, status: FineTuneJobStatus, decision: Decision) -> float | None:
        """Return the seconds until something is due, or until the next check. Jobs that wait delay no check of a running job."""
        due, check = decision.requeue_after_seconds, decision.check_after_seconds
        if check is None:
            return due
        check = _scale_interval(check, self._poller.polled_jobs() if status.phase in _POLLED_PHASES else len(self._store.jobs))
        return check if due is None else min(due, check)

    async def _report_missing_permission(self, key: Key, error: ApiError) -> None:
        """Write to the status which permission the operator lacks, if it may write the status."""
        job = self._store.jobs.get(key)
        if not error.forbidden_by_rbac or job is None or job.status.phase in FINAL_PHASES:
            return
        phase = job.status.phase or "Pending"
        status = blocked(job.status, job, phase, "Forbidden", f"the operator lacks a permission: {error.message}", self._now())
        status = complete_conditions(job, status, self._now())
        if is_write_due(job, status, self._now()):
            try:
                await apply_status(self._api, job, status)
            except ApiError as write_error:
                logger.warning("%s: %s", key, write_error)


def _scale_interval(seconds: float, jobs: int) -> float:
    """Return the interval for each of so many jobs."""
    return max(seconds, jobs / _JOBS_PER_SECOND)


def _is_missing_pods(observation: Observation) -> bool:
    """Return whether pods are missing that the Job controller should have created. Only events report the reason."""
    status, spec = observation.job.status, observation.job.spec
    if status.phase != "Pending" or not isinstance(spec, FineTuneJobSpec):
        return False
    return status.attempt is None or len(observation.pods_of(status.attempt)) < nodes_of_attempt(spec, status)


def _log_transition(job: JobRecord, status: FineTuneJobStatus) -> None:
    if (job.status.phase, job.status.reason) != (status.phase, status.reason):
        logger.info("%s: %s → %s (%s): %s", job.key, job.status.phase, status.phase, status.reason, status.message)
