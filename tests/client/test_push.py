"""`kubectl finetune push`: a job that only pushes what another one has trained."""

from collections.abc import Callable
from typing import Any

import pytest

from client.builders import FAILED, RUNNING, SUCCEEDED, SUSPENDED, job
from client.fake_api_server import FakeApiServer

Run = Callable[..., Any]
PUSH_FAILED = FAILED | {"reason": "HubPushFailed", "failure": {"reason": "HubPushFailed", "message": "the Hub answered 503"}}
SPEC = {
    "publish": {"repository": "team/news", "visibility": "Public"},
    "hub": {"tokenSecretRef": {"name": "hub-token"}},
    "distributed": {"nodes": 2, "gpusPerNode": 8},
    "output": {"volume": {"size": "5Gi"}, "retention": {"whenDeleted": "Retain"}},
}


def test_a_job_on_the_same_output_pushes_in_one_pod_without_a_gpu(run: Run, server: FakeApiServer) -> None:
    server.put("finetunejobs", job(status=PUSH_FAILED, **SPEC))
    result = run("push", "news")
    assert result.output.splitlines() == ["created finetunejob news-push in namespace team", "  kubectl finetune watch news-push"]
    created, given = server.get("finetunejobs", "news-push"), server.get("finetunejobs", "news")
    expected = given["spec"] | {"output": {"claim": {"claimName": "news-output"}}}
    del expected["distributed"]
    assert created["spec"] == expected


def test_repository_and_name_can_be_chosen_and_the_own_claim_of_a_job_stays(run: Run, server: FakeApiServer) -> None:
    output = {"claim": {"claimName": "models", "path": "news"}}
    server.put("finetunejobs", job(status=SUCCEEDED, output=output))
    assert "--to OWNER/NAME" in run("push", "news").output
    assert run("push", "news", "--to", "lab/news", "--name", "again").exit_code == 0
    created = server.get("finetunejobs", "again")
    assert created["spec"]["publish"] == {"repository": "lab/news"}
    assert created["spec"]["output"] == output


@pytest.mark.parametrize("status", [None, RUNNING, SUSPENDED, FAILED])
def test_a_job_without_a_finished_model_is_refused_because_the_new_one_would_train(
    run: Run, server: FakeApiServer, status: Any
) -> None:
    server.put("finetunejobs", job(status=status, **SPEC))
    result = run("push", "news")
    assert result.exit_code != 0
    assert "news has no finished model to push: it is" in result.output
