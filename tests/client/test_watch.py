"""`watch`: what it shows of a job, and that it continues after an outage of the API server."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from client.builders import FAILED, RUNNING, SUCCEEDED, Manifest, event, job, pod
from client.conftest import Clock
from client.fake_api_server import NOW, FakeApiServer, error_response
from finetune_client import FineTune, NoSuchJobError, watch
from finetune_client.follow import JobUpdate
from finetune_client.records import read_event, read_job

Run = Callable[..., Any]


def at_step(step: int, loss: float) -> Manifest:
    status = copy.deepcopy(RUNNING)
    status["progress"] |= {"step": step, "percent": step, "loss": loss}
    return status


def test_plain_lines_show_each_change_once(run: Run, server: FakeApiServer, clock: Clock) -> None:
    stored = server.put("finetunejobs", job(status=RUNNING))
    clock.then = [
        lambda: server.put("events", event("Restarting", "NodeLost: the node is gone", kind="Warning")),
        lambda: stored.update(status={**at_step(50, 0.3), "restarts": {"failures": 0, "preemptions": 1}, "attempt": 2}),
        lambda: stored.update(status=at_step(50, 0.3) | {"restarts": {"failures": 0, "preemptions": 1}, "attempt": 2}),
        lambda: stored.update(status=SUCCEEDED),
    ]
    result = run("watch", "news")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0] == "Running (Training): attempt 1 trains"
    assert lines[1] == "step 37/100 (37%)  loss 0.4123  23.4 samples/s  2m10s left"
    assert lines[2].startswith("event: ")
    assert lines[2].endswith("Restarting: NodeLost: the node is gone")
    assert lines[3] == "step 50/100 (50%)  loss 0.3000  23.4 samples/s  2m10s left"
    assert lines[4] == "attempt 2; restarts: 1 after preemptions"
    assert lines[5] == "evaluation after step 100: accuracy 0.9100"
    assert lines[6] == "Succeeded (Trained): trained 100 steps"
    assert lines[7] == "  kubectl finetune pull news ./news"
    assert len(lines) == 8


def test_the_last_command_has_the_flags_for_the_same_job(run: Run, server: FakeApiServer, clock: Clock) -> None:
    for status, command in ((SUCCEEDED, "pull news ./news"), (FAILED, "why news")):
        server.put("finetunejobs", job(status=status), "other")
        shown = run("watch", "news", "-n", "other").output
        assert shown.endswith(f"  kubectl finetune {command} --namespace other\n")

    def interrupt() -> None:
        raise KeyboardInterrupt

    server.put("finetunejobs", job(status=RUNNING), "other")
    clock.then = [interrupt]
    assert "kubectl finetune watch news --namespace other\n" in run("watch", "news", "-n", "other").output


def test_watch_exits_with_1_and_prints_the_hint_if_the_job_failed(run: Run, server: FakeApiServer) -> None:
    server.put("finetunejobs", job(status=FAILED))
    result = run("watch", "news")
    assert result.exit_code == 1
    for text in ("Failed (DataError): column text is missing", "Correct the data", "kubectl finetune why news"):
        assert text in result.output


def test_watch_reports_an_outage_of_the_api_server_once_and_continues(run: Run, server: FakeApiServer, clock: Clock) -> None:
    stored = server.put("finetunejobs", job(status=RUNNING))
    clock.then = [lambda: setattr(server, "drop_requests", 5), *[lambda: None] * 5, lambda: stored.update(status=SUCCEEDED)]
    result = run("watch", "news")
    assert result.exit_code == 0
    assert result.output.count("can't be reached") == 1
    assert "trying again" in result.output
    assert clock.pauses[:7] == [2, 2, 4, 8, 15, 15, 2]


def test_watch_ends_if_the_job_is_deleted_or_created_again(run: Run, server: FakeApiServer, clock: Clock) -> None:
    server.put("finetunejobs", job(status=RUNNING))
    clock.then = [server.objects.clear]
    result = run("watch", "news")
    assert (result.exit_code, "there is no FineTuneJob news" in result.output) == (1, True)
    server.put("finetunejobs", job(status=RUNNING))
    clock.then = [lambda: server.get("finetunejobs", "news")["metadata"].update(uid="another")]
    result = run("watch", "news")
    assert (result.exit_code, "was deleted and created again" in result.output) == (1, True)


def test_ctrl_c_leaves_the_job_running_and_says_so(run: Run, server: FakeApiServer, clock: Clock) -> None:
    server.put("finetunejobs", job(status=RUNNING))

    def interrupt() -> None:
        raise KeyboardInterrupt

    clock.then = [interrupt]
    result = run("watch", "news")
    assert result.exit_code == 130
    assert "news continues; to watch it again:  kubectl finetune watch news" in result.output
    assert all(request.startswith("GET") for request in server.requests)


def test_watch_works_without_the_right_to_read_events(run: Run, server: FakeApiServer) -> None:
    server.put("finetunejobs", job(status=SUCCEEDED))
    server.responses["GET events"] = error_response(403, "Forbidden", 'User "me" cannot list resource "events"')
    assert run("watch", "news").exit_code == 0


def build_screen(*updates: JobUpdate, history: list[tuple[int, float]] | None = None) -> str:
    """Return the screen after these updates, on a terminal of 100 columns."""
    view = watch.View(lambda: history or [])
    for update in updates:
        view.add(update)
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    console.print(view.build(100))
    return console.file.getvalue()  # type: ignore[attr-defined]


def update_of(status: Manifest, *events: Manifest) -> JobUpdate:
    manifest = job(status=status)
    manifest["metadata"] |= {"namespace": "team", "uid": "u", "creationTimestamp": NOW}
    return JobUpdate(read_job(manifest), [read_event({**item, "metadata": {"uid": "e"}}) for item in events])


def test_a_terminal_shows_bar_curve_evaluation_problems_and_events() -> None:
    condition = {"type": "TrainingStalled", "status": "True", "reason": "NoStep", "message": "no step for 9m",
                 "lastTransitionTime": NOW, "observedGeneration": 1}  # fmt: skip
    status = at_step(60, 0.2) | {"evaluation": {"step": 50, "metrics": {"accuracy": 0.9}}, "conditions": [condition]}
    shown = build_screen(
        update_of(at_step(40, 0.6)), update_of(status, event("Started", "Attempt 1 trains.")), history=[(10, 1.5), (20, 0.9)]
    )
    for text in ("news", "━", "step 60/100 (60%)", "1.5 ┤", "0.2 ┤", "accuracy 0.9000", "TrainingStalled: no step for 9m",
                 "Started: Attempt 1 trains."):  # fmt: skip
        assert text in shown, text


def test_a_lost_connection_keeps_the_last_progress_on_the_screen() -> None:
    first = update_of(at_step(40, 0.6))
    shown = build_screen(first, JobUpdate(first.job, problem="the API server can't be reached"))
    assert "step 40/100" in shown
    assert "can't be reached; trying again" in shown


def test_repeated_steps_replace_the_losses_of_later_steps() -> None:
    view = watch.View(list)
    for step, loss in ((10, 1.0), (20, 0.8), (30, 0.7), (12, 0.9)):
        view.add(update_of(at_step(step, loss)))
    assert view.losses == {10: 1.0, 12: 0.9}


def test_text_from_the_cluster_cannot_control_the_terminal(run: Run, server: FakeApiServer) -> None:
    malicious = copy.deepcopy(FAILED)
    malicious["message"] = malicious["failure"]["message"] = "red \x1b[31m[bold]not bold"
    server.put("finetunejobs", job(status=malicious))
    server.put("events", event("Failed", "\x1b]0;title\x07"))
    for command in ("watch", "why"):
        output = run(command, "news").output
        assert "\x1b" not in output
        assert "[bold]not bold" in output


def test_the_curve_begins_with_the_losses_in_the_log_of_rank_0(cluster: FineTune, server: FakeApiServer) -> None:
    from finetune_client.cli import _past_losses

    server.put("finetunejobs", job(status=RUNNING))
    server.put("pods", pod())
    server.logs["news-1-0-abcde"] = [f"{NOW} {NOW} rank 0 INFO step 10 of 100: loss 1.2500, learning rate 0.0001"]
    assert _past_losses(cluster.job("news")) == [(10, 1.25)]
    server.responses["GET pods/log"] = error_response(403, "Forbidden", 'User "me" cannot get resource "pods/log"')
    assert _past_losses(cluster.job("news")) == []


def test_follow_raises_if_the_job_is_deleted(cluster: FineTune, server: FakeApiServer, clock: Clock) -> None:
    server.put("finetunejobs", job(status=RUNNING))
    clock.then = [server.objects.clear]
    with pytest.raises(NoSuchJobError):
        list(cluster.job("news").follow())
