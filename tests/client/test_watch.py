"""`watch`: what it shows of a job's life, and that it outlives an API server that is away."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from client.api_server import NOW, ApiServer, refusal
from client.builders import FAILED, RUNNING, SUCCEEDED, Manifest, event, job, pod
from client.conftest import Clock
from finetune_client import FineTune, NoSuchJobError, watch
from finetune_client.follow import Sighting
from finetune_client.records import read_event, read_job

Run = Callable[..., Any]


def at_step(step: int, loss: float) -> Manifest:
    status = copy.deepcopy(RUNNING)
    status["progress"] |= {"step": step, "percent": step, "loss": loss}
    return status


def test_plain_lines_tell_what_is_new_and_nothing_twice(run: Run, server: ApiServer, clock: Clock) -> None:
    there = server.put("finetunejobs", job(status=RUNNING))
    clock.then = [
        lambda: server.put("events", event("Restarting", "NodeLost: the machine went away", kind="Warning")),
        lambda: there.update(status={**at_step(50, 0.3), "restarts": {"failures": 0, "preemptions": 1}, "attempt": 2}),
        lambda: there.update(status=at_step(50, 0.3) | {"restarts": {"failures": 0, "preemptions": 1}, "attempt": 2}),
        lambda: there.update(status=SUCCEEDED),
    ]
    result = run("watch", "news")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0] == "Running (Training): attempt 1 trains"
    assert lines[1] == "step 37/100 (37%)  loss 0.4123  23.4 samples/s  2m10s left"
    assert lines[2].startswith("event: ")
    assert lines[2].endswith("Restarting: NodeLost: the machine went away")
    assert lines[3] == "step 50/100 (50%)  loss 0.3000  23.4 samples/s  2m10s left"
    assert lines[4] == "attempt 2; restarts: 1 after preemptions"
    assert lines[5] == "evaluation after step 100: accuracy 0.9100"
    assert lines[6] == "Succeeded (Trained): trained 100 steps"
    assert lines[7] == "  kubectl finetune pull news ./news"
    assert len(lines) == 8


def test_the_command_at_the_end_leads_to_the_same_job(run: Run, server: ApiServer, clock: Clock) -> None:
    for status, command in ((SUCCEEDED, "pull news ./news"), (FAILED, "why news")):
        server.put("finetunejobs", job(status=status), "other")
        shown = run("watch", "news", "-n", "other").output
        assert shown.endswith(f"  kubectl finetune {command} --namespace other\n")

    def interrupt() -> None:
        raise KeyboardInterrupt

    server.put("finetunejobs", job(status=RUNNING), "other")
    clock.then = [interrupt]
    assert "kubectl finetune watch news --namespace other\n" in run("watch", "news", "-n", "other").output


def test_it_ends_with_1_and_the_hint_when_the_job_failed(run: Run, server: ApiServer) -> None:
    server.put("finetunejobs", job(status=FAILED))
    result = run("watch", "news")
    assert result.exit_code == 1
    for text in ("Failed (DataError): column text is missing", "Correct the data", "kubectl finetune why news"):
        assert text in result.output


def test_an_api_server_that_is_away_is_said_once_and_waited_for(run: Run, server: ApiServer, clock: Clock) -> None:
    there = server.put("finetunejobs", job(status=RUNNING))
    clock.then = [lambda: setattr(server, "away", 5), *[lambda: None] * 5, lambda: there.update(status=SUCCEEDED)]
    result = run("watch", "news")
    assert result.exit_code == 0
    assert result.output.count("can't be reached") == 1
    assert "trying again" in result.output
    assert clock.pauses[:7] == [2, 2, 4, 8, 15, 15, 2]


def test_a_job_that_is_deleted_or_made_anew_ends_it(run: Run, server: ApiServer, clock: Clock) -> None:
    server.put("finetunejobs", job(status=RUNNING))
    clock.then = [server.objects.clear]
    result = run("watch", "news")
    assert (result.exit_code, "there is no FineTuneJob news" in result.output) == (1, True)
    server.put("finetunejobs", job(status=RUNNING))
    clock.then = [lambda: server.take("finetunejobs", "news")["metadata"].update(uid="another")]
    result = run("watch", "news")
    assert (result.exit_code, "was deleted and made anew" in result.output) == (1, True)


def test_ctrl_c_leaves_the_job_running_and_says_so(run: Run, server: ApiServer, clock: Clock) -> None:
    server.put("finetunejobs", job(status=RUNNING))

    def interrupt() -> None:
        raise KeyboardInterrupt

    clock.then = [interrupt]
    result = run("watch", "news")
    assert result.exit_code == 130
    assert "news goes on; to watch it again:  kubectl finetune watch news" in result.output
    assert all(request.startswith("GET") for request in server.requests)


def test_whoever_may_not_read_events_can_watch_all_the_same(run: Run, server: ApiServer) -> None:
    server.put("finetunejobs", job(status=SUCCEEDED))
    server.answers["GET events"] = refusal(403, "Forbidden", 'User "me" cannot list resource "events"')
    assert run("watch", "news").exit_code == 0


def screen(*sightings: Sighting, past: list[tuple[int, float]] | None = None) -> str:
    """The last screen of a terminal of 100 columns."""
    view = watch.View(lambda: past or [])
    for sighting in sightings:
        view.take(sighting)
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    console.print(view.build(100))
    return console.file.getvalue()  # type: ignore[attr-defined]


def seen(status: Manifest, *events: Manifest) -> Sighting:
    manifest = job(status=status)
    manifest["metadata"] |= {"namespace": "team", "uid": "u", "creationTimestamp": NOW}
    return Sighting(read_job(manifest), [read_event({**item, "metadata": {"uid": "e"}}) for item in events])


def test_a_terminal_shows_bar_curve_evaluation_trouble_and_events() -> None:
    condition = {"type": "TrainingStalled", "status": "True", "reason": "NoStep", "message": "no step for 9m",
                 "lastTransitionTime": NOW, "observedGeneration": 1}  # fmt: skip
    status = at_step(60, 0.2) | {"evaluation": {"step": 50, "metrics": {"accuracy": 0.9}}, "conditions": [condition]}
    shown = screen(seen(at_step(40, 0.6)), seen(status, event("Started", "Attempt 1 trains.")), past=[(10, 1.5), (20, 0.9)])
    for text in ("news", "━", "step 60/100 (60%)", "1.5 ┤", "0.2 ┤", "accuracy 0.9000", "TrainingStalled: no step for 9m",
                 "Started: Attempt 1 trains."):  # fmt: skip
        assert text in shown, text


def test_a_lost_connection_keeps_the_last_figures_on_the_screen() -> None:
    first = seen(at_step(40, 0.6))
    shown = screen(first, Sighting(first.job, problem="the API server can't be reached"))
    assert "step 40/100" in shown
    assert "can't be reached; trying again" in shown


def test_steps_that_are_done_again_replace_those_that_were_lost() -> None:
    view = watch.View(list)
    for step, loss in ((10, 1.0), (20, 0.8), (30, 0.7), (12, 0.9)):
        view.take(seen(at_step(step, loss)))
    assert view.losses == {10: 1.0, 12: 0.9}


def test_no_text_of_a_cluster_steers_the_terminal(run: Run, server: ApiServer) -> None:
    evil = copy.deepcopy(FAILED)
    evil["message"] = evil["failure"]["message"] = "red \x1b[31m[bold]not bold"
    server.put("finetunejobs", job(status=evil))
    server.put("events", event("Failed", "\x1b]0;title\x07"))
    for command in ("watch", "why"):
        output = run(command, "news").output
        assert "\x1b" not in output
        assert "[bold]not bold" in output


def test_the_curve_begins_with_what_the_log_of_rank_0_tells(cluster: FineTune, server: ApiServer) -> None:
    from finetune_client.cli import _losses_so_far

    server.put("finetunejobs", job(status=RUNNING))
    server.put("pods", pod())
    server.logs["news-1-0-abcde"] = [f"{NOW} {NOW} rank 0 INFO step 10 of 100: loss 1.2500, learning rate 0.0001"]
    assert _losses_so_far(cluster.job("news")) == [(10, 1.25)]
    server.answers["GET pods/log"] = refusal(403, "Forbidden", 'User "me" cannot get resource "pods/log"')
    assert _losses_so_far(cluster.job("news")) == []


def test_following_a_job_of_python_raises_when_it_is_gone(cluster: FineTune, server: ApiServer, clock: Clock) -> None:
    server.put("finetunejobs", job(status=RUNNING))
    clock.then = [server.objects.clear]
    with pytest.raises(NoSuchJobError):
        list(cluster.job("news").follow())
