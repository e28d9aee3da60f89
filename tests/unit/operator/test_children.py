"""Concurrent reads of children share list requests, and each caller gets the children of its own job."""

import asyncio
from typing import Any

import pytest

from finetune_api import names
from finetune_operator.cluster.api import ApiError
from finetune_operator.cluster.children import ChildrenReader
from finetune_operator.observed import Key, Manifest
from unit.operator.builders import KEY, child_manifest, pod_manifest
from unit.operator.fake_server import FakeServer, refusal


def name(number: int) -> str:
    return f"job-{number}"


def with_owner(manifest: Manifest, number: int) -> Manifest:
    """Change a manifest so that it belongs to another FineTuneJob."""
    metadata = manifest["metadata"]
    metadata["labels"][names.LABEL_JOB] = name(number)
    metadata["name"] = metadata["name"].replace(KEY.name, name(number))
    return manifest


@pytest.fixture
def server() -> FakeServer:
    server = FakeServer()
    for number in range(130):
        server.put("jobs", with_owner(child_manifest(), number))
        server.put("pods", with_owner(pod_manifest(), number))
    return server


async def test_concurrent_callers_share_few_lists_and_each_gets_its_own_children(server: FakeServer) -> None:
    reader = ChildrenReader(server.api())
    keys = [Key("team", name(number)) for number in range(130)]
    answers = await asyncio.gather(*map(reader.read, keys))
    assert [(jobs[0].name, len(jobs), pods[0].name, len(pods)) for jobs, pods in answers] == [
        (f"{key.name}-1", 1, f"{key.name}-1-0-x", 1) for key in keys
    ]
    assert len(server.requests) == 6


async def test_a_caller_that_comes_during_a_list_is_served_by_the_next_list(server: FakeServer) -> None:
    reader = ChildrenReader(server.api())
    first = asyncio.create_task(reader.read(Key("team", name(1))))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second = await reader.read(Key("team", name(1)))
    assert (await first)[0] == second[0]
    assert server.requests == ["GET jobs", "GET pods"] * 2


async def test_an_error_reaches_all_waiting_callers_and_the_next_call_lists_again(server: FakeServer) -> None:
    reader = ChildrenReader(server.api())
    server.answers["GET pods"] = refusal(500, "InternalError")
    failed = await asyncio.gather(*(reader.read(Key("team", name(number))) for number in range(3)), return_exceptions=True)
    assert [type(error) for error in failed] == [ApiError] * 3
    server.answers.clear()
    assert len((await reader.read(Key("team", name(2))))[1]) == 1


async def test_a_cancelled_caller_does_not_affect_the_others(server: FakeServer) -> None:
    reader = ChildrenReader(server.api())
    cancelled, waiting = (asyncio.create_task(reader.read(Key("team", name(1)))) for _ in range(2))
    await asyncio.sleep(0)
    cancelled.cancel()
    assert len((await waiting)[0]) == 1


async def test_jobs_that_wait_for_pods_share_the_lists_of_refusals(server: FakeServer) -> None:
    metadata = {"namespace": "team", "name": "event"}
    event = {
        "metadata": metadata,
        "involvedObject": {"kind": "Job", "uid": "job-1"},
        "reason": "FailedCreate",
        "message": "quota",
    }
    server.put("events", event)
    reader = ChildrenReader(server.api())
    found = await asyncio.gather(*(reader.read_refusals("team") for _ in range(100)))
    assert [dict(refusals) for refusals in found] == [{"job-1": "quota"}] * 100
    assert server.requests == ["GET events"]
    del server.objects["events", "team", "event"]
    assert await reader.read_refusals("team") == {}, "a list that starts after the call"
    server.answers["GET events"] = refusal(403, "Forbidden")
    assert await reader.read_refusals("team") == {}
    server.answers["GET events"] = refusal(500, "Broken")
    with pytest.raises(ApiError):
        await reader.read_refusals("team")


async def test_a_list_of_refusals_in_progress_is_followed_by_one_for_all_who_ask_meanwhile(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, answer = asyncio.Event(), server.call_api

    async def wait_and_answer(*request: Any, **options: Any) -> Any:
        await gate.wait()
        return await answer(*request, **options)

    monkeypatch.setattr(server, "call_api", wait_and_answer)
    reader = ChildrenReader(server.api())
    readers = [asyncio.create_task(reader.read_refusals("team"))]
    await asyncio.sleep(0.01)
    readers += [asyncio.create_task(reader.read_refusals("team")) for _ in range(10)]
    await asyncio.sleep(0.01)
    gate.set()
    await asyncio.gather(*readers)
    assert server.requests == ["GET events"] * 2
