"""Which failures are healed by a restart in place, how often, and after what time."""

import os
import pathlib
import signal
from typing import Any

import pytest

from finetune_api import resource
from finetune_api.reasons import VERDICTS, Reason
from finetune_api.status import Failure, Resolved
from finetune_api.wire import Report, RunConfig
from finetune_trainer.loops import skipped_batches as skipping
from finetune_trainer.pod.restart_policy import Cause, Judge, decide, describe_death
from finetune_trainer.runtime.state import Ledger, RunState

DIED = Cause(Failure(reason="WorkerDied", message="it died"))


def judge(directory: pathlib.Path, nodes: int = 1, **recovery: Any) -> tuple[Judge, RunState]:
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
    return Judge(config, state), state


def fail(state: RunState, reason: Reason, rank: int = 0) -> None:
    state.write_failure(rank, Failure(reason=reason, message="m", rank=rank), VERDICTS[reason].symptom)


def test_the_first_restart_is_at_once_and_later_ones_wait_ever_longer_until_a_further_step() -> None:
    ledger, delays = Ledger(), []
    for _ in range(3):
        decision = decide(ledger, DIED, step=4, charges=100)
        ledger = decision.ledger
        delays.append(decision.delay_seconds)
    assert delays == [0.0, 1.0, 2.0]
    assert decide(ledger, DIED, step=5, charges=100).delay_seconds == 0.0


def test_three_restarts_without_a_further_step_are_enough() -> None:
    ledger = Ledger(furthest=9, futile=3, in_place=3)
    ended = decide(ledger, DIED, step=9, charges=100).ledger.end
    assert ended is not None
    assert "after each of 3 restarts" in ended.message
    assert decide(ledger, DIED, step=10, charges=100).ledger.end is None


def test_the_budget_is_what_was_left_of_it() -> None:
    assert decide(Ledger(in_place=1), DIED, step=100, charges=2).ledger.in_place == 2
    assert decide(Ledger(in_place=2), DIED, step=100, charges=2).ledger.end == DIED.failure
    assert decide(Ledger(), DIED, step=100, charges=0).ledger.end == DIED.failure


@pytest.mark.parametrize("reason", [Reason.DATA_ERROR, Reason.HUB_UNAVAILABLE, Reason.INTERRUPTED, Reason.OUT_OF_GPU_MEMORY])
def test_what_a_restart_in_place_cannot_heal_ends_the_attempt(reason: Reason) -> None:
    assert decide(Ledger(), Cause(Failure(reason=reason, message="m")), step=1, charges=9).ledger.end is not None


def test_a_symptom_of_another_pods_failure_is_not_charged_and_outlasts_that_pods_decision() -> None:
    symptom = Cause(Failure(reason="CollectiveFailed", message="m"), symptom=True)
    ledger = Ledger()
    for _ in range(6):
        ledger = decide(ledger, symptom, step=0, charges=0).ledger
        assert ledger.end is None
    assert ledger.in_place == 0
    assert decide(ledger, symptom, step=0, charges=0).ledger.end is not None


def test_the_cause_is_the_process_that_died_silently_and_not_its_peers(tmp_path: pathlib.Path) -> None:
    judged, state = judge(tmp_path, maxRestarts=0)
    fail(state, Reason.COLLECTIVE_FAILED, rank=0)
    assert not judged.goes_on({0: 1, 1: -signal.SIGKILL, 2: -signal.SIGTERM})
    ended = state.read_ledger().end
    assert ended is not None
    assert (ended.reason, ended.rank) == ("WorkerDied", 1)


def test_failures_of_an_earlier_round_are_over(tmp_path: pathlib.Path) -> None:
    judged, state = judge(tmp_path, maxRestarts=5)
    fail(state, Reason.CODE_ERROR)
    assert judged.goes_on({0: 1})
    assert not judge(tmp_path, maxRestarts=1)[0].goes_on({0: -signal.SIGKILL})
    ended = state.read_ledger().end
    assert ended is not None
    assert ended.reason == "WorkerDied"


def test_nothing_is_started_again_once_somebody_asked_for_the_end(tmp_path: pathlib.Path) -> None:
    judged, state = judge(tmp_path, maxRestarts=5)
    state.request_stop()
    assert not judged.goes_on({0: -signal.SIGKILL})
    assert state.read_ledger().in_place == 0


@pytest.mark.parametrize(("rows", "limit"), [(8, 4), (3, 2), (2, 1)])
def test_out_of_memory_halves_the_forward_passes_uncharged(tmp_path: pathlib.Path, rows: int, limit: int) -> None:
    judged, state = judge(tmp_path, maxRestarts=0)
    state.write_report(Report(attempt=1, phase="Running", resolved=Resolved(per_device_batch_size=rows)))
    fail(state, Reason.OUT_OF_GPU_MEMORY)
    assert judged.goes_on({0: 1})
    assert state.micro_batch_limit() == limit
    assert state.read_ledger().in_place == 0


def test_out_of_memory_ends_the_attempt_where_the_job_says_so_or_with_one_row(tmp_path: pathlib.Path) -> None:
    for number, (policy, rows) in enumerate((("Fail", 8), ("ShrinkMicroBatch", 1))):
        (tmp_path / str(number)).mkdir()
        judged, state = judge(tmp_path / str(number), onOutOfMemory=policy)
        state.write_report(Report(attempt=1, phase="Running", resolved=Resolved(per_device_batch_size=rows)))
        fail(state, Reason.OUT_OF_GPU_MEMORY)
        assert not judged.goes_on({0: 1})
        assert state.micro_batch_limit() is None


def test_a_batch_that_is_skipped_costs_no_restart_until_none_may_be_skipped_any_more(tmp_path: pathlib.Path) -> None:
    judged, state = judge(tmp_path, onNonFiniteLoss="SkipBatch", maxRestarts=0)
    for step in range(skipping.MOST_SKIPPED + 1):
        granted = skipping.record(tmp_path, step)
        fail(state, Reason.NON_FINITE_LOSS, rank=step)
        assert judged.goes_on({step: 1}) is granted
    assert state.read_ledger().in_place == 0


@pytest.mark.parametrize(
    ("code", "said"),
    [(-signal.SIGBUS, "SIGBUS, as it is when /dev/shm is full"), (-signal.SIGUSR2, "SIGUSR2"), (3, "exit code 3 without a word")],
)
def test_a_death_without_a_word_is_described(code: int, said: str) -> None:
    assert said in describe_death(7, code).message
    assert "rank 7" in describe_death(7, code).message


def test_the_operator_says_how_many_restarts_are_left(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "FINETUNE_RESTARTS_LEFT", "0")
    assert not judge(tmp_path, maxRestarts=5)[0].goes_on({0: -signal.SIGKILL})
