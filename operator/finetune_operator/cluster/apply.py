"""Create an attempt's children, each once. A name that is taken is ours only if the owner's uid says so."""

import dataclasses
import datetime
from collections.abc import Callable, Sequence

from finetune_api import names
from finetune_api.reasons import Reason
from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.observed import ChildJob, Manifest, read_time
from finetune_operator.parsing import read_child_job, read_owner
from finetune_operator.refusals import is_by_quota, is_by_webhook

_CLAIM = "PersistentVolumeClaim"


@dataclasses.dataclass(frozen=True)
class Created:
    """All children are there. at: creation of the Job. job: the Job as the API server has it."""

    at: datetime.datetime
    job: ChildJob


@dataclasses.dataclass(frozen=True)
class Blocked:
    """Not now; it may go later without a change of the job. by_people: only people can mend it."""

    reason: str
    message: str
    by_people: bool = False


@dataclasses.dataclass(frozen=True)
class Refused:
    """Never as it is."""

    reason: Reason
    message: str


async def create_children(
    api: Api, namespace: str, job: str, uid: str, build: Callable[[bool], Sequence[Manifest]]
) -> Created | Blocked | Refused:
    """Create them in order; stop at the first that can't be. What is there already from an earlier try stays untouched.

    build: makes the manifests, given whether the output claim was left by an earlier FineTuneJob of that name. Whose it is, is
    looked at first: nothing may start that would write to another job's volume.
    """
    there: dict[str, Manifest] = {}
    claim = await api.get(_CLAIM, namespace, names.output_claim_name(job)) if _has_claim(build(False)) else None
    adopted = claim is not None and _is_left_behind(claim, job, uid)
    children = build(adopted)
    for manifest in children:
        if manifest["kind"] == _CLAIM and claim is not None:
            if not adopted and (problem := _check_owner(claim, manifest, uid)):
                return problem
            there[_CLAIM] = claim
    for manifest in children:
        if manifest["kind"] not in there:
            answer = await _create(api, manifest, uid)
            if isinstance(answer, Blocked | Refused):
                return answer
            there[manifest["kind"]] = answer
    at = read_time(there["Job"]["metadata"]["creationTimestamp"])
    assert at is not None
    return Created(at, read_child_job(there["Job"]))


def _has_claim(children: Sequence[Manifest]) -> bool:
    return any(manifest["kind"] == _CLAIM for manifest in children)


def _is_left_behind(claim: Manifest, job: str, uid: str) -> bool:
    """Whether the claim is the output of an earlier FineTuneJob of the same name, retained when that was deleted.

    It may hold the finished model of this very spec, as after a restore from a backup: only a pod can look. It is told to use
    nothing else of it.
    """
    metadata = claim["metadata"]
    marked = metadata.get("annotations", {}).get(names.ANNOTATION_OWNER_UID)
    ours = metadata.get("labels", {}).get(names.LABEL_JOB) == job
    return ours and marked not in (None, uid) and read_owner(claim) is None and "deletionTimestamp" not in metadata


async def _create(api: Api, manifest: Manifest, uid: str) -> Manifest | Blocked | Refused:
    try:
        return await api.create(manifest["kind"], manifest)
    except ApiError as error:
        if error.reason != "AlreadyExists":
            return _understand(error, manifest)
    metadata = manifest["metadata"]
    there = await api.get(manifest["kind"], metadata["namespace"], metadata["name"])
    if there is None:
        return Blocked("WaitingForDeletion", f"{_describe(manifest)} was just deleted")
    return _check_owner(there, manifest, uid) or there


def _describe(manifest: Manifest) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def _check_owner(there: Manifest, wanted: Manifest, uid: str) -> Blocked | Refused | None:
    """Why an object with a child's name can't be used; None if it is ours."""
    owner = read_owner(there)
    marked = there["metadata"].get("annotations", {}).get(names.ANNOTATION_OWNER_UID)
    if "deletionTimestamp" in there["metadata"]:
        return Blocked("WaitingForDeletion", f"waiting for {_describe(wanted)} to be deleted")
    if (owner.uid if owner else marked) == uid:
        return None
    if owner is not None and owner.kind == names.KIND:
        message = f"waiting for {_describe(wanted)} of an earlier {names.KIND} of this name to be deleted"
        return Blocked("WaitingForDeletion", message)
    if wanted["kind"] == _CLAIM:
        name = wanted["metadata"]["name"]
        return Refused(
            Reason.OUTPUT_CONFLICT,
            f"the claim {name} is there and was not made for this job: delete it if it is not needed, choose another "
            f"metadata.name, or write output: {{claim: {{claimName: {name}}}}} to use what is in it",
        )
    message = f"{_describe(wanted)} is there and belongs to something else: delete it, or choose another name"
    return Blocked("NameTaken", message, by_people=True)


def _understand(error: ApiError, manifest: Manifest) -> Blocked | Refused:
    """What the API server's refusal to create a child means for the job; raise what only a retry can mend."""
    message = f"{_describe(manifest)}: {error.message}"
    if error.code in (400, 422):
        return Refused(Reason.POD_REJECTED, message)
    if is_by_webhook(error.message):
        return Blocked("WebhookFailed", message)
    if error.code != 403:
        raise error
    if is_by_quota(error.message):
        return Blocked("QuotaExceeded", message)
    if "being terminated" in error.message:
        return Blocked("NamespaceTerminating", message)
    return Blocked("Forbidden", message, by_people=True)
