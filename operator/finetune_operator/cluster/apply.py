"""Create an attempt's children, each once. A name that is taken is ours only if the owner's uid says so."""

import asyncio
import dataclasses
import datetime
from collections.abc import Callable, Sequence

from finetune_api import names
from finetune_api.quantities import parse_quantity
from finetune_api.reasons import Reason
from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.observed import ChildJob, Manifest, read_time
from finetune_operator.parsing import read_child_job, read_owner
from finetune_operator.refusals import rejected_by_quota, webhook_unavailable

_CLAIM = "PersistentVolumeClaim"


@dataclasses.dataclass(frozen=True)
class Created:
    """All children exist. created_at: when the Job was created. job: the Job in the API server."""

    created_at: datetime.datetime
    job: ChildJob


@dataclasses.dataclass(frozen=True)
class Blocked:
    """A child can't be created now, but maybe later, with the same job.

    needs_user_action: a person must remove the cause. retry_soon: the cause will be gone in seconds.
    """

    reason: str
    message: str
    needs_user_action: bool = False
    retry_soon: bool = False


@dataclasses.dataclass(frozen=True)
class Refused:
    """A child can never be created without a change of the job."""

    reason: Reason
    message: str


async def create_children(
    api: Api, namespace: str, job: str, uid: str, build: Callable[[bool], Sequence[Manifest]], generation: int, started: bool
) -> Created | ChildJob | Blocked | Refused:
    """Create the children: those that stand before the Job at once, then each of the others. Stop if one can't be created.

    Children of an earlier try stay untouched. build: returns the manifests. Its argument says whether an earlier FineTuneJob of
    that name left the output claim. The owner of the claim is checked first, because no pod may start that would write to another
    job's volume. generation: of the spec. A Job that was made from an earlier one is deleted. So is the claim, but not if an
    attempt has started: it may hold checkpoints.

    Return the Job alone if Kueue has put it into the default queue of the namespace.
    """
    existing: dict[str, Manifest] = {}
    children = build(False)
    claim = await api.get(_CLAIM, namespace, names.output_claim_name(job)) if _has_claim(children) else None
    adopted = claim is not None and _is_retained_claim(claim, job, uid)
    if adopted:
        children = build(True)
    if claim is not None:
        if not adopted and (problem := await _check_claim(api, claim, children, uid, generation, started)):
            return problem
        existing[_CLAIM] = claim
    first = [manifest["kind"] for manifest in children].index("Job")
    if problem := await _create_at_once(api, children[:first], uid):
        return problem
    for manifest in children[first:]:
        if manifest["kind"] not in existing:
            result = await _create(api, _with_owner_uid(manifest, existing.get("Job")), uid)
            if isinstance(result, Blocked | Refused):
                return result
            if manifest["kind"] == "Job" and _is_outdated(result, generation):
                return await _replace(api, result, manifest)
            if manifest["kind"] == "Job" and (child := read_child_job(result)).queue and not child.queue_job:
                return child
            existing[manifest["kind"]] = result
    created_at = read_time(existing["Job"]["metadata"]["creationTimestamp"])
    assert created_at is not None
    return Created(created_at, read_child_job(existing["Job"]))


async def _create_at_once(api: Api, manifests: Sequence[Manifest], uid: str) -> Blocked | Refused | None:
    """Create objects that don't depend on each other. Return why one of them can't be created, or None."""

    async def create(manifest: Manifest) -> Manifest | Blocked | Refused | None:
        if manifest["kind"] == "PodGroup":
            return await _renew_pod_group(api, manifest, uid)
        return await (_share(api, manifest, uid) if _is_shared(manifest) else _create(api, manifest, uid))

    results = await asyncio.gather(*map(create, manifests), return_exceptions=True)  # no request outlives this function
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return next((result for result in results if isinstance(result, Blocked | Refused)), None)


async def create_queue_job(api: Api, manifest: Manifest, uid: str) -> ChildJob | Blocked | Refused:
    """Create the Job that holds the place in the queue. A cluster without spec.managedBy would run it."""
    created = await _create(api, manifest, uid)
    if isinstance(created, Blocked | Refused):
        return created
    if "managedBy" in created["spec"]:
        return read_child_job(created)
    await api.delete("Job", manifest["metadata"]["namespace"], manifest["metadata"]["name"], created["metadata"]["uid"])
    message = "a queue needs Kubernetes 1.32 or later, whose Jobs have spec.managedBy: upgrade, or take the job out of the queue"
    return Blocked("UnsupportedQueue", message, needs_user_action=True)


