"""`logs` shows the lines of one rank, whichever pod it runs in. `why` shows on one screen what to do."""

import copy
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from client.builders import FAILED, RUNNING, SUCCEEDED, Manifest, ended, event, job, pod
from client.conftest import Clock
from client.fake_api_server import NOW, FakeApiServer, error_response
from finetune_api import names
from finetune_client import FineTune, UnreachableError, logs, why
from finetune_client.config_flags import NO_FLAGS, ConfigFlags, build_config_flags
from finetune_client.records import read_job, read_pod

Run = Callable[..., Any]
ROOT = pathlib.Path(__file__).parents[2]


def stamped(*lines: str) -> list[str]:
    """Return the lines with timestamps as the kubelet adds them, one per second."""
    return [f"2026-11-21T10:00:{second:02d}.{second}Z {line}" for second, line in enumerate(lines)]


@pytest.fixture
def two_pods(server: FakeApiServer) -> None:
    """A job in its second attempt, with two pods of two processes each."""
    server.put("finetunejobs", job(status={**RUNNING, "attempt": 2}, distributed={"nodes": 2, "processesPerNode": 2}))
    for index in (0, 1):
        server.put("pods", pod(attempt=2, index=index))
    server.logs["news-2-1-abcde"] = stamped(
        f"{NOW} launcher INFO news, attempt 2, pod 1 of 2",
        f"{NOW} rank 2 INFO mine",
        f"{NOW} rank 3 ERROR another's",
        "  its traceback",
        '{"time": "t", "rank": 3, "message": "in JSON"}',
        '{"time": "t", "rank": 2, "message": "mine in JSON"}',
    )


@pytest.mark.usefixtures("two_pods")
def test_a_rank_is_found_in_its_pod_and_only_its_lines_are_shown(run: Run) -> None:
    shown = run("logs", "news", "--rank", 2).output.splitlines()
    assert shown == [
        f"{NOW} launcher INFO news, attempt 2, pod 1 of 2",
        f"{NOW} rank 2 INFO mine",
        '{"time": "t", "rank": 2, "message": "mine in JSON"}',
    ]
    assert "  its traceback" in run("logs", "news", "--rank", 3).output.splitlines()


@pytest.mark.usefixtures("two_pods")
def test_missing_ranks_and_attempts_are_reported(run: Run) -> None:
    assert "attempt 2 has no rank 4: the number of ranks is 4, and the first is 0" in run("logs", "news", "--rank", 4).output
    assert "news has no attempt 3: the latest is 2" in run("logs", "news", "--attempt", 3).output
    assert run("logs", "news", "--previous", "--attempt", 1).exit_code == 2


@pytest.mark.usefixtures("two_pods")
def test_the_log_of_an_attempt_whose_pods_are_deleted_is_read_from_the_volume(
    run: Run, server: FakeApiServer, output: pathlib.Path
) -> None:
    server.put("persistentvolumeclaims", {"metadata": {"name": "news-output"}})
    (output / "logs").mkdir()
    kept = f"{NOW} rank 2 INFO step 1\n{NOW} rank 3 ERROR KeyError\n{NOW} launcher ERROR CodeError\n"
    (output / "logs/news-1-1.log").write_text(kept)
    result = run("logs", "news", "--previous", "--rank", 3)
    assert result.output.splitlines() == [f"{NOW} rank 3 ERROR KeyError", f"{NOW} launcher ERROR CodeError"]
    result = run("logs", "news", "--attempt", 1, "--rank", 3, "--tail", 1)
    assert result.output.splitlines() == [f"{NOW} launcher ERROR CodeError"]
    assert server.list_names("pods") == ["news-2-0-abcde", "news-2-1-abcde"], "the helper pod is deleted"
    missing = run("logs", "news", "--attempt", 1)
    assert missing.exit_code == 1
    assert "the volume holds no log news-1-0.log: the pod wrote none" in missing.output


