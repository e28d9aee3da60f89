"""What there is of a job, read afresh: for every decision that must not rest on what a watch may have missed."""

import dataclasses
from collections.abc import Sequence

from finetune_api import names
from finetune_api.status import FINAL_PHASES
from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.cluster.children import ChildrenReader
from finetune_operator.observed import ChildJob, JobRecord, Key, Manifest, Observation, PodState
from finetune_operator.parsing import read_job


async def observe_job(api: Api, children: ChildrenReader, key: Key) -> Observation | None:
    """The FineTuneJob with its Jobs and pods; None if it is gone or going."""
    manifest = await api.get(names.KIND, key.namespace, key.name)
    if manifest is None:
        return None
    job = read_job(manifest)
    if job.deleting:
        return None
    return await _observe_more(api, Observation(job, *await children.read(key)))


async def _observe_more(api: Api, seen: Observation) -> Observation:
    """What only some states of a job make worth a look."""
    job = seen.job
    if job.status.phase in FINAL_PHASES:
        if job.gives_volume_back():
            return dataclasses.replace(seen, output_claim=await _observe_own_claim(api, job))
        return seen
    if _short_of_pods(seen.jobs, seen.pods):
        return await observe_refusal(api, seen)
    held = next((child for child in seen.own_jobs() if child.suspended and not child.deleting), None)
    if held is not None and names.LABEL_KUEUE_QUEUE in job.kueue_labels:
        return dataclasses.replace(seen, queueing=await _observe_queueing(api, job.key.namespace, held.uid))
    return seen


def _short_of_pods(children: Sequence[ChildJob], pods: Sequence[PodState]) -> str | None:
    """uid of a Job that runs and has fewer pods than it should."""
    for child in children:
        has = sum(pod.owner is not None and pod.owner.uid == child.uid for pod in pods)
        if has < child.size and not (child.deleting or child.complete or child.ending or child.suspended):
            return child.uid
    return None


async def observe_refusal(api: Api, seen: Observation) -> Observation:
    """With why the Job controller can't create pods (quota, Pod Security, …): it says so in events only."""
    short = _short_of_pods(seen.jobs, seen.pods)
    if short is None:
        return seen
    selector = f"involvedObject.uid={short},reason=FailedCreate"
    events = await _list_if_allowed(api, "Event", seen.job.key.namespace, fieldSelector=selector)
    return dataclasses.replace(seen, refusal=str(events[-1].get("message", "")) if events else None)


async def _observe_queueing(api: Api, namespace: str, job_uid: str) -> tuple[str, str] | None:
    """Why Kueue holds a Job back: the reason and the message of its Workload."""
    query = {"labelSelector": f"kueue.x-k8s.io/job-uid={job_uid}"}
    workloads = await _list_if_allowed(api, "Workload", namespace, **query)
    workloads = workloads or await _list_if_allowed(api, "WorkloadV1beta1", namespace, **query)
    conditions = {item["type"]: item for workload in workloads for item in workload.get("status", {}).get("conditions", ())}
    for kind, value in (("QuotaReserved", "False"), ("Admitted", "False"), ("Evicted", "True")):
        if (condition := conditions.get(kind)) and condition["status"] == value:
            return condition.get("reason") or "WaitingForQueue", condition.get("message") or "waiting in the queue"
    return None


async def _list_if_allowed(api: Api, kind: str, namespace: str, **query: str) -> list[Manifest]:
    """A site may not grant it, or not have it; what these lists tell is a courtesy."""
    try:
        return await api.list_all(kind, namespace, **query)
    except ApiError as error:
        if error.code in (403, 404):
            return []
        raise


async def _observe_own_claim(api: Api, job: JobRecord) -> str | None:
    """uid of the claim that was made for this very job, if it is still there."""
    name = names.output_claim_name(job.key.name)
    claim = await api.get("PersistentVolumeClaim", job.key.namespace, name)
    if claim is None or "deletionTimestamp" in claim["metadata"]:
        return None
    ours = claim["metadata"].get("annotations", {}).get(names.ANNOTATION_OWNER_UID) == job.uid
    return str(claim["metadata"]["uid"]) if ours else None
