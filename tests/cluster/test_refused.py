"""Wrong jobs: mistakes that the API server refuses, and mistakes that only a pod can find."""

import datetime
import json
from typing import Any

import pytest

from cluster.kube import Namespace
from unit.api import spec_cases

JOB = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob"}
pytestmark = pytest.mark.cluster
# From the start of the container to the completion time in the status. The check itself takes a second or two. The rest is the
# imports of several pods that start on one machine at the same time.
SECONDS_TO_FAIL = 120


def server_errors(jobs: Namespace, cases: list[spec_cases.Case]) -> dict[str, str]:
    """Return the error of the API server for each case, by the name of the case; empty if it accepts the case."""
    errors = {}
    for number, case in enumerate(cases):
        manifest = {**JOB, "metadata": {"name": f"case-{number}"}, "spec": case.spec}
        done = jobs.kubectl("apply", "--dry-run=server", "--filename", "-", stdin=json.dumps(manifest), check=False)
        errors[case.name] = "" if done.returncode == 0 else done.stderr
    return errors


def test_the_api_server_accepts_what_the_models_accept(jobs: Namespace) -> None:
    errors = server_errors(jobs, spec_cases.ACCEPTED)
    assert {name: error for name, error in errors.items() if error} == {}


def test_the_api_server_refuses_what_the_models_refuse_with_the_same_message(jobs: Namespace) -> None:
    errors = server_errors(jobs, spec_cases.REFUSED)
    assert [name for name, error in errors.items() if not error] == []
    without_message = [case.name for case in spec_cases.REFUSED if case.message and case.message not in errors[case.name]]
    assert without_message == []
    without_field = [case.name for case in spec_cases.REFUSED if str(case.field).rpartition(".")[2] not in errors[case.name]]
    assert without_field == []


@pytest.mark.parametrize("name", ["a.b", "a" * 53, "1a"])
def test_the_api_server_refuses_a_name_whose_children_would_get_wrong_names(jobs: Namespace, make_job: Any, name: str) -> None:
    done = jobs.kubectl("apply", "--dry-run=server", "--filename", "-", stdin=json.dumps(make_job(name)), check=False)
    assert done.returncode != 0
    assert "metadata.name" in done.stderr


def test_a_job_is_not_changed_once_it_has_started(jobs: Namespace, make_job: Any) -> None:
    job = make_job("fixed", model={"hub": {"name": "nobody/nothing"}})
    jobs.apply(job)
    jobs.wait_for("a phase", lambda: jobs.status("fixed").get("phase"), 30, "fixed")
    assert "spec.training can't be changed once the job has started" in refusal(jobs, job, training={"maxSteps": 5})
    message = "spec.distributed and spec.pod can be changed only while the job is suspended, once it has started"
    assert message in refusal(jobs, job, distributed={"nodes": 2})
    jobs.kubectl("delete", "finetunejob", "fixed")


def refusal(jobs: Namespace, job: dict[str, Any], **spec: Any) -> str:
    """Return what the API server says to an update with these fields of the spec, or nothing if it accepts it."""
    changed = {**job, "spec": {**job["spec"], **spec}}
    return jobs.kubectl("apply", "--dry-run=server", "--filename", "-", stdin=json.dumps(changed), check=False).stderr


def test_a_suspended_job_may_be_resized_but_not_trained_in_another_way(jobs: Namespace, make_job: Any) -> None:
    job = make_job("resized", suspend=True)
    jobs.apply(job)
    jobs.wait_for("the phase", lambda: jobs.status("resized").get("phase") == "Suspended", 30, "resized")
    attempt = {"number": 1, "startTime": "2026-01-02T03:04:05Z", "completionTime": "2026-01-02T03:05:05Z", "nodes": 1}
    ran = {"status": {"startTime": attempt["startTime"], "attempt": 1, "attempts": [attempt]}}
    patch = ("--subresource=status", "--type=merge", f"--patch={json.dumps(ran)}")
    jobs.kubectl("patch", "finetunejob", "resized", *patch)
    resized = {"distributed": {"nodes": 2}, "pod": {"priorityClassName": "high"}}
    assert refusal(jobs, job, **resized) == ""
    assert refusal(jobs, job, **resized, suspend=False) == ""
    assert "spec.training can't be changed" in refusal(jobs, job, **resized, training={"maxSteps": 5})
    jobs.kubectl("delete", "finetunejob", "resized")


def started_at(pod: dict[str, Any]) -> datetime.datetime:
    """Return the time at which the trainer container started."""
    [container] = pod["status"]["containerStatuses"]
    state = container["state"].get("terminated") or container["state"]["running"]
    return datetime.datetime.fromisoformat(state["startedAt"])


def test_a_mistake_that_only_a_pod_can_find_fails_at_once_with_its_field_and_without_a_retry(
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
        assert field in status["message"], "the message that `kubectl get` shows must name it too"
        for word in words:
            assert word in failure["message"]
        assert "Traceback" not in failure["message"]
        assert "hf_of_nobody" not in json.dumps(status)
        assert status.get("restarts", {}).get("failures", 0) == 0
        assert [job["metadata"]["name"] for job in jobs.objects("jobs", f"finetune.dev/finetunejob={name}")] == [f"{name}-1"]
        [pod] = jobs.pods(name)
        assert [container["restartCount"] for container in pod["status"]["containerStatuses"]] == [0]
        took = datetime.datetime.fromisoformat(status["completionTime"]) - started_at(pod)
        print(f"{name}: Failed {took.total_seconds():.0f} s after its container started: {failure['message']}")
        assert took.total_seconds() <= SECONDS_TO_FAIL
    for name in expected:
        jobs.kubectl("delete", "finetunejob", name, "--wait=false")
