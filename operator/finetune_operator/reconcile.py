"""One job's turn: observe, decide, build, apply, write the status. Level-triggered: nothing is remembered between turns."""

import dataclasses
import datetime
import logging
import time
from collections.abc import Callable, Sequence

from finetune_api import names
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FINAL_PHASES, FineTuneJobStatus, Phase
from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.cluster.apply import Blocked, Created, Refused, create_children
from finetune_operator.cluster.children import ChildrenReader
from finetune_operator.cluster.events import Events
from finetune_operator.cluster.lease import NotLeadingError
from finetune_operator.cluster.observe import observe_job, observe_refusal
from finetune_operator.cluster.status import apply_status
from finetune_operator.manifests import Plan, build_children
from finetune_operator.metrics import Metrics
from finetune_operator.observed import JobRecord, Key, Manifest, Observation, Whole
from finetune_operator.policy.attempt import choose_image, decide, pod_to_ask
from finetune_operator.policy.decision import Decision
from finetune_operator.policy.elastic import choose_nodes, nodes_of_attempt
from finetune_operator.policy.goodput import account
from finetune_operator.policy.restarts import restarts_left
from finetune_operator.policy.status import PROGRESS_INTERVAL, blocked, in_phase, is_due, refused, started, without_conditions
from finetune_operator.policy.turns import build_turns
from finetune_operator.poller import Poller
from finetune_operator.queue import RetryLaterError
from finetune_operator.site import Site
from finetune_operator.store import Heard, Store

logger = logging.getLogger(__name__)

# Something else was quicker to change the job: look again, once the dust has settled.
_CONFLICT_SECONDS = 0.2
# A child that can't be created for now is tried again so often.
_BLOCKED_SECONDS = 10.0
# After the end, when something is left to be done.
_SOON_SECONDS = 1.0
# Why a gang does not become whole is asked so often, as events alone tell.
_WHY_SECONDS = 15.0
# What is done for each job every few seconds is done more seldom where there are many: for so many a second in all.
_JOBS_PER_SECOND = 20
# For so long at most a job's first status waits while children of other jobs are still to be created.
_LONGEST_RUSH = datetime.timedelta(seconds=20)
_RUSH_PAUSE_SECONDS = 2.0


