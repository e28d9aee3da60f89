"""Which failures cause a restart in place, how often, and after which delay."""

import os
import pathlib
import signal
from typing import Any

import pytest

from finetune_api import resource
from finetune_api.reasons import REASONS, Reason
from finetune_api.status import Failure, Resolved
from finetune_api.wire import Report, RunConfig
from finetune_trainer.loops import skipped_batches
from finetune_trainer.pod.restart_policy import FailureCause, RestartPolicy, decide, failure_from_exit_code
from finetune_trainer.runtime.state import RestartHistory, RunState

DIED = FailureCause(Failure(reason="WorkerDied", message="it died"))


def make_policy(directory: pathlib.Path, nodes: int = 1, **recovery: Any) -> tuple[RestartPolicy, RunState]:
    spec = {"task": "text-classification", "model": {"claim": {"claimName": "m"}}, "datasets": [{"claim": {"claimName": "d"}}]}
    config = RunConfig(
        name="news",
        namespace="team",
        spec=resource.parse_spec(spec | {"recovery": recovery}),
        nodes=nodes,
        processes_per_node=1,
        output=str(directory),
    )
    state = RunState(directory)
    return RestartPolicy(config, state, cgroup_root=directory / "cgroup"), state


def fail(state: RunState, reason: Reason, rank: int = 0) -> None:
    state.write_failure(rank, Failure(reason=reason, message="m", rank=rank), REASONS[reason].symptom)


def test_the_first_restart_is_immediate_and_the_delay_grows_until_there_is_progress() -> None:
    history, delays = RestartHistory(), []
    for _ in range(3):
        decision = decide(history, DIED, step=4, max_restarts=100)
        history = decision.history
        delays.append(decision.delay_seconds)
    assert delays == [0.0, 1.0, 2.0]
    assert decide(history, DIED, step=5, max_restarts=100).delay_seconds == 0.0


def test_three_restarts_without_progress_end_the_attempt() -> None:
    history = RestartHistory(highest_step=9, restarts_without_progress=3, in_place=3)
    ended = decide(history, DIED, step=9, max_restarts=100).history.final_failure
    assert ended is not None
    assert "after each of 3 restarts" in ended.message
    assert decide(history, DIED, step=10, max_restarts=100).history.final_failure is None


def test_an_exhausted_budget_ends_the_attempt() -> None:
    assert decide(RestartHistory(in_place=1), DIED, step=100, max_restarts=2).history.in_place == 2
    assert decide(RestartHistory(in_place=2), DIED, step=100, max_restarts=2).history.final_failure == DIED.failure
    assert decide(RestartHistory(), DIED, step=100, max_restarts=0).history.final_failure == DIED.failure


@pytest.mark.parametrize(
    "reason", [Reason.DATA_ERROR, Reason.HUB_UNAVAILABLE, Reason.INTERRUPTED, Reason.OUT_OF_GPU_MEMORY, Reason.GPU_FAILED]
)
def test_a_failure_that_a_restart_in_place_cannot_fix_ends_the_attempt(reason: Reason) -> None:
    assert (
        decide(RestartHistory(), FailureCause(Failure(reason=reason, message="m")), step=1, max_restarts=9).history.final_failure
        is not None
    )


def test_a_symptom_of_another_pod_s_failure_is_not_charged_and_is_restarted_more_often() -> None:
    secondary = FailureCause(Failure(reason="CollectiveFailed", message="m"), secondary=True)
    history = RestartHistory()
    for _ in range(6):
        history = decide(history, secondary, step=0, max_restarts=0).history
        assert history.final_failure is None
    assert history.in_place == 0
    assert decide(history, secondary, step=0, max_restarts=0).history.final_failure is not None


def test_the_cause_is_the_process_that_died_without_a_report_and_not_its_peers(tmp_path: pathlib.Path) -> None:
    policy, state = make_policy(tmp_path, maxRestarts=0)
    fail(state, Reason.COLLECTIVE_FAILED, rank=0)
    assert not policy.should_restart({0: 1, 1: -signal.SIGKILL, 2: -signal.SIGTERM})
    ended = state.read_restart_history().final_failure
    assert ended is not None
    assert (ended.reason, ended.rank) == ("WorkerDied", 1)


def test_failures_of_an_earlier_generation_are_ignored(tmp_path: pathlib.Path) -> None:
    policy, state = make_policy(tmp_path, maxRestarts=5)
    fail(state, Reason.CODE_ERROR)
    assert policy.should_restart({0: 1})
    assert not make_policy(tmp_path, maxRestarts=1)[0].should_restart({0: -signal.SIGKILL})
    ended = state.read_restart_history().final_failure
    assert ended is not None
    assert ended.reason == "WorkerDied"


def test_nothing_is_restarted_after_a_stop_request(tmp_path: pathlib.Path) -> None:
    policy, state = make_policy(tmp_path, maxRestarts=5)
    state.request_stop()
    assert not policy.should_restart({0: -signal.SIGKILL})
    assert state.read_restart_history().in_place == 0


