"""What there is of a job, read afresh: never from a watch's memory, which may have missed a deletion."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from finetune_api import names
from finetune_api.status import FINAL_PHASES
from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.observed import ChildJob, Key, Manifest, Observation, PodState, read_child_job, read_job, read_pod


async def observe_job(api: Api, key: Key) -> Observation | None:
    """The FineTuneJob with its Jobs and pods; None if it is gone or going."""
    manifest = await api.get(names.KIND, key.namespace, key.name)
    if manifest is None:
        return None
    job = read_job(manifest)
    if job.deleting:
        return None
    query = {"labelSelector": f"{names.LABEL_JOB}={key.name}"}
    jobs, pods = await asyncio.gather(api.list_all("Job", key.namespace, **query), api.list_all("Pod", key.namespace, **query))
    children = [read_child_job(item) for item in jobs]
    states = [read_pod(item) for item in pods]
    refusal = None
    if job.status.phase not in FINAL_PHASES and (short := _short_of_pods(children, states)):
        refusal = await _observe_refusal(api, key.namespace, short)
    return Observation(job, children, states, refusal)


async def list_jobs(api: Api, namespaces: Sequence[str]) -> AsyncIterator[Manifest]:
    """Every FineTuneJob of the namespaces, of the cluster if there are none."""
    for namespace in namespaces or (None,):
        async for item in api.list_pages(names.KIND, namespace):
            yield item


def _short_of_pods(children: Sequence[ChildJob], pods: Sequence[PodState]) -> str | None:
    """uid of a Job that runs and has fewer pods than it should."""
    for child in children:
        has = sum(pod.owner is not None and pod.owner.uid == child.uid for pod in pods)
        if has < child.size and not (child.deleting or child.complete or child.ending):
            return child.uid
    return None


async def _observe_refusal(api: Api, namespace: str, uid: str) -> str | None:
    """Why the Job controller can't create pods (quota, Pod Security, …): it says so in events only."""
    selector = f"involvedObject.uid={uid},reason=FailedCreate"
    try:
        events = await api.list_all("Event", namespace, fieldSelector=selector)
    except ApiError as error:
        if error.code == 403:  # a site may not grant it; the message is a courtesy
            return None
        raise
    return str(events[-1].get("message", "")) if events else None
