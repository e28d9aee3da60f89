"""Create an attempt's children, each once. A name that is taken is ours only if the owner's uid says so."""

import dataclasses
import datetime
from collections.abc import Sequence

from finetune_api import names
from finetune_api.reasons import Reason
from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.observed import Manifest, read_owner, read_time

_CLAIM = "PersistentVolumeClaim"


@dataclasses.dataclass(frozen=True)
class Created:
    """All children are there. at: creation of the Job."""

    at: datetime.datetime


@dataclasses.dataclass(frozen=True)
class Blocked:
    """Not now; it may go later without a change of the job."""

    reason: str
    message: str


@dataclasses.dataclass(frozen=True)
class Refused:
    """Never as it is."""

    reason: Reason
    message: str


async def create_children(api: Api, children: Sequence[Manifest], uid: str) -> Created | Blocked | Refused:
    """Create them in order; stop at the first that can't be. What is there already from an earlier try stays untouched.

    Whether an output claim of that name belongs to another job is looked at first: nothing may start that would write to it.
    """
    there: dict[str, Manifest] = {}
    for manifest in children:
        if manifest["kind"] == _CLAIM and (claim := await _get(api, manifest)):
            if problem := _check_owner(claim, manifest, uid):
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
    return Created(at)


async def _create(api: Api, manifest: Manifest, uid: str) -> Manifest | Blocked | Refused:
    try:
        return await api.create(manifest["kind"], manifest)
    except ApiError as error:
        if error.reason != "AlreadyExists":
            return _understand(error, manifest)
    there = await _get(api, manifest)
    if there is None:
        return Blocked("WaitingForDeletion", f"{_describe(manifest)} was just deleted")
    return _check_owner(there, manifest, uid) or there


async def _get(api: Api, manifest: Manifest) -> Manifest | None:
    return await api.get(manifest["kind"], manifest["metadata"]["namespace"], manifest["metadata"]["name"])


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
            f"the claim {name} holds the output of an earlier job: delete the claim if it is not needed, choose another "
            f"metadata.name, or write output: {{claim: {{claimName: {name}}}}} to go on from what is in it",
        )
    return Blocked("NameTaken", f"{_describe(wanted)} is there and belongs to something else: delete it, or choose another name")


def _understand(error: ApiError, manifest: Manifest) -> Blocked | Refused:
    """What the API server's refusal to create a child means for the job; raise what only a retry can mend."""
    message = f"{_describe(manifest)}: {error.message}"
    if error.code in (400, 422):
        return Refused(Reason.POD_REJECTED, message)
    if error.code == 403 and "exceeded quota" in error.message:
        return Blocked("QuotaExceeded", message)
    if error.code == 403 and "being terminated" in error.message:
        return Blocked("NamespaceTerminating", message)
    if error.code == 403:
        return Blocked("Forbidden", message)
    raise error