async def _check_claim(
    api: Api, claim: Manifest, children: Sequence[Manifest], uid: str, generation: int, started: bool
) -> Blocked | Refused | None:
    """Return why the claim can't be used, or None. Delete it if it was made from an earlier spec and no attempt has started."""
    [wanted] = [manifest for manifest in children if manifest["kind"] == _CLAIM]
    if problem := _check_owner(claim, wanted, uid):
        return problem
    if started:
        return _check_sharing(claim, wanted)
    return await _replace(api, claim, wanted) if _is_outdated(claim, generation) and _differs(claim, wanted) else None


def _is_outdated(existing: Manifest, generation: int) -> bool:
    """Return whether an object was made from another generation. An earlier version of the operator did not write it."""
    made_from = existing["metadata"].get("annotations", {}).get(names.ANNOTATION_GENERATION)
    return made_from not in (None, str(generation))


def _with_owner_uid(manifest: Manifest, job: Manifest | None) -> Manifest:
    """Return the manifest with the uid of the attempt's Job, if the Job owns it."""
    owners = manifest["metadata"].get("ownerReferences", [])
    if job is None or not owners or owners[0]["kind"] != "Job":
        return manifest
    owner = {**owners[0], "uid": job["metadata"]["uid"]}
    return {**manifest, "metadata": {**manifest["metadata"], "ownerReferences": [owner]}}


def _is_shared(manifest: Manifest) -> bool:
    return bool(manifest["metadata"]["labels"] == names.CA_BUNDLE_LABELS)


async def _share(api: Api, manifest: Manifest, _: str) -> Blocked | Refused | None:
    """Create an object that all jobs of the namespace share. Return None if it exists, with this content."""
    metadata = manifest["metadata"]
    existing = await api.get(manifest["kind"], metadata["namespace"], metadata["name"])
    if existing is None:
        try:
            await api.create(manifest["kind"], manifest)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                return _classify_error(error, manifest)
            return Blocked("WaitingForDeletion", f"{_describe(manifest)} was just created or deleted", retry_soon=True)
        return None
    if existing.get("data") == manifest["data"] and existing.get("immutable"):
        return None
    message = f"{_describe(manifest)} exists with other content than site.caBundle: delete it, and the operator creates it again"
    return Blocked("NameTaken", message, needs_user_action=True)


async def _renew_pod_group(api: Api, manifest: Manifest, uid: str) -> Blocked | Refused | None:
    """Replace the PodGroup of an earlier attempt. Do nothing if the API server does not serve the kind.

    Attempts never overlap, so no pod belongs to the earlier group any more. Its size may differ.
    """
    kind = "VolcanoPodGroup" if "volcano" in manifest["apiVersion"] else "CoschedulingPodGroup"
    metadata = manifest["metadata"]
    existing = await api.get(kind, metadata["namespace"], metadata["name"])
    if existing is not None:
        if problem := _check_owner(existing, manifest, uid):
            return problem
        if _attempt_and_size(existing) == _attempt_and_size(manifest):
            return None
        await api.delete(kind, metadata["namespace"], metadata["name"], existing["metadata"]["uid"])
    try:
        await api.create(kind, manifest)
    except ApiError as error:
        if error.code == 404:
            return None
        if error.reason == "AlreadyExists":
            return Blocked("WaitingForDeletion", f"waiting for {_describe(manifest)} to be deleted", retry_soon=True)
        return _classify_error(error, manifest)
    return None


def _attempt_and_size(pod_group: Manifest) -> tuple[str | None, int | None]:
    return pod_group["metadata"].get("labels", {}).get(names.LABEL_ATTEMPT), pod_group["spec"].get("minMember")


def _check_sharing(claim: Manifest, wanted: Manifest) -> Blocked | None:
    """Return why several nodes can't use the claim of a job that started on one node, or None."""
    if "ReadWriteMany" not in wanted["spec"]["accessModes"] or "ReadWriteMany" in claim["spec"]["accessModes"]:
        return None
    message = (
        f"{_describe(wanted)} was created as {claim['spec']['accessModes'][0]} because the job started on one node, so several "
        "nodes can't use it: suspend the job and set spec.distributed.nodes to 1"
    )
    return Blocked("OutputNotShared", message, needs_user_action=True)


def _differs(claim: Manifest, wanted: Manifest) -> bool:
    """Return whether a claim was made from another size, access mode or class. The API server adds the default class."""
    before, now = claim["spec"], wanted["spec"]
    return (
        parse_quantity(before["resources"]["requests"]["storage"]) != parse_quantity(now["resources"]["requests"]["storage"])
        or before["accessModes"] != now["accessModes"]
        or now.get("storageClassName") not in (None, before.get("storageClassName"))
    )


