"""Reconciles one job: observe, decide, build, apply, write the status.

This is level-triggered: a reconcile decides from the state that it observes, never from an event.
"""

import dataclasses
import datetime
import logging
import secrets
import time
from collections.abc import Callable, Sequence

from finetune_api import names
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FINAL_PHASES, FineTuneJobStatus, Phase
from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.cluster.apply import Blocked, Created, Refused, create_children, create_queue_job
from finetune_operator.cluster.children import ChildrenReader
from finetune_operator.cluster.events import EventRecorder
from finetune_operator.cluster.lease import NotLeadingError
from finetune_operator.cluster.observe import observe_job, observe_refusal
from finetune_operator.cluster.status import apply_status
from finetune_operator.creations import Creations
from finetune_operator.defaults import OperatorDefaults
from finetune_operator.manifests import Plan, QueuePlace, build_children, build_queue_job
from finetune_operator.metrics import Metrics
from finetune_operator.observed import ChildJob, CreatedAttempt, JobRecord, Key, Manifest, Observation
from finetune_operator.policy.attempt import choose_image, decide, pod_to_poll
from finetune_operator.policy.conditions import complete_conditions, without_conditions
from finetune_operator.policy.decision import Decision
from finetune_operator.policy.elastic import choose_nodes, nodes_of_attempt
from finetune_operator.policy.events import build_events
from finetune_operator.policy.goodput import update_goodput
from finetune_operator.policy.restart_budget import restarts_left
from finetune_operator.policy.status import (
    PROGRESS_INTERVAL,
    attempt_created,
    blocked,
    in_phase,
    is_write_due,
    queued,
    refused,
)
from finetune_operator.poller import Poller
from finetune_operator.queue import RetryLaterError
from finetune_operator.store import Store

logger = logging.getLogger(__name__)