@pytest.mark.parametrize(("rows", "limit"), [(8, 4), (3, 2), (2, 1)])
def test_out_of_memory_halves_the_micro_batch_and_charges_no_restart(tmp_path: pathlib.Path, rows: int, limit: int) -> None:
    policy, state = make_policy(tmp_path, maxRestarts=0)
    state.write_report(Report(attempt=1, phase="Running", resolved=Resolved(per_device_batch_size=rows)))
    fail(state, Reason.OUT_OF_GPU_MEMORY)
    assert policy.should_restart({0: 1})
    assert state.micro_batch_limit() == limit
    assert state.read_restart_history().in_place == 0


def test_out_of_memory_ends_the_attempt_if_the_job_says_so_or_with_one_row(tmp_path: pathlib.Path) -> None:
    for number, (on_out_of_memory, rows) in enumerate((("Fail", 8), ("ShrinkMicroBatch", 1))):
        (tmp_path / str(number)).mkdir()
        policy, state = make_policy(tmp_path / str(number), onOutOfMemory=on_out_of_memory)
        state.write_report(Report(attempt=1, phase="Running", resolved=Resolved(per_device_batch_size=rows)))
        fail(state, Reason.OUT_OF_GPU_MEMORY)
        assert not policy.should_restart({0: 1})
        assert state.micro_batch_limit() is None


def test_a_skipped_batch_charges_no_restart_up_to_the_limit_of_skipped_batches(tmp_path: pathlib.Path) -> None:
    policy, state = make_policy(tmp_path, onNonFiniteLoss="SkipBatch", maxRestarts=0)
    for step in range(skipped_batches.MAX_SKIPPED + 1):
        granted = skipped_batches.record(tmp_path, step)
        fail(state, Reason.NON_FINITE_LOSS, rank=step)
        assert policy.should_restart({step: 1}) is granted
    assert state.read_restart_history().in_place == 0


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (-signal.SIGBUS, "SIGBUS, which usually means that /dev/shm is full"),
        (-signal.SIGUSR2, "SIGUSR2"),
        (3, "exit code 3 and reported no failure"),
    ],
)
def test_a_process_that_died_without_a_report_is_described(code: int, expected: str) -> None:
    assert expected in failure_from_exit_code(7, code).message
    assert "rank 7" in failure_from_exit_code(7, code).message


def report_kills(directory: pathlib.Path, kills: int, limit: str = "314572800", peak: str = "314507264") -> None:
    (directory / "cgroup").mkdir(exist_ok=True)
    for name, content in {"memory.events": f"oom_kill {kills}", "memory.max": limit, "memory.peak": peak}.items():
        (directory / "cgroup" / name).write_text(content + "\n")


@pytest.mark.parametrize("reported", [False, True], ids=["the process itself", "a process that loads its data"])
def test_a_process_that_the_kernel_killed_for_memory_is_not_restarted(tmp_path: pathlib.Path, reported: bool) -> None:
    report_kills(tmp_path, 2)
    policy, state = make_policy(tmp_path, maxRestarts=5)
    report_kills(tmp_path, 3)
    if reported:
        fail(state, Reason.WORKER_DIED)
    assert not policy.should_restart({0: 1 if reported else -signal.SIGKILL})
    ended = state.read_restart_history().final_failure
    assert ended is not None
    assert (ended.reason, ended.rank) == ("OutOfMemory", 0)
    assert ended.message.endswith("the container reached its memory limit of 300 MiB (peak 300 MiB)")
    assert "spec.pod.resources.limits.memory" in (ended.hint or "")


@pytest.mark.parametrize(
    ("limit", "peak", "expected"),
    [
        ("max", "3221225472", "the memory of the node ran out (the container has no memory limit, peak 3.0 GiB)"),
        (
            "8589934592",
            "3221225472",
            "the memory of the node ran out (the container has a memory limit of 8.0 GiB, peak 3.0 GiB)",
        ),
    ],
)
def test_a_process_that_was_killed_for_the_memory_of_its_node_is_restarted(
    tmp_path: pathlib.Path, limit: str, peak: str, expected: str
) -> None:
    policy, state = make_policy(tmp_path, maxRestarts=1)
    report_kills(tmp_path, 1, limit, peak)
    assert policy.should_restart({0: -signal.SIGKILL})
    report_kills(tmp_path, 2, limit, peak)
    assert not policy.should_restart({0: -signal.SIGKILL})
    ended = state.read_restart_history().final_failure
    assert ended is not None
    assert (ended.reason, ended.message.partition(": ")[2]) == ("WorkerDied", expected)
    assert "requests.memory" in (ended.hint or "")


def test_a_kill_explains_only_the_process_that_died_with_it(tmp_path: pathlib.Path) -> None:
    policy, state = make_policy(tmp_path, maxRestarts=1)
    report_kills(tmp_path, 1)  # for example of a process that sends metrics
    fail(state, Reason.CODE_ERROR)
    assert policy.should_restart({0: 1})
    assert not policy.should_restart({0: -signal.SIGKILL})
    ended = state.read_restart_history().final_failure
    assert ended is not None
    assert ended.reason == "WorkerDied"
    assert "memory limit" not in ended.message


def test_the_operator_says_how_many_restarts_are_left(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "FINETUNE_RESTARTS_LEFT", "0")
    assert not make_policy(tmp_path, maxRestarts=5)[0].should_restart({0: -signal.SIGKILL})
