"""Carries out decisions: deletes children, creates those of an attempt, and holds the place in a queue."""

import dataclasses
import datetime
import logging
import secrets
from collections.abc import Callable, Sequence

from finetune_api import names
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus, Phase
from finetune_operator.cluster.api import Api
from finetune_operator.cluster.apply import Blocked, Created, Refused, create_children, create_queue_job
from finetune_operator.creations import Creations
from finetune_operator.defaults import OperatorDefaults
from finetune_operator.manifests import Plan, QueuePlace, build_children, build_queue_job
from finetune_operator.observed import ChildJob, CreatedAttempt, JobRecord, Key, Manifest, Observation
from finetune_operator.policy.attempt import choose_image
from finetune_operator.policy.conditions import without_conditions
from finetune_operator.policy.decision import Decision
from finetune_operator.policy.elastic import choose_nodes
from finetune_operator.policy.restart_budget import restarts_left
from finetune_operator.policy.status import attempt_created, blocked, in_phase, queued, refused
from finetune_operator.store import Store

logger = logging.getLogger(__name__)

# Delay before the next reconcile if there is more to do.
SOON_SECONDS = 1.0


class Executor:
    """Carries out decisions. now: the current time in UTC."""

    def __init__(
        self, api: Api, store: Store, creations: Creations, defaults: OperatorDefaults, now: Callable[[], datetime.datetime]
    ) -> None:
        self._api = api
        self._store = store
        self._creations = creations
        self._defaults = defaults
        self._now = now

    async def execute(self, observation: Observation, decision: Decision) -> Decision:
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
        if decision.create_attempt is None and not decision.create_queue_job:
            return decision
        if not self._creations.begin(key):
            return Decision(observation.job.status, requeue_after_seconds=SOON_SECONDS)
        try:
            if decision.create_attempt is None:
                return await self._create_queue_job(observation, decision.status)
            return await self._create_attempt(observation, decision.create_attempt)
        finally:
            self._creations.end(key)

    async def _create_attempt(self, observation: Observation, attempt: int) -> Decision:
        """Create the children of the attempt. If that is not possible, return a status that says why."""
        job, spec = observation.job, observation.job.spec
        assert isinstance(spec, FineTuneJobSpec)
        place, queue = observation.queue_job(), None
        if place is not None:
            found = await self._api.get("Job", job.key.namespace, place.name)
            if found is None or found["spec"].get("suspend"):
                return Decision(job.status, requeue_after_seconds=SOON_SECONDS)
            queue = QueuePlace(place.uid, found["spec"]["template"])
            await self._report_pods(job.key, place, choose_nodes(spec, job.status))
        image = choose_image(spec, job.status, self._defaults.trainer_image or "")

        def build(adopted: bool) -> Sequence[Manifest]:
            plan = plan_attempt(job, spec, attempt, image, self._defaults, adopted)
            # If the ConfigMap exists already, it stays as it is, with its key.
            groups = self._store.scheduling_groups and queue is None  # a queue decides where its pods run
            plan = dataclasses.replace(plan, rendezvous_key=secrets.token_hex(32), queue=queue, scheduling_groups=groups)
            return build_children(plan)

        started = job.status.attempt is not None
        result = await create_children(self._api, job.key.namespace, job.key.name, job.uid, build, job.generation, started)
        if isinstance(result, ChildJob):
            # Its place must outlive the attempt, so another Job holds it. This one has no pods yet.
            await self._api.delete("Job", job.key.namespace, result.name, result.uid)
            return await self._create_queue_job(observation, job.status, result.queue)
        if not isinstance(result, Created):
            return self._explain_refusal(job, result)
        self._creations.forget(job.key)
        self._store.put_child(job.key, result.job)
        created = CreatedAttempt(job.uid, job.generation, attempt, result.created_at, image, result.job.completions)
        self._store.put_created_attempt(job.key, created)
        before = job.status.model_copy(update={"observed_generation": job.generation})
        return Decision(attempt_created(before, spec, created), requeue_after_seconds=SOON_SECONDS)

    async def _create_queue_job(
        self, observation: Observation, status: FineTuneJobStatus, default_queue: str | None = None
    ) -> Decision:
        """Create the Job that holds the place in the queue. If that is not possible, return a status that says why.

        default_queue: the queue, if the FineTuneJob names none.
        """
        job, spec = observation.job, observation.job.spec
        assert isinstance(spec, FineTuneJobSpec)
        image = choose_image(spec, job.status, self._defaults.trainer_image or "")
        plan = plan_attempt(job, spec, (job.status.attempt or 0) + 1, image, self._defaults, adopted=False)
        result = await create_queue_job(self._api, build_queue_job(plan, default_queue), job.uid)
        if not isinstance(result, ChildJob):
            return self._explain_refusal(job, result)
        self._creations.forget(job.key)
        self._store.put_child(job.key, result)
        return Decision(queued(status, job, None, self._now()), requeue_after_seconds=SOON_SECONDS)

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
        pause = SOON_SECONDS if result.retry_soon else self._creations.blocked(job.key)
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
        avoided_nodes=job.status.avoided_nodes or (),
    )
