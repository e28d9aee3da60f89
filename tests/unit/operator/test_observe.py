"""The live read of a job: the requests that it always makes, and those for some states only."""

from typing import Any

import pytest

from finetune_api import names
from finetune_api.status import FineTuneJobStatus, Published
from finetune_operator.cluster.children import ChildrenReader
from finetune_operator.cluster.observe import observe_job
from finetune_operator.observed import Observation
from unit.operator.builders import KEY, UID, child_manifest, job_manifest, pod_manifest, running, spec_fields
from unit.operator.fake_server import FakeServer

LIVE_READ = ["GET finetunejobs news", "GET jobs", "GET pods"]


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


async def observe(server: FakeServer) -> Observation | None:
    api = server.api()
    return await observe_job(api, ChildrenReader(api), KEY)


def event(name: str, message: str, uid: str = "job-1", reason: str = "FailedCreate") -> dict[str, Any]:
    involved = {"kind": "Job", "uid": uid}
    return {"metadata": {"namespace": "team", "name": name}, "involvedObject": involved, "reason": reason, "message": message}


async def test_a_complete_attempt_costs_three_requests(server: FakeServer) -> None:
    server.put("finetunejobs", job_manifest(status=running()))
    server.put("jobs", child_manifest())
    for index in (0, 1):
        server.put("pods", pod_manifest(index))
    observation = await observe(server)
    assert observation is not None
    assert (observation.live, len(observation.jobs), len(observation.pods), observation.refusal, observation.queueing) == (
        True,
        1,
        2,
        None,
        None,
    )
    assert server.requests == LIVE_READ


@pytest.mark.parametrize("there", [False, True])
async def test_a_job_that_is_deleted_or_being_deleted_costs_one_request(server: FakeServer, there: bool) -> None:
    if there:
        server.put("finetunejobs", job_manifest(deletionTimestamp="2026-01-02T03:04:05Z"))
    assert await observe(server) is None
    assert server.requests == LIVE_READ[:1]


async def test_objects_with_the_label_of_another_job_are_not_observed(server: FakeServer) -> None:
    server.put("finetunejobs", job_manifest())
    other = pod_manifest(0)
    other["metadata"]["labels"][names.LABEL_JOB] = "other"
    server.put("pods", other)
    observation = await observe(server)
    assert observation is not None
    assert observation.pods == []


async def test_the_refusal_of_pods_is_the_message_of_the_last_event_of_their_job(server: FakeServer) -> None:
    server.put("finetunejobs", job_manifest(status=running()))
    server.put("jobs", child_manifest())
    server.put("pods", pod_manifest(0))
    for number, args in enumerate([("old",), ("exceeded quota",), ("other", "job-9"), ("started", "job-1", "SuccessfulCreate")]):
        server.put("events", event(f"e{number}", *args))
    observation = await observe(server)
    assert observation is not None
    assert observation.refusal == "exceeded quota"


async def test_a_suspended_job_costs_no_further_request(server: FakeServer) -> None:
    server.put("finetunejobs", job_manifest(status=running(), labels={names.LABEL_KUEUE_QUEUE: "gpus"}))
    server.put("jobs", child_manifest(spec={"completions": 2, "suspend": True}))
    await observe(server)
    assert server.requests == LIVE_READ


ENDED = running(phase="Succeeded", published=Published(url="https://hub/a/b", commit="c"))
DELETE_CLAIM = spec_fields(output={"retention": {"whenFinished": "Delete"}}, publish={"repository": "a/b"})


@pytest.mark.parametrize(
    ("spec", "status", "metadata", "found"),
    [
        (DELETE_CLAIM, ENDED, {"annotations": {names.ANNOTATION_OWNER_UID: UID}}, "claim"),
        (DELETE_CLAIM, ENDED, {"annotations": {names.ANNOTATION_OWNER_UID: "another"}}, None),
        (DELETE_CLAIM, ENDED, {}, None),
        (DELETE_CLAIM, ENDED, {"annotations": {names.ANNOTATION_OWNER_UID: UID}, "deletionTimestamp": "now"}, None),
        (DELETE_CLAIM, running(), {"annotations": {names.ANNOTATION_OWNER_UID: UID}}, None),
        (None, ENDED, {"annotations": {names.ANNOTATION_OWNER_UID: UID}}, None),
    ],
)
async def test_only_the_claim_of_the_job_itself_is_read_and_only_after_its_end(
    server: FakeServer, spec: Any, status: FineTuneJobStatus, metadata: dict[str, Any], found: str | None
) -> None:
    server.put("finetunejobs", job_manifest(spec, status))
    claim = {"namespace": "team", "name": names.output_claim_name(KEY.name), "uid": "claim"}
    server.put("persistentvolumeclaims", {"metadata": {**claim, **metadata}})
    observation = await observe(server)
    assert observation is not None
    assert observation.output_claim == found