async def _replace(api: Api, existing: Manifest, manifest: Manifest) -> Blocked:
    metadata = manifest["metadata"]
    await api.delete(manifest["kind"], metadata["namespace"], metadata["name"], existing["metadata"]["uid"])
    return Blocked("SpecChanged", f"replacing {_describe(manifest)}, because the spec has changed", retry_soon=True)


def _has_claim(children: Sequence[Manifest]) -> bool:
    return any(manifest["kind"] == _CLAIM for manifest in children)


def _is_retained_claim(claim: Manifest, job: str, uid: str) -> bool:
    """Return whether the claim is the output of an earlier FineTuneJob of the same name, retained when that job was deleted.

    It may contain a finished model of this spec, for example after a restore from a backup. Only a pod can check that. The pod
    may use nothing else in the claim.
    """
    metadata = claim["metadata"]
    owner_uid = metadata.get("annotations", {}).get(names.ANNOTATION_OWNER_UID)
    has_job_label = metadata.get("labels", {}).get(names.LABEL_JOB) == job
    return has_job_label and owner_uid not in (None, uid) and read_owner(claim) is None and "deletionTimestamp" not in metadata


async def _create(api: Api, manifest: Manifest, uid: str) -> Manifest | Blocked | Refused:
    try:
        return await api.create(manifest["kind"], manifest)
    except ApiError as error:
        if error.reason != "AlreadyExists":
            return _classify_error(error, manifest)
    metadata = manifest["metadata"]
    existing = await api.get(manifest["kind"], metadata["namespace"], metadata["name"])
    if existing is None:
        return Blocked("WaitingForDeletion", f"{_describe(manifest)} was just deleted")
    return _check_owner(existing, manifest, uid) or existing


def _describe(manifest: Manifest) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def _check_owner(existing: Manifest, manifest: Manifest, uid: str) -> Blocked | Refused | None:
    """Return why an existing object with a child's name can't be used, or None if it is ours."""
    owner, wanted_owner = read_owner(existing), read_owner(manifest)
    owner_uid = existing["metadata"].get("annotations", {}).get(names.ANNOTATION_OWNER_UID)
    if "deletionTimestamp" in existing["metadata"]:
        return Blocked("WaitingForDeletion", f"waiting for {_describe(manifest)} to be deleted")
    wanted_uid = wanted_owner.uid if wanted_owner else uid
    if (owner.uid if owner else owner_uid) == wanted_uid or _is_orphan(existing, manifest):
        return None
    if owner is not None and owner.kind == (wanted_owner.kind if wanted_owner else names.KIND):
        message = f"waiting for {_describe(manifest)} of an earlier {owner.kind} of this name to be deleted"
        return Blocked("WaitingForDeletion", message)
    if manifest["kind"] == _CLAIM:
        name = manifest["metadata"]["name"]
        return Refused(
            Reason.OUTPUT_CONFLICT,
            f"the claim {name} exists and was not created for this job: delete it if it is not needed, choose another "
            f"metadata.name, or write output: {{claim: {{claimName: {name}}}}} to use what is in it",
        )
    message = f"{_describe(manifest)} exists and belongs to something else: delete it, or choose another name"
    return Blocked("NameTaken", message, needs_user_action=True)


def _is_orphan(existing: Manifest, manifest: Manifest) -> bool:
    """Return whether `kubectl delete --cascade=orphan` left the Service or NetworkPolicy of an earlier FineTuneJob of this name.

    They depend on nothing but the name of the job and the defaults of the operator, so the job can use them.
    """
    ours = manifest["metadata"]["labels"].items() <= existing["metadata"].get("labels", {}).items()
    return manifest["kind"] in ("Service", "NetworkPolicy") and ours and not existing["metadata"].get("ownerReferences")


def _classify_error(error: ApiError, manifest: Manifest) -> Blocked | Refused:
    """Return what a refused creation means for the job. Raise the error if the reconcile should be retried."""
    message = f"{_describe(manifest)}: {error.message}"
    if error.code in (400, 422):
        return Refused(Reason.POD_REJECTED, message)
    if webhook_unavailable(error.message):
        return Blocked("WebhookFailed", message)
    if error.code != 403:
        raise error
    if rejected_by_quota(error.message):
        return Blocked("QuotaExceeded", message)
    if "being terminated" in error.message:
        return Blocked("NamespaceTerminating", message)
    return Blocked("Forbidden", message, needs_user_action=True)
