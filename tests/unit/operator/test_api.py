"""Requests to the API server: the write check, preconditions, errors and counts."""

import pytest

from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.cluster.lease import NotLeadingError
from unit.operator.builders import KEY, UID, child_manifest, job_manifest
from unit.operator.fake_server import Answer, FakeServer, refusal


def _refuse() -> None:
    raise NotLeadingError("this process does not hold the Lease")


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def api(server: FakeServer) -> Api:
    return server.api()


async def test_nothing_is_written_without_leadership(server: FakeServer, api: Api) -> None:
    server.put("finetunejobs", job_manifest())
    api.set_write_check(_refuse)
    for write in (
        api.create("Job", child_manifest()),
        api.update("Lease", child_manifest()),
        api.delete("Job", KEY.namespace, "news-1", "job-1"),
        api.apply_status("FineTuneJob", job_manifest()),
    ):
        with pytest.raises(NotLeadingError):
            await write
    assert server.requests == []
    assert await api.get("FineTuneJob", KEY.namespace, KEY.name) is not None
    assert len(await api.list_all("FineTuneJob", None)) == 1


async def test_the_lease_itself_is_written_before_leadership(server: FakeServer, api: Api) -> None:
    api.set_write_check(_refuse)
    await api.without_write_check().create("Lease", {"metadata": {"namespace": "system", "name": "operator"}})
    assert server.requests == ["POST leases"]


async def test_a_missing_object_is_read_as_none_and_its_deletion_is_no_error(api: Api) -> None:
    assert await api.get("Job", KEY.namespace, "news-1") is None
    await api.delete("Job", KEY.namespace, "news-1", "job-1")


async def test_a_deletion_deletes_only_the_object_with_the_given_uid(server: FakeServer, api: Api) -> None:
    server.put("jobs", child_manifest())
    await api.delete("Job", KEY.namespace, "news-1", "another")
    assert server.names_of("jobs") == ["news-1"]
    await api.delete("Job", KEY.namespace, "news-1", "job-1")
    assert server.names_of("jobs") == []


@pytest.mark.parametrize("field", ["uid", "resourceVersion"])
async def test_a_status_is_written_only_to_the_observed_version(server: FakeServer, api: Api, field: str) -> None:
    there = server.put("finetunejobs", job_manifest())["metadata"]
    metadata = {"namespace": KEY.namespace, "name": KEY.name, "uid": UID, "resourceVersion": there["resourceVersion"]}
    with pytest.raises(ApiError) as caught:
        await api.apply_status("FineTuneJob", {"metadata": {**metadata, field: "9"}, "status": {}})
    assert caught.value.code == 409
    await api.apply_status("FineTuneJob", {"metadata": metadata, "status": {"phase": "Running"}})
    assert server.take("finetunejobs", KEY.name)["status"] == {"phase": "Running"}


@pytest.mark.parametrize(
    ("answer", "code", "reason", "after"),
    [
        (refusal(429, "TooManyRequests", **{"Retry-After": "17"}), 429, "TooManyRequests", 17.0),
        (refusal(429, "TooManyRequests", **{"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}), 429, "TooManyRequests", 0.0),
        (Answer(502, b"<html>bad gateway</html>"), 502, "Unknown", 0.0),
        (OSError("no route"), 0, "Unreachable", 0.0),
        (TimeoutError(), 0, "Unreachable", 0.0),
        pytest.param(
            Answer(502, b"null"),
            502,
            "Unknown",
            0.0,
        ),
    ],
)
async def test_every_refusal_is_an_api_error(
    server: FakeServer, api: Api, answer: Answer | Exception, code: int, reason: str, after: float
) -> None:
    server.answers["GET jobs"] = answer
    with pytest.raises(ApiError) as caught:
        await api.get("Job", KEY.namespace, "news-1")
    error = caught.value
    assert (error.code, error.reason, error.retry_after_seconds) == (code, reason, after)


@pytest.mark.parametrize(
    ("code", "message", "forbidden_by_rbac"),
    [
        (
            403,
            'jobs.batch is forbidden: User "system:serviceaccount:a:b" cannot create resource "jobs" in API group "batch"',
            True,
        ),
        (403, 'pods "news-1-0" is forbidden: exceeded quota: gpus', False),
        (403, 'pods "news-1-0" is forbidden: violates PodSecurity "restricted:latest"', False),
        (404, "cannot create resource", False),
    ],
)
def test_a_missing_rbac_permission_is_distinguished_from_a_refusal_by_admission(
    code: int, message: str, forbidden_by_rbac: bool
) -> None:
    assert ApiError(code, "Forbidden", message, 0.0).forbidden_by_rbac == forbidden_by_rbac


async def test_every_response_is_counted_with_its_rbac_verb(server: FakeServer) -> None:
    counted: list[tuple[str, str, int]] = []
    api = server.api(count=lambda *answer: counted.append(answer))
    await api.list_all("Pod", None, labelSelector="a=b")
    await api.get("Job", "team", "news-1")
    server.answers["POST jobs"] = OSError("no route")
    with pytest.raises(ApiError):
        await api.create("Job", child_manifest())
    assert counted == [("list", "Pod", 200), ("get", "Job", 404), ("create", "Job", 0)]
