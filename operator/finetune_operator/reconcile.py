"""One job's turn: observe, decide, build, apply, write the status. Level-triggered: nothing is remembered between turns."""

import dataclasses
import datetime
import logging
from collections.abc import Callable

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus, Phase
from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.cluster.apply import Blocked, Created, Refused, create_children
from finetune_operator.cluster.observe import observe_job
from finetune_operator.cluster.progress import ProgressClient
from finetune_operator.cluster.status import apply_status, create_events
from finetune_operator.manifests import Plan, build_children
from finetune_operator.metrics import Metrics
from finetune_operator.observed import JobRecord, Key, Observation
from finetune_operator.policy.attempt import Decision, choose_image, decide, pod_to_ask
from finetune_operator.policy.status import in_phase, is_due, refused, started
from finetune_operator.policy.turns import build_turns
from finetune_operator.queue import RetryLaterError

logger = logging.getLogger(__name__)

# Something else was quicker to change the job: look again, once the dust has settled.
_CONFLICT_SECONDS = 0.2
# A child that can't be created for now is tried again so often.
_BLOCKED_SECONDS = 10.0


class Reconciler:
    """What a turn needs. trainer_image: for jobs that name none. now: the time of day, in UTC."""

    def __init__(
        self,
        api: Api,
        pods: ProgressClient,
        metrics: Metrics,
        trainer_image: str,
        now: Callable[[], datetime.datetime],
    ) -> None:
        self._api = api
        self._pods = pods
        self._metrics = metrics
        self._trainer_image = trainer_image
        self._now = now

    async def reconcile(self, key: Key) -> float | None:
        """Bring the job one step on; return after how many seconds it is to be looked at again without being asked."""
        with self._metrics.reconcile_duration.time():
            try:
                return await self._turn(key)
            except ApiError as error:
                self._metrics.reconcile_errors.inc()
                raise RetryLaterError(str(error), error.retry_after_seconds) from error
            except Exception:
                self._metrics.reconcile_errors.inc()
                raise

    async def _turn(self, key: Key) -> float | None:
        seen = await observe_job(self._api, key)
        if seen is None:
            self._metrics.forget(key)
            return None
        asked = pod_to_ask(seen)
        report = await self._pods.pull(asked.address) if asked is not None and asked.address is not None else None
        decision = decide(seen, report, self._trainer_image, self._now())
        if decision.delete is not None:
            await self._api.delete("Job", key.namespace, decision.delete.name, decision.delete.uid)
        elif decision.create_attempt is not None:
            decision = await self._create(seen, decision, decision.create_attempt)
        return await self._write(seen.job, decision)

    async def _create(self, seen: Observation, decision: Decision, attempt: int) -> Decision:
        """Create the attempt's children; where that does not go, the status says why instead."""
        job, spec, now = seen.job, seen.job.spec, self._now()
        assert isinstance(spec, FineTuneJobSpec)
        image = choose_image(spec, job.status, self._trainer_image)
        plan = Plan(job.key.namespace, job.key.name, job.uid, attempt, spec, image, job.status.resolved)
        before = job.status.model_copy(update={"observed_generation": job.generation})
        match await create_children(self._api, build_children(plan), job.uid):
            case Created(at):
                return dataclasses.replace(decision, status=started(before, spec, attempt, image, at), again_seconds=1.0)
            case Blocked(reason, message):
                phase: Phase = "Restarting" if before.phase == "Restarting" else "Pending"
                return Decision(in_phase(before, phase, reason, message), again_seconds=_BLOCKED_SECONDS)
            case Refused(reason, message):
                return Decision(refused(before, reason, message, job, now))

    async def _write(self, job: JobRecord, decision: Decision) -> float | None:
        """Write the status if it is due, and only then tell of it."""
        now = self._now()
        if not is_due(job, decision.status, now):
            self._metrics.remember(job)
            return decision.again_seconds
        if not await apply_status(self._api, job, decision.status):
            return _CONFLICT_SECONDS
        self._metrics.remember(dataclasses.replace(job, status=decision.status))
        _log_turn(job, decision.status)
        try:
            await create_events(self._api, job, build_turns(job.status, decision.status), now)
        except ApiError as error:
            logger.warning("%s: no event could be written: %s", job.key, error)
        return decision.again_seconds


def _log_turn(job: JobRecord, status: FineTuneJobStatus) -> None:
    if (job.status.phase, job.status.reason) != (status.phase, status.reason):
        logger.info("%s: %s → %s (%s): %s", job.key, job.status.phase, status.phase, status.reason, status.message)
