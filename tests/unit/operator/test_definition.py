"""At the start, the operator compares the CustomResourceDefinition in the cluster with its own."""

import copy
import logging
from typing import Any

import pytest

from finetune_api.crd import custom_resource_definition
from finetune_operator.cluster.api import ApiError
from finetune_operator.definition import OldDefinitionError, check_definition
from finetune_operator.policy.resource_definition import describe_missing_fields, missing_fields

OWN = custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def without(*paths: str) -> dict[str, Any]:
    """Return the schema without some fields, as an older version had it."""
    schema: dict[str, Any] = copy.deepcopy(OWN)
    for path in paths:
        *parents, last = path.split(".")
        node = schema
        for part in parents:
            node = node["properties"][part.removesuffix("[]")]
            node = node["items"] if part.endswith("[]") else node
        del node["properties"][last]
    return schema


class Server:
    """Publishes one schema after the other, and then the last one. An error is raised instead."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.requests = 0

    async def published_schema(self) -> Any:
        self.requests += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


async def check(server: Server) -> None:
    await check_definition(server, retry_seconds=0)  # type: ignore[arg-type]


def test_missing_fields_are_found_at_every_depth_and_only_the_outermost_is_named() -> None:
    assert missing_fields(OWN) == ([], [])
    old = without("spec.pod.initContainers", "spec.datasets[].claim.format", "status.attempts[].nodes", "status.goodput")
    spec, status = missing_fields(old)
    assert sorted(spec) == ["spec.datasets[].claim.format", "spec.pod.initContainers"]
    assert sorted(status) == ["status.attempts[].nodes", "status.goodput"]
    assert missing_fields({}) == (
        [f"spec.{name}" for name in OWN["properties"]["spec"]["properties"]],
        [f"status.{name}" for name in OWN["properties"]["status"]["properties"]],
    )


def test_the_sentence_names_some_fields_and_how_many_more_there_are() -> None:
    assert "lacks spec.a, spec.b: upgrade the chart" in describe_missing_fields(["spec.a", "spec.b"])
    assert "lacks a, b, c, d, e and 2 more: upgrade the chart" in describe_missing_fields(list("abcdefg"))


async def test_an_operator_does_not_start_if_its_status_would_be_refused() -> None:
    server = Server(without("status.goodput", "spec.pod.volumes"))
    with pytest.raises(OldDefinitionError, match=r"lacks status\.goodput, spec\.pod\.volumes: upgrade"):
        await check(server)
    assert server.requests > 1


async def test_a_schema_that_the_api_server_publishes_some_moments_later_is_waited_for() -> None:
    server = Server(without("status.goodput"), without("status.goodput"), OWN)
    await check(server)
    assert server.requests == 3


async def test_an_operator_starts_if_only_the_spec_lacks_fields_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    await check(Server(without("spec.pod.volumes")))
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        describe_missing_fields(["spec.pod.volumes"])
    ]


@pytest.mark.parametrize(
    "answer", [None, ApiError(403, "Forbidden", "no", 0), ApiError(0, "Unreachable", "no", 0), TimeoutError()]
)
async def test_a_schema_that_cannot_be_read_does_not_keep_the_operator_from_starting(answer: Any) -> None:
    server = Server(answer)
    await check(server)
    assert server.requests == 1
