"""Reads a job and its children live, for decisions that must not depend on what a watch may have missed."""

import dataclasses
import signal
from collections.abc import Sequence

from finetune_api import names
from finetune_api.status import FINAL_PHASES
from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.cluster.children import ChildrenReader
from finetune_operator.observed import ChildJob, JobRecord, Key, Manifest, Observation, PodState
from finetune_operator.parsing import is_managed_elsewhere, read_job

# What a container ends with after SIGKILL, and a launcher of ours after SIGTERM.
_EXIT_CODES_OF_SIGNALS = (128 + signal.SIGKILL, names.EXIT_INTERRUPTED)


async def observe_job(api: Api, children: ChildrenReader, key: Key) -> Observation | None:
    """Return the FineTuneJob with its Jobs and pods, or None if it is gone, being deleted, or run by another controller."""
    manifest = await api.get(names.KIND, key.namespace, key.name)
    if manifest is None or is_managed_elsewhere(manifest):
        return None
    job = read_job(manifest)
    if job.deleting:
        return None
    return await _observe_details(api, children, Observation(job, *await children.read(key)))


async def _observe_details(api: Api, children: ChildrenReader, observation: Observation) -> Observation:
    """Add details that only some states need: the output claim, or the refusal."""
    job = observation.job
    if job.status.phase in FINAL_PHASES:
        if job.should_delete_output_claim():
            return dataclasses.replace(observation, output_claim=await _observe_own_claim(api, job))
        return observation
    observation = dataclasses.replace(observation, pods=[await _with_probe_failure(api, job, pod) for pod in observation.pods])
    if _job_missing_pods(observation.jobs, observation.pods):
        return await observe_refusal(children, observation)
    return observation


async def _with_probe_failure(api: Api, job: JobRecord, pod: PodState) -> PodState:
    """Add why the kubelet ended the pod, if it ended by a signal and nothing else explains that.

    Only events tell. Killing: the kubelet ended the container. Unhealthy: a probe failed, which may have happened before, too.
    """
    end = pod.terminated
    if (
        pod.job_uid != job.uid
        or end is None
        or end.exit_code not in _EXIT_CODES_OF_SIGNALS
        or pod.deletion_requested_at is not None
    ):
        return pod
    events = await _list_if_allowed(api, "Event", job.key.namespace, fieldSelector=f"involvedObject.uid={pod.uid}")
    failures = [str(event.get("message", "")) for event in events if event.get("reason") == "Unhealthy"]
    if not failures or not any(event.get("reason") == "Killing" for event in events):
        return pod
    return dataclasses.replace(pod, probe_failure=failures[-1])


def _job_missing_pods(children: Sequence[ChildJob], pods: Sequence[PodState]) -> str | None:
    """Return the uid of a running Job that has fewer pods than it should, or None."""
    for child in (child for child in children if child.attempt):
        pod_count = sum(pod.owner is not None and pod.owner.uid == child.uid for pod in pods)
        if pod_count < child.completions and not (child.deleting or child.complete or child.failing or child.suspended):
            return child.uid
    return None


async def observe_refusal(children: ChildrenReader, observation: Observation) -> Observation:
    """Add the reason why the Job controller can't create pods (quota, Pod Security, …). It reports that only in events."""
    job_uid = _job_missing_pods(observation.jobs, observation.pods)
    if job_uid is None:
        return observation
    refusals = await children.read_refusals(observation.job.key.namespace)
    return dataclasses.replace(observation, refusal=refusals.get(job_uid))


async def _list_if_allowed(api: Api, kind: str, namespace: str, **query: str) -> list[Manifest]:
    """List objects that only improve messages. Return an empty list if the operator may not list them or the kind is missing."""
    try:
        return await api.list_all(kind, namespace, **query)
    except ApiError as error:
        if error.code in (403, 404):
            return []
        raise


async def _observe_own_claim(api: Api, job: JobRecord) -> str | None:
    """Return the uid of the claim that was created for this job, or None if it is gone or being deleted."""
    name = names.output_claim_name(job.key.name)
    claim = await api.get("PersistentVolumeClaim", job.key.namespace, name)
    if claim is None or "deletionTimestamp" in claim["metadata"]:
        return None
    created_for_job = claim["metadata"].get("annotations", {}).get(names.ANNOTATION_OWNER_UID) == job.uid
    return str(claim["metadata"]["uid"]) if created_for_job else None
