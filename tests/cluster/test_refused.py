"""A wrong file: what the API server refuses, and what only a pod can find out."""

import datetime
import json
from typing import Any

import pytest

from cluster.kube import Namespace
from unit.api import spec_cases

JOB = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob"}
pytestmark = pytest.mark.cluster
# From the start of the container to the end of the job in status; a second or two of it is the work, the rest imports of
# several pods on one machine at the same time.
SECONDS_TO_FAIL = 120


def server_verdicts(jobs: Namespace, cases: list[spec_cases.Case]) -> dict[str, str]:
    """What the API server says of each case, by the case's name; empty where it accepts it."""
    verdicts = {}
    for number, case in enumerate(cases):
        manifest = {**JOB, "metadata": {"name": f"case-{number}"}, "spec": case.spec}
        done = jobs.kubectl("apply", "--dry-run=server", "--filename", "-", stdin=json.dumps(manifest), check=False)
        verdicts[case.name] = "" if done.returncode == 0 else done.stderr
    return verdicts


def test_the_api_server_accepts_what_the_models_accept(jobs: Namespace) -> None:
    verdicts = server_verdicts(jobs, spec_cases.ACCEPTED)
    assert {name: verdict for name, verdict in verdicts.items() if verdict} == {}


def test_the_api_server_refuses_what_the_models_refuse_and_says_the_same(jobs: Namespace) -> None:
    verdicts = server_verdicts(jobs, spec_cases.REFUSED)
    assert [name for name, verdict in verdicts.items() if not verdict] == []
    silent = [case.name for case in spec_cases.REFUSED if case.message and case.message not in verdicts[case.name]]
    assert silent == []
    unnamed = [case.name for case in spec_cases.REFUSED if str(case.field).rpartition(".")[2] not in verdicts[case.name]]
    assert unnamed == []


@pytest.mark.parametrize("name", ["a.b", "a" * 53, "1a"])
def test_the_api_server_refuses_a_name_whose_children_would_get_wrong_names(jobs: Namespace, make_job: Any, name: str) -> None:
    done = jobs.kubectl("apply", "--dry-run=server", "--filename", "-", stdin=json.dumps(make_job(name)), check=False)
    assert done.returncode != 0
    assert "metadata.name" in done.stderr


def test_a_job_is_not_changed_once_it_has_started(jobs: Namespace, make_job: Any) -> None:
    job = make_job("fixed", model={"hub": {"name": "nobody/nothing"}})
    jobs.apply(job)
    jobs.wait_for("a phase", lambda: jobs.status("fixed").get("phase"), 30, "fixed")
    job["spec"]["training"]["maxSteps"] = 5
    done = jobs.kubectl("apply", "--filename", "-", stdin=json.dumps(job), check=False)
    jobs.kubectl("delete", "finetunejob", "fixed")
    assert done.returncode != 0
    assert "spec.training can't be changed once the job has started" in done.stderr


def started_at(pod: dict[str, Any]) -> datetime.datetime:
    """When the trainer container started."""
    [container] = pod["status"]["containerStatuses"]
    state = container["state"].get("terminated") or container["state"]["running"]
    return datetime.datetime.fromisoformat(state["startedAt"])


def test_what_only_a_pod_can_find_fails_at_once_with_the_field_and_without_a_retry(
    jobs: Namespace, make_job: Any, hub: Any
) -> None:
    wrong_token = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "wrong"}, "stringData": {"token": "hf_of_nobody"}}
    jobs.apply(wrong_token)
    column = make_job("no-column")
    column["spec"]["datasets"][0]["columns"]["text"] = "body"
    model = make_job("no-model", model={"hub": {"name": "nobody/nothing"}})
    token = make_job("no-token")
    token["spec"]["hub"] = {**token["spec"]["hub"], "tokenSecretRef": {"name": "wrong"}}
    expected = {
        "no-column": ("ConfigurationError", "spec.datasets[0].columns.text", ["'body'", "text"]),
        "no-model": ("ModelNotFound", "spec.model.hub.name", ["nobody/nothing"]),
        "no-token": ("HubAuthentication", "spec.hub.tokenSecretRef", ["Secret"]),
    }
    for job in (column, model, token):
        jobs.apply(job)
    for name, (reason, field, words) in expected.items():
        status = jobs.wait_for_phase(name, "Failed", timeout=240)
        failure = status["failure"]
        assert (status["reason"], failure["reason"]) == (reason, reason)
        assert field in failure["message"]
        assert field in status["message"], "what `kubectl get` shows must say it too"
        for word in words:
            assert word in failure["message"]
        assert "Traceback" not in failure["message"]
        assert "hf_of_nobody" not in json.dumps(status)
        assert status.get("restarts", {}).get("failures", 0) == 0
        assert [job["metadata"]["name"] for job in jobs.objects("jobs", f"finetune.dev/finetunejob={name}")] == [f"{name}-1"]
        [pod] = jobs.pods(name)
        assert [container["restartCount"] for container in pod["status"]["containerStatuses"]] == [0]
        took = datetime.datetime.fromisoformat(status["completionTime"]) - started_at(pod)
        print(f"{name}: Failed {took.total_seconds():.0f} s after its container's start: {failure['message']}")
        assert took.total_seconds() <= SECONDS_TO_FAIL
    for name in expected:
        jobs.kubectl("delete", "finetunejob", name, "--wait=false")