def test_without_pods_the_log_that_is_kept_is_read_only_on_request(run: Run, server: FakeApiServer) -> None:
    server.put("finetunejobs", job(status={**RUNNING, "phase": "Restarting", "attempt": 2}), "others")
    said = run("logs", "news", "-n", "others").output
    assert "to see what is kept of its last log: kubectl finetune logs news --attempt 2 --namespace others" in said
    run("why", "news", "-n", "others")
    assert server.list_names("pods") == []


def test_a_job_without_pods_says_why(run: Run, server: FakeApiServer) -> None:
    server.put("finetunejobs", job(status={"phase": "Queued", "message": "waits for quota"}))
    result = run("logs", "news")
    assert (result.exit_code, "news has no pods: waits for quota" in result.output) == (1, True)
    assert "news is in its first attempt" in run("logs", "news", "-p").output


def test_follow_reconnects_and_shows_each_line_once(run: Run, server: FakeApiServer, clock: Clock) -> None:
    server.put("finetunejobs", job(status=RUNNING))
    stored = server.put("pods", pod())
    name = stored["metadata"]["name"]
    server.logs[name] = stamped("one", "two")

    def end() -> None:
        server.logs[name] = stamped("one", "two", "three")
        stored["status"] = pod(state=ended(0))["status"]

    clock.then = [lambda: setattr(server, "drop_requests", 1), lambda: None, end]
    result = run("logs", "news", "--follow")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == ["one", "two", "three"]
    assert "… the API server" in result.stderr


def test_follow_waits_for_a_pod_that_has_not_started(run: Run, server: FakeApiServer, clock: Clock) -> None:
    server.put("finetunejobs", job(status=RUNNING))
    server.put("pods", pod(state=ended(0)))
    server.logs["news-1-0-abcde"] = stamped("begun")
    server.responses["GET pods/log"] = error_response(
        400, "BadRequest", 'container "trainer" is waiting to start: ContainerCreating'
    )
    clock.then = [server.responses.clear]
    result = run("logs", "news", "-f")
    assert (result.stdout.splitlines(), result.exit_code) == (["begun"], 0)
    assert "the pod has not started yet" in result.stderr


def test_follow_repeats_the_request_after_the_idle_timeout_without_a_message(
    cluster: FineTune, server: FakeApiServer, clock: Clock
) -> None:
    server.put("finetunejobs", job(status=RUNNING))
    stored = server.put("pods", pod())
    server.logs["news-1-0-abcde"] = stamped("one", "two")
    server.hanging_logs = 2
    cluster.api.idle_timeout_seconds = 0.3
    clock.then = [lambda: None, lambda: stored.update(status=pod(state=ended(0))["status"])]
    problems: list[str] = []
    assert list(cluster.job("news").logs(follow=True, on_problem=problems.append)) == ["one", "two"]
    assert problems == []
    server.hanging_logs = 1
    with pytest.raises(UnreachableError, match="can't be read"):
        list(cluster.job("news").logs())


def test_tail_shows_only_the_last_lines(run: Run, server: FakeApiServer) -> None:
    server.put("finetunejobs", job(status=SUCCEEDED))
    server.put("pods", pod(state=ended(0)))
    server.logs["news-1-0-abcde"] = stamped("one", "two", "three")
    for options in ([], ["--follow"]):
        assert run("logs", "news", "--tail", 2, *options).output.splitlines() == ["two", "three"]


def test_timestamps_are_compared_with_all_their_digits() -> None:
    pages = [["T10:00:00.5Z a", "T10:00:00.51Z b"], ["T10:00:00.5Z a", "T10:00:00.51Z b", "T10:00:00.600Z c"]]
    over = iter([False, True])
    lines = logs.follow_log(lambda since: pages.pop(0), lambda: next(over), lambda seconds: None, lambda problem: None)
    assert list(lines) == ["a", "b", "c"]