# If something else changed the job before a write, the operator reads the job again after this delay.
_CONFLICT_RETRY_SECONDS = 0.2
# Delay before the next reconcile if there is more to do.
_SOON_SECONDS = 1.0
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
        self._store = store
        self._poller = poller
        self._events = events
        self._metrics = metrics
        self._defaults = defaults
        self._now = now
        self._clock = clock
        self._has_backlog = has_backlog

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile the job once. Return the seconds until the next reconcile, or None if only an event should cause it."""
        if self._can_wait_for_others(key):
            return _BACKLOG_RETRY_SECONDS
        started, read = self._clock(), "cache"
        try:
            if (known := await self._decide_from_cache(key)) is not None:
                read = "live" if known[0].refusal_checked else read
                return await self._act_from_cache(*known)
            read = "live"
            return await self._reconcile_live(key)
        except NotLeadingError as error:
            raise RetryLaterError(str(error), _SOON_SECONDS) from None
        except ApiError as error:
            self._metrics.reconcile_errors.inc()
            await self._report_missing_permission(key, error)
            raise RetryLaterError(str(error), error.retry_after_seconds) from error
        except Exception:
            self._metrics.reconcile_errors.inc()
            raise
        finally:
            self._metrics.reconcile_duration.labels(read).observe(self._clock() - started)

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
        done = await self._execute(observation, decision)
        if done.status.attempt is not None:
            self._store.last_refusal_check[observation.job.key] = self._clock()
            return await self._write_status(observation, done)
        if done.status.phase is not None:
            self._store.used_names.add(observation.job.key)
        return _SOON_SECONDS

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
        return await self._write_status(observation, await self._execute(observation, decision))

    async def _execute(self, observation: Observation, decision: Decision) -> Decision:
        """Carry out the decision, except for the write of the status. Return the decision with the status to write."""
        key = observation.job.key
        if decision.delete_child_job is not None:
            await self._api.delete("Job", key.namespace, decision.delete_child_job.name, decision.delete_child_job.uid)
        for pod in decision.force_delete:
            await self._api.delete("Pod", key.namespace, pod.name, pod.uid, force=True)
            logger.info("%s: deleted pod %s by force because node %s did not end it", key, pod.name, pod.node)
        if decision.delete_claim is not None:
            claim = names.output_claim_name(key.name)
            await self._api.delete("PersistentVolumeClaim", key.namespace, claim, decision.delete_claim)
        if decision.release_quota is not None:
            await self._report_pods(key, decision.release_quota, 0)
        if decision.create_queue_job:
            return await self._create_queue_job(observation, decision)
        if decision.create_attempt is None:
            return decision
        if not self._creations.begin(key):
            return Decision(observation.job.status, requeue_after_seconds=_SOON_SECONDS)
        try:
            return await self._create_attempt(observation, decision.create_attempt)
        finally:
            self._creations.end(key)

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
        """Return the decision, based on the last report of the pod with index 0. Start to poll that pod if it runs."""
        pod, key = pod_to_poll(observation), observation.job.key
        if pod is None:
            return decide(observation, None, self._now())
        self._poller.start_polling(key)
        last_report = self._store.last_reports.get(key)
        report = last_report.report if last_report is not None and last_report.pod == pod.name else None
        return decide(dataclasses.replace(observation, silent=self._poller.is_silent(key)), report, self._now())

    def _forget(self, key: Key) -> None:
        self._store.drop_job(key)
        self._creations.forget(key)
        self._metrics.forget(key)

    async def _create_attempt(self, observation: Observation, attempt: int) -> Decision:
        """Create the children of the attempt. If that is not possible, return a status that says why."""
        job, spec = observation.job, observation.job.spec
        assert isinstance(spec, FineTuneJobSpec)
        place, queue = observation.queue_job(), None
        if place is not None:
            found = await self._api.get("Job", job.key.namespace, place.name)
            if found is None or found["spec"].get("suspend"):
                return Decision(job.status, requeue_after_seconds=_SOON_SECONDS)
            queue = QueuePlace(place.uid, found["spec"]["template"])
            await self._report_pods(job.key, place, choose_nodes(spec, job.status))
        image = choose_image(spec, job.status, self._defaults.trainer_image or "")

        def build(adopted: bool) -> Sequence[Manifest]:
            plan = plan_attempt(job, spec, attempt, image, self._defaults, adopted)
            # If the ConfigMap exists already, it stays as it is, with its key.
            return build_children(dataclasses.replace(plan, rendezvous_key=secrets.token_hex(32), queue=queue))

        started = job.status.attempt is not None
        result = await create_children(self._api, job.key.namespace, job.key.name, job.uid, build, job.generation, started)
        if not isinstance(result, Created):
            return self._explain_refusal(job, result)
        self._creations.forget(job.key)
        self._store.put_child(job.key, result.job)
        created = CreatedAttempt(job.uid, job.generation, attempt, result.created_at, image, result.job.completions)
        self._store.put_created_attempt(job.key, created)
        before = job.status.model_copy(update={"observed_generation": job.generation})
        return Decision(attempt_created(before, spec, created), requeue_after_seconds=_SOON_SECONDS)

    async def _create_queue_job(self, observation: Observation, decision: Decision) -> Decision:
        """Create the Job that holds the place in the queue. If that is not possible, return a status that says why."""
        job, spec = observation.job, observation.job.spec
        assert isinstance(spec, FineTuneJobSpec)
        image = choose_image(spec, job.status, self._defaults.trainer_image or "")
        plan = plan_attempt(job, spec, (job.status.attempt or 0) + 1, image, self._defaults, adopted=False)
        result = await create_queue_job(self._api, build_queue_job(plan), job.uid)
        if not isinstance(result, ChildJob):
            return self._explain_refusal(job, result)
        self._creations.forget(job.key)
        self._store.put_child(job.key, result)
        return Decision(queued(decision.status, job, None, self._now()), requeue_after_seconds=_SOON_SECONDS)

    def _explain_refusal(self, job: JobRecord, result: Blocked | Refused) -> Decision:
        """Return a status that says why children can't be created."""
        before, now = job.status.model_copy(update={"observed_generation": job.generation}), self._now()
        if isinstance(result, Refused):
            self._creations.forget(job.key)
            return Decision(refused(before, result.reason, result.message, job, now))
        phase: Phase = "Restarting" if before.phase == "Restarting" else "Pending"
        if result.needs_user_action:
            status = blocked(before, job, phase, result.reason, result.message, now)
        else:
            status = in_phase(without_conditions(before, "Blocked"), phase, result.reason, result.message)
        pause = _SOON_SECONDS if result.retry_soon else self._creations.blocked(job.key)
        return Decision(status, requeue_after_seconds=pause)

    async def _report_pods(self, key: Key, place: ChildJob, pods: int) -> None:
        """Tell Kueue how many pods use the quota. It does not give the quota to another job before there are none."""
        await self._api.apply_status(
            "Job",
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {"namespace": key.namespace, "name": place.name, "uid": place.uid},
                "status": {"active": pods, "ready": pods},
            },
        )

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
            return decision.requeue_after_seconds or _SOON_SECONDS
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


def plan_attempt(
    job: JobRecord, spec: FineTuneJobSpec, attempt: int, image: str, defaults: OperatorDefaults, adopted: bool
) -> Plan:
    """Return everything that the builders need to know about an attempt."""
    return Plan(
        namespace=job.key.namespace,
        name=job.key.name,
        uid=job.uid,
        attempt=attempt,
        spec=spec,
        nodes=choose_nodes(spec, job.status),
        image=image,
        restarts_left=restarts_left(spec, job.status),
        resolved=job.status.resolved,
        defaults=defaults,
        adopted=adopted,
        kueue_labels=job.kueue_labels,
        kueue_annotations=job.kueue_annotations,
        generation=job.generation,
    )


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