class Reconciler:
    """What a turn needs. now: the time of day, in UTC. clock: monotonic seconds. is_rush: whether many keys wait."""

    def __init__(
        self,
        api: Api,
        store: Store,
        poller: Poller,
        events: Events,
        metrics: Metrics,
        site: Site,
        now: Callable[[], datetime.datetime],
        clock: Callable[[], float] = time.monotonic,
        is_rush: Callable[[], bool] = lambda: False,
    ) -> None:
        self._api = api
        self._children = ChildrenReader(api)
        self._store = store
        self._poller = poller
        self._events = events
        self._metrics = metrics
        self._site = site
        self._now = now
        self._clock = clock
        self._is_rush = is_rush

    async def reconcile(self, key: Key) -> float | None:
        """Bring the job one step on; return after how many seconds it is to be looked at again without being asked."""
        with self._metrics.reconcile_duration.time():
            try:
                return await self._turn(key)
            except NotLeadingError as error:
                raise RetryLaterError(str(error), _SOON_SECONDS) from None
            except ApiError as error:
                self._metrics.reconcile_errors.inc()
                await self._tell_of_missing_right(key, error)
                raise RetryLaterError(str(error), error.retry_after_seconds) from error
            except Exception:
                self._metrics.reconcile_errors.inc()
                raise

    async def _turn(self, key: Key) -> float | None:
        seen = self._recall(key)
        if seen is not None and _is_short_of_pods(seen) and self._is_time_to_ask_why(key):
            seen = dataclasses.replace(await observe_refusal(self._api, seen), asked_why=True)
        if seen is not None:
            decision = self._decide(seen)
            if not decision.needs_a_fresh_look(seen.job.status):
                return await self._write(seen, decision)
        seen = await observe_job(self._api, self._children, key)
        if seen is None:
            self._forget(key)
            return None
        self._store.put_observation(seen, self._clock())
        seen = self._store.with_departed(dataclasses.replace(seen, whole=self._store.whole.get(key)))
        decision = self._decide(seen)
        if decision.delete_job:
            await self._api.delete(names.KIND, key.namespace, key.name, seen.job.uid)
            logger.info("%s: deleted, as ttlSecondsAfterFinished says", key)
            self._forget(key)
            return None
        return await self._write(seen, await self._act(seen, decision))

    async def _act(self, seen: Observation, decision: Decision) -> Decision:
        """Do what is to be done before the status is written; what it came to."""
        key = seen.job.key
        if decision.delete is not None:
            await self._api.delete("Job", key.namespace, decision.delete.name, decision.delete.uid)
        for pod in decision.force_delete:
            await self._api.delete("Pod", key.namespace, pod.name, pod.uid, force=True)
            logger.info("%s: pod %s deleted without waiting for %s, which does not end it", key, pod.name, pod.node)
        if decision.delete_claim is not None:
            claim = names.output_claim_name(key.name)
            await self._api.delete("PersistentVolumeClaim", key.namespace, claim, decision.delete_claim)
        if decision.create_attempt is not None:
            return await self._create(seen, decision.create_attempt)
        return decision

    def _recall(self, key: Key) -> Observation | None:
        """What the watches told of a job that is on its way; None where that is not to be relied on."""
        seen = self._store.observation(key)
        if seen is None or key in self._store.doubtful or seen.job.status.phase in ("Queued", "Restarting", "Suspended"):
            return None
        return seen

    def _is_time_to_ask_why(self, key: Key) -> bool:
        due = self._clock() - self._store.looked.get(key, 0.0) > self._stretch(_WHY_SECONDS)
        if due:
            self._store.looked[key] = self._clock()
        return due

    def _stretch(self, seconds: float) -> float:
        return max(seconds, len(self._store.jobs) / _JOBS_PER_SECOND)

    def _decide(self, seen: Observation) -> Decision:
        """Decide with what the pod with index 0 said last; it is asked for more while it runs."""
        pod, key = pod_to_ask(seen), seen.job.key
        if pod is None:
            return decide(seen, None, self._now())
        self._poller.watch(key)
        heard = self._store.heard.get(key)
        if heard is None or heard.pod != pod.name:
            heard = self._store.heard[key] = Heard(pod.name, None, self._clock())
        elif self._poller.is_deaf():
            heard = self._store.heard[key] = dataclasses.replace(heard, at=self._clock())
        silent_seconds = self._clock() - heard.at if self._poller.is_silent(key) else 0.0
        return decide(dataclasses.replace(seen, silent_seconds=silent_seconds), heard.report, self._now())

    def _forget(self, key: Key) -> None:
        self._store.drop_job(key)
        self._metrics.forget(key)

    async def _create(self, seen: Observation, attempt: int) -> Decision:
        """Create the attempt's children; where that does not go, the status says why instead."""
        job, spec, now = seen.job, seen.job.spec, self._now()
        assert isinstance(spec, FineTuneJobSpec)
        image = choose_image(spec, job.status, self._site.trainer_image or "")
        before = job.status.model_copy(update={"observed_generation": job.generation})

        def build(adopted: bool) -> Sequence[Manifest]:
            return build_children(plan_attempt(job, spec, attempt, image, self._site, adopted))

        match await create_children(self._api, job.key.namespace, job.key.name, job.uid, build):
            case Created(at, child):
                self._store.put_child(job.key, child)
                whole = self._store.whole[job.key] = Whole(attempt, at, image, child.size)
                return Decision(started(before, spec, whole), again_seconds=_SOON_SECONDS)
            case Blocked(reason, message, by_people):
                phase: Phase = "Restarting" if before.phase == "Restarting" else "Pending"
                before = without_conditions(before, "Suspended")
                if by_people:
                    status = blocked(before, job, phase, reason, message, now)
                else:
                    status = in_phase(without_conditions(before, "Blocked"), phase, reason, message)
                return Decision(status, again_seconds=_BLOCKED_SECONDS)
            case Refused(reason, message):
                return Decision(refused(before, reason, message, job, now))

    async def _write(self, seen: Observation, decision: Decision) -> float | None:
        """Write the status if it is due, and only then tell of it."""
        job, now = seen.job, self._now()
        if self._can_wait(job, decision.status, now):
            return _RUSH_PAUSE_SECONDS
        interval = datetime.timedelta(seconds=self._stretch(PROGRESS_INTERVAL.total_seconds()))
        if not is_due(job, decision.status, now, interval):
            self._metrics.remember(job)
            return self._settle(seen, decision, wrote=False)
        status = account(job.status, decision.status, now)
        written = await apply_status(self._api, job, status)
        if written is None:
            self._store.doubtful.add(job.key)
            return _CONFLICT_SECONDS
        self._store.put_job(written)
        self._metrics.remember(written)
        _log_turn(job, status)
        self._events.tell(job, build_turns(job.status, status), now)
        return self._settle(dataclasses.replace(seen, job=written), decision, wrote=True)

    def _can_wait(self, job: JobRecord, status: FineTuneJobStatus, now: datetime.datetime) -> bool:
        """Whether the first status of a job comes after the children of others: in a rush, what makes pods start goes first."""
        whole = self._store.whole.get(job.key)
        if job.status.phase is not None or whole is None or status.attempt is None or status.phase in FINAL_PHASES:
            return False
        return self._is_rush() and now - whole.at < _LONGEST_RUSH

    def _settle(self, seen: Observation, decision: Decision, wrote: bool) -> float | None:
        """Forget what a finished job had; if anything is still to be done for it, that is read afresh soon."""
        job = seen.job
        if job.status.phase not in FINAL_PHASES:
            again = decision.again_seconds
            return again if again is None or again <= _SOON_SECONDS else self._stretch(again)
        self._store.drop_job(job.key)
        left = decide(seen, None, self._now())
        if left.needs_a_fresh_look(job.status) or (wrote and job.gives_volume_back()):
            return decision.again_seconds or _SOON_SECONDS
        return left.again_seconds

    async def _tell_of_missing_right(self, key: Key, error: ApiError) -> None:
        """Say in the status which right the operator lacks, if it may at least do that."""
        job = self._store.jobs.get(key)
        if not error.by_rbac or job is None or job.status.phase in FINAL_PHASES:
            return
        phase = job.status.phase or "Pending"
        status = blocked(job.status, job, phase, "Forbidden", f"the operator lacks a right: {error.message}", self._now())
        if is_due(job, status, self._now()):
            try:
                await apply_status(self._api, job, status)
            except ApiError as again:
                logger.warning("%s: %s", key, again)


def plan_attempt(job: JobRecord, spec: FineTuneJobSpec, attempt: int, image: str, site: Site, adopted: bool) -> Plan:
    """All that the builders need to know of an attempt."""
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
        site=site,
        adopted=adopted,
        kueue_labels=job.kueue_labels,
        kueue_annotations=job.kueue_annotations,
    )


def _is_short_of_pods(seen: Observation) -> bool:
    """Whether pods are missing that the Job controller should have created: why, is told by events only."""
    status, spec = seen.job.status, seen.job.spec
    if status.phase != "Pending" or not isinstance(spec, FineTuneJobSpec):
        return False
    return status.attempt is None or len(seen.pods_of(status.attempt)) < nodes_of_attempt(spec, status)


def _log_turn(job: JobRecord, status: FineTuneJobStatus) -> None:
    if (job.status.phase, job.status.reason) != (status.phase, status.reason):
        logger.info("%s: %s → %s (%s): %s", job.key, job.status.phase, status.phase, status.reason, status.message)