def test_the_client_parses_the_line_that_the_trainer_logs_for_a_step(caplog: pytest.LogCaptureFixture) -> None:
    source = (ROOT / "trainer_image/finetune_trainer/loops/monitor.py").read_text(encoding="utf-8")
    assert '"step %d of %d: loss %.4f' in source, "logs.read_losses reads this line"
    with caplog.at_level(logging.INFO):
        logging.getLogger().info("step %d of %d: loss %.4f%s, learning rate %.3g", 7, 100, 0.25, ", gradient norm 1.0", 1e-4)
    assert logs.read_losses(caplog.messages) == [(7, 0.25)]


def test_why_shows_a_failure_with_its_log_and_the_next_commands(run: Run, server: FakeApiServer) -> None:
    server.put("finetunejobs", job(status=FAILED, distributed={"nodes": 2}))
    server.put("pods", pod(attempt=2, index=0, state=ended(1)))
    server.put("pods", pod(attempt=2, index=1, state=ended(64)))
    server.put("events", event("Failed", "DataError: column text is missing", kind="Warning"))
    server.logs["news-2-1-abcde"] = stamped("loading", "KeyError: 'text'")
    result = run("why", "news")
    assert result.exit_code == 0
    shown = result.output
    for text in (
        "news  Failed (DataError): column text is missing",
        "failure: DataError (rank 1, node node-b, exit code 64): column text is missing",
        "NodeLost",  # the reason of the first attempt
        "news-2-1-abcde",
        "Failed: DataError: column text is missing",
        "  KeyError: 'text'",
        "Correct the data, or the field of spec.datasets that the message names.",
        "kubectl finetune logs news --rank 1",
    ):
        assert text in shown, text
    assert len(shown.splitlines()) < 40, "one screen"


def test_why_shows_what_a_pod_waits_for(run: Run, server: FakeApiServer) -> None:
    blocked = {"type": "Blocked", "status": "True", "reason": "ImagePullFailed", "message": "no such image",
               "lastTransitionTime": NOW, "observedGeneration": 1}  # fmt: skip
    status = {"phase": "Pending", "reason": "ImagePullFailed", "message": "no such image", "conditions": [blocked], "attempt": 1}
    server.put("finetunejobs", job(status=status))
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image x"}}
    server.put("pods", pod(state=waiting))
    shown = run("why", "news").output
    for text in ("Blocked (ImagePullFailed): no such image", "ImagePullBackOff", "Back-off pulling image x",
                 "Correct spec.pod.image", "kubectl describe pod news-1-0-abcde"):  # fmt: skip
        assert text in shown, text


def test_the_failure_of_an_attempt_is_shown_as_the_last_one_until_the_job_has_ended() -> None:
    failure = FAILED["failure"]
    restarting = record({"phase": "Restarting", "attempt": 1, "lastFailure": failure})
    running = record(RUNNING | {"lastFailure": failure})
    console = Console(width=200)
    with console.capture() as screen:
        console.print(why.build_view(running, [], [], []))
    assert "last failure: DataError (rank 1, node node-b, exit code 64): column text is missing" in screen.get()
    assert failure["hint"] in why.next_steps(restarting, [])
    assert failure["hint"] not in why.next_steps(running, []), "the job goes on"
    assert why.current_failure(record(SUCCEEDED | {"lastFailure": failure})) is None


def record(status: Manifest | None, name: str = "news", flags: ConfigFlags = NO_FLAGS, **spec: Any) -> Any:
    manifest = job(name, status, **spec)
    manifest["metadata"] |= {"namespace": "team", "uid": "u", "creationTimestamp": NOW}
    return read_job(manifest, flags)


