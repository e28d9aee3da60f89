"""`submit`, `list`, `suspend` and `resume`, and the messages for errors of the cluster."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from client.builders import FAILED, RUNNING, SUCCEEDED, SUSPENDED, job
from client.conftest import Clock
from client.fake_api_server import TOKEN, FakeApiServer, error_response
from finetune_client import FineTune, NotConfiguredError

Run = Callable[..., Any]


def write(path: pathlib.Path, *jobs: Any) -> pathlib.Path:
    path.write_text(yaml.safe_dump_all(jobs))
    return path


def test_submit_creates_the_job_unchanged_and_prints_the_next_command(
    run: Run, server: FakeApiServer, tmp_path: pathlib.Path
) -> None:
    given = job(suspend=False)
    given["metadata"]["labels"] = {"team": "news"}
    result = run("submit", write(tmp_path / "a.yaml", given))
    assert result.exit_code == 0
    assert result.output.splitlines() == ["created finetunejob news in namespace team", "  kubectl finetune watch news"]
    created = server.get("finetunejobs", "news")
    assert created["spec"] == given["spec"], "it has no default values"
    assert created["metadata"]["labels"] == {"team": "news"}
    assert server.tokens == {f"Bearer {TOKEN}"}


def test_the_options_for_name_and_namespace_take_precedence(run: Run, server: FakeApiServer, tmp_path: pathlib.Path) -> None:
    file = write(tmp_path / "a.yaml", job())
    assert run("submit", file, "--name", "again", "-n", "lab").exit_code == 0
    assert server.get("finetunejobs", "again", "lab")
    assert run("submit", file, "--context", "there").exit_code == 0
    assert server.get("finetunejobs", "news", "others")


def test_the_namespace_of_the_file_is_used_and_a_contradicting_option_is_refused(
    run: Run, server: FakeApiServer, tmp_path: pathlib.Path
) -> None:
    given = job()
    given["metadata"]["namespace"] = "lab"
    file = write(tmp_path / "a.yaml", given)
    result = run("submit", file)
    assert server.get("finetunejobs", "news", "lab")
    assert "watch news --namespace lab" in result.output
    result = run("submit", file, "--namespace", "team")
    assert result.exit_code == 2
    assert "metadata.namespace is lab, but namespace team is selected" in result.output


def test_no_job_is_created_if_one_of_them_contradicts_the_command_line(
    run: Run, server: FakeApiServer, tmp_path: pathlib.Path
) -> None:
    second = job("second")
    second["metadata"]["namespace"] = "lab"
    files = [write(tmp_path / "a.yaml", job("first")), write(tmp_path / "b.yaml", second)]
    result = run("submit", *files, "-n", "other")
    assert result.exit_code == 2
    assert "metadata.namespace is lab, but namespace other is selected" in result.output
    assert server.requests == []


def test_printed_commands_have_the_flags_for_the_same_job(
    run: Run, server: FakeApiServer, kubeconfig: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    file = write(tmp_path / "a.yaml", job())
    assert "  kubectl finetune watch news --namespace other\n" in run("submit", file, "-n", "other").output
    flags = ["--context", "there", "--kubeconfig", kubeconfig]
    added = f" --context there --kubeconfig {kubeconfig}\n"
    assert f"  kubectl finetune watch news{added}" in run("submit", file, *flags).output
    assert f"kubectl finetune resume news{added}" in run("suspend", "news", *flags).output
    assert f"kubectl finetune watch news{added}" in run("resume", "news", *flags).output
    assert f"`kubectl finetune list --namespace empty{added.rstrip()}`" in run("why", "zzz", "-n", "empty", *flags).output
    assert "--namespace" not in run("resume", "news", "-n", "others", "--context", "there").output
    missing = run("list", "--context", "elsewhere", "--kubeconfig", kubeconfig).output
    assert f"`kubectl config get-contexts --kubeconfig {kubeconfig}`" in missing


def test_an_invalid_file_is_refused_with_line_numbers_before_any_request(
    run: Run, server: FakeApiServer, tmp_path: pathlib.Path
) -> None:
    good, bad = job("good"), job("bad", training={"epoch": 3})
    file = write(tmp_path / "a.yaml", good, bad)
    result = run("submit", file)
    assert result.exit_code == 2
    line = file.read_text().splitlines().index("    epoch: 3") + 1
    assert f"error: {file}:{line}: spec.training.epoch: unknown field" in result.output
    assert server.requests == []


@pytest.mark.parametrize("option", [["--name", "x"], ["--watch"]])
def test_name_and_watch_need_a_single_job(run: Run, server: FakeApiServer, tmp_path: pathlib.Path, option: list[str]) -> None:
    result = run("submit", write(tmp_path / "a.yaml", job("a"), job("b")), *option)
    assert (result.exit_code, server.requests) == (2, [])


def test_submit_reads_standard_input(run: Run, server: FakeApiServer) -> None:
    assert run("submit", "-", stdin=yaml.safe_dump(job())).exit_code == 0
    assert server.list_names("finetunejobs") == ["news"]


def test_a_file_without_a_job_is_refused(run: Run, tmp_path: pathlib.Path) -> None:
    result = run("submit", write(tmp_path / "a.yaml", {"kind": "ConfigMap"}))
    assert result.exit_code == 2
    assert "no FineTuneJob in" in result.output


def test_submit_with_watch_watches_the_job(run: Run, server: FakeApiServer, clock: Clock, tmp_path: pathlib.Path) -> None:
    clock.then = [lambda: server.get("finetunejobs", "news").update(status=SUCCEEDED)]
    result = run("submit", write(tmp_path / "a.yaml", job()), "--watch")
    assert result.exit_code == 0
    assert "Pending: the operator has not seen it yet" in result.output
    assert "Succeeded (Trained): trained 100 steps" in result.output


TAKEN = "FineTuneJob news already exists in namespace team: choose another name"
RULE = error_response(
    422,
    "Invalid",
    'FineTuneJob.finetune.dev "news" is invalid: spec: Invalid value: "object": write epochs or maxSteps, not both',
    causes=[{"field": "spec.training", "message": 'Invalid value: "object": write epochs or maxSteps, not both'}],
)
CLUSTER_ERRORS = [
    (RULE, "error: spec.training: write epochs or maxSteps, not both"),
    (
        error_response(403, "Forbidden", 'User "me" cannot create resource "finetunejobs"'),
        "you may not create finetunejobs in namespace",
    ),
    (error_response(403, "Forbidden", "exceeded quota: jobs, used: 3"), "error: exceeded quota: jobs, used: 3"),
    (
        error_response(404, "NotFound", 'namespaces "team" not found', kind="namespaces", name="team"),
        "there is no namespace team",
    ),
    (error_response(401, "Unauthorized", "Unauthorized"), "does not accept the credentials of the kubeconfig"),
    (error_response(503, "ServiceUnavailable", "etcd is away"), "can't answer at the moment (503 etcd is away)"),
    ((502, b"<html>Bad gateway</html>"), "can't answer at the moment (502)"),
]


@pytest.mark.parametrize(("response", "sentence"), CLUSTER_ERRORS)
def test_each_error_of_the_cluster_is_one_sentence(
    run: Run, server: FakeApiServer, tmp_path: pathlib.Path, response: tuple[int, bytes], sentence: str
) -> None:
    server.responses["POST finetunejobs"] = response
    result = run("submit", write(tmp_path / "a.yaml", job()))
    assert result.exit_code == 1
    assert sentence in result.output
    assert len(result.output.splitlines()) == 1


def test_a_taken_name_is_reported(run: Run, server: FakeApiServer, tmp_path: pathlib.Path) -> None:
    server.put("finetunejobs", job())
    result = run("submit", write(tmp_path / "a.yaml", job()))
    assert result.exit_code == 1
    assert TAKEN in result.output


def test_a_cluster_without_the_crd_is_reported(run: Run, server: FakeApiServer, tmp_path: pathlib.Path) -> None:
    server.crd_installed = False
    for command in (["list"], ["watch", "news"], ["submit", write(tmp_path / "a.yaml", job())]):
        result = run(*command)
        assert result.exit_code == 1
        assert "the cluster has no CRD for FineTuneJobs: install the operator" in result.output


def test_a_missing_job_is_reported_with_similar_names(run: Run, server: FakeApiServer) -> None:
    server.put("finetunejobs", job("news-large"))
    result = run("why", "new-large")
    assert result.exit_code == 1
    assert "there is no FineTuneJob new-large in namespace team; similar names: news-large" in result.output
    assert "`kubectl finetune list`" in run("why", "zzz").output


def test_a_missing_connection_and_a_missing_kubeconfig_are_reported(
    run: Run, server: FakeApiServer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.drop_requests = 1
    result = run("list")
    assert result.exit_code == 1
    assert f"the API server {server.address} can't be reached" in result.output
    assert "there is no kubeconfig at /nowhere" in run("list", "--kubeconfig", "/nowhere").output
    assert "has no context elsewhere" in run("list", "--context", "elsewhere").output
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "broken"))
    for text in ("- not\n- a kubeconfig\n", "not: [YAML\n", "kind: Config\n"):
        (tmp_path / "broken").write_text(text)
        with pytest.raises(NotConfiguredError, match="can't be used"):
            FineTune()


def test_debug_shows_the_traceback(run: Run, server: FakeApiServer, cluster: FineTune) -> None:
    from click.testing import CliRunner

    from finetune_client.cli import cli

    result = CliRunner().invoke(cli, ["why", "zzz", "--debug"])
    assert type(result.exception).__name__ == "NoSuchJobError"


def test_list_shows_unfinished_jobs_first(run: Run, server: FakeApiServer) -> None:
    server.put("finetunejobs", job("done", SUCCEEDED))
    server.put("finetunejobs", job("broken", FAILED))
    restarts = {"total": 5, "failures": 2, "inPlace": 1, "preemptions": 2}
    server.put("finetunejobs", job("trains", {**RUNNING, "restarts": restarts}))
    server.put("finetunejobs", job("elsewhere"), "others")
    header, *rows = run("list").output.splitlines()
    assert header.split() == ["NAME", "PHASE", "REASON", "PROGRESS", "STEP", "LOSS", "LEFT", "RESTARTS", "AGE"]
    assert [row.split()[0] for row in rows] == ["trains", "broken", "done"]
    assert rows[0].split()[1:8] == ["Running", "Training", "37%", "37", "0.4123", "2m10s", "5"]
    header, *rows = run("list", "-A").output.splitlines()
    assert [row.split()[:2] for row in rows[:2]] == [["others", "elsewhere"], ["team", "trains"]]
    assert [item["metadata"]["name"] for item in json.loads(run("list", "-o", "json").output)] == ["trains", "broken", "done"]
    assert "There is no FineTuneJob in namespace empty." in run("list", "-n", "empty").output


def test_suspend_and_resume_change_only_spec_suspend(run: Run, server: FakeApiServer, clock: Clock) -> None:
    stored = server.put("finetunejobs", job(status=RUNNING))
    before = dict(stored["spec"])
    assert "is being suspended" in run("suspend", "news").output
    assert stored["spec"] == {**before, "suspend": True}
    stopping = {"phase": "Suspended", "reason": "Stopping"}
    clock.then = [lambda: stored.update(status=stopping), lambda: stored.update(status=SUSPENDED)]
    assert "news is suspended; to resume it:  kubectl finetune resume news" in run("suspend", "news", "--wait").output
    assert clock.then == [], "the command waits until the pods are gone"
    clock.then = [lambda: stored.update(status=RUNNING)]
    assert run("resume", "news", "--wait").exit_code == 0
    assert stored["spec"] == {**before, "suspend": False}


def test_suspend_and_resume_report_a_job_that_succeeded_in_the_meantime(run: Run, server: FakeApiServer, clock: Clock) -> None:
    stored = server.put("finetunejobs", job(status=RUNNING))
    clock.then = [lambda: stored.update(status=SUCCEEDED)]
    result = run("suspend", "news", "--wait")
    assert (result.exit_code, "news succeeded before it was suspended" in result.output) == (1, True)
    stored["status"] = {"phase": "Suspended"}
    clock.then = [lambda: stored.update(status=SUCCEEDED)]
    result = run("resume", "news", "--wait")
    assert (result.exit_code, result.output) == (
        0, "news has succeeded; to fetch the model:  kubectl finetune pull news ./news\n",
    )  # fmt: skip


@pytest.mark.parametrize("command", ["suspend", "resume"])
def test_ctrl_c_during_wait_exits_with_130(run: Run, server: FakeApiServer, clock: Clock, command: str) -> None:
    server.put("finetunejobs", job(status={"phase": "Pending"}))

    def interrupt() -> None:
        raise KeyboardInterrupt

    clock.then = [interrupt]
    result = run(command, "news", "--wait")
    assert (result.exit_code, result.output.strip()) == (130, "")


def test_a_finished_job_is_not_suspended(run: Run, server: FakeApiServer) -> None:
    server.put("finetunejobs", job(status=SUCCEEDED))
    result = run("suspend", "news")
    assert (result.exit_code, "news has succeeded already" in result.output) == (1, True)
    assert not any(request.startswith("PATCH") for request in server.requests)


def test_every_command_has_an_example(run: Run) -> None:
    from finetune_client.cli import cli

    for name in cli.commands:
        result = run(name, "--help")
        assert f"Example:  kubectl finetune {name}" in result.output, name