NEXT = [
    (None, {}, "kubectl get pods -A -l app.kubernetes.io/name=finetune-operator"),
    (SUCCEEDED, {}, "kubectl finetune pull news ./news"),
    ({"phase": "Suspended"}, {"suspend": True}, "kubectl finetune resume news"),
    (RUNNING, {}, "kubectl finetune watch news"),
    ({"phase": "Queued", "reason": "WaitingForQueue"}, {}, "kubectl finetune watch news"),
    (FAILED, {}, "kubectl finetune submit FILE --name news-2"),
    (FAILED | {"failure": {"reason": "HubPushFailed", "message": "503"}}, {}, "kubectl finetune push news"),
]


@pytest.mark.parametrize(("status", "spec", "command"), NEXT)
def test_each_phase_has_a_next_command(status: Manifest | None, spec: Manifest, command: str) -> None:
    assert why.next_steps(record(status, **spec), [])[-1] == command


def test_no_name_is_suggested_if_it_would_be_too_long() -> None:
    longest = "n" * (names.MAX_NAME_LENGTH - 2)
    for name, suggestion in ((longest, f"{longest}-2"), (f"{longest}n", "NAME")):
        steps = why.next_steps(record(FAILED, name), [])
        assert steps[-2:] == [
            "Correct the file, and submit it under another name:",
            f"kubectl finetune submit FILE --name {suggestion}",
        ]


@pytest.mark.parametrize(("status", "spec", "command"), NEXT)
def test_each_next_command_has_the_flags_for_the_same_job(status: Manifest | None, spec: Manifest, command: str) -> None:
    flags = build_config_flags("other", "team", "far away", "my config")
    step = why.next_steps(record(status, flags=flags, **spec), [])[-1]
    cluster = " --context 'far away' --kubeconfig 'my config'"
    # The command for the operator's pods has no namespace of the job.
    assert step == command + ("" if " -A " in command else " --namespace other") + cluster


def test_kubectl_commands_and_hints_name_the_namespace(run: Run, server: FakeApiServer) -> None:
    queued = {"phase": "Pending", "reason": "Starting", "attempt": 2}
    server.put("finetunejobs", job(status=queued), "others")
    server.put("pods", pod(attempt=2, state={"waiting": {"reason": "ContainerCreating"}}), "others")
    assert "kubectl describe pod news-2-0-abcde --namespace others" in run("why", "news", "-n", "others").output
    server.put("finetunejobs", job(status=FAILED), "others")
    failed = run("why", "news", "-n", "others").output
    assert "kubectl finetune logs news --rank 1 --namespace others" in failed
    assert "kubectl finetune submit FILE --name news-2 --namespace others" in failed
    assert "--namespace" not in run("why", "news", "--namespace", "others", "--context", "there").output


def test_the_traceback_in_the_status_takes_precedence_over_the_log(run: Run, server: FakeApiServer) -> None:
    status = copy.deepcopy(FAILED)
    status["failure"]["traceback"] = "Traceback\nZeroDivisionError: division by zero"
    server.put("finetunejobs", job(status=status))
    assert "ZeroDivisionError: division by zero" in run("why", "news").output


def test_a_failure_without_a_rank_uses_the_log_of_a_failed_pod() -> None:
    status = copy.deepcopy(FAILED)
    del status["failure"]["rank"]
    failed = record(status, distributed={"nodes": 2, "processesPerNode": 2})
    pods = [{**pod(attempt=2, index=index, state=ended(index))} for index in (0, 1)]
    for item in pods:
        item["metadata"]["creationTimestamp"] = NOW
    assert why.failed_rank(failed, [read_pod(item) for item in pods]) == 2


def test_why_shows_the_findings(run: Run, server: FakeApiServer) -> None:
    finding = {"type": "NoBetterThanConstant", "message": "accuracy 0.2 against 0.2; lower the rate"}
    server.put("finetunejobs", job(status={**SUCCEEDED, "findings": [finding]}))
    assert "Findings\n  NoBetterThanConstant: accuracy 0.2 against 0.2; lower the rate" in run("why", "news").output
