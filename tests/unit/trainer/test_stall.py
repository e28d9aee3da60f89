"""When missing heartbeats are a stall, what is reported about it, and how a stop ends."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from finetune_api.wire import Report
from finetune_trainer.pod.interruption import Interruption, usable_seconds
from finetune_trainer.pod.stall import Watchdog, diagnose_stall, summarise_stacks
from finetune_trainer.runtime import heartbeat
from finetune_trainer.runtime.distributed import Coordinator, World
from finetune_trainer.runtime.state import ENV_STATE_DIR, RunState

RUNNING = Report(attempt=1, phase="Running", step=10, total_steps=20, remaining_seconds=20.0)  # 2 s a step


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class WatchdogHarness:
    """A watchdog over one process, with a clock that is set by hand."""

    def __init__(self, directory: pathlib.Path, timeout: float = 60.0) -> None:
        self.state, self.clock, self._beats = RunState(directory), Clock(), 0
        self.state.record_generation({0: os.getpid()})
        self.watchdog = Watchdog(self.state, timeout, self.clock)
        self.watchdog.poll()

    def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds * 2)):
            self.clock.now += 0.5
            self.watchdog.poll()

    def beat(self, stage: str) -> None:
        self._beats += 1
        path = self.state.directory / "beat-0"
        path.write_text(stage)
        os.utime(path, ns=(2**62 + self._beats, 2**62 + self._beats))


@pytest.fixture
def harness(tmp_path: pathlib.Path) -> WatchdogHarness:
    return WatchdogHarness(tmp_path)


def test_missing_heartbeats_give_a_warning_at_half_of_the_timeout_and_are_a_stall_at_its_end(harness: WatchdogHarness) -> None:
    harness.beat("training")
    harness.pass_time(29)
    assert harness.watchdog.warning(RUNNING) is None
    harness.pass_time(2)
    warning = harness.watchdog.warning(RUNNING)
    assert warning == "no sign of progress for 30 s (training); after 60 s the job goes back to its last checkpoint"
    assert not harness.watchdog.is_stalled(RUNNING)
    harness.pass_time(30)
    assert harness.watchdog.is_stalled(RUNNING)
    harness.beat("training")
    harness.pass_time(0.5)
    assert not harness.watchdog.is_stalled(RUNNING)
    assert harness.watchdog.warning(RUNNING) is None


def test_the_timeout_is_at_least_ten_usual_steps_and_half_an_hour_at_the_start(harness: WatchdogHarness) -> None:
    slow = RUNNING.model_copy(update={"remaining_seconds": 1000.0})  # 100 s a step
    assert harness.watchdog.stall_timeout(slow) == 1000
    assert harness.watchdog.stall_timeout(Report(attempt=1, phase="Initializing")) == 1800
    assert harness.watchdog.stall_timeout(RUNNING) == 60


@pytest.mark.parametrize(("stage", "seconds"), [(heartbeat.WRITING, 1800), (heartbeat.SAVING, 60)])
def test_only_the_writing_of_the_model_has_a_timeout_of_half_an_hour(
    harness: WatchdogHarness, stage: str, seconds: float
) -> None:
    harness.beat(stage)
    harness.watchdog.poll()
    assert harness.watchdog.stall_timeout(RUNNING) == seconds


def test_a_timeout_of_zero_disables_the_watchdog(tmp_path: pathlib.Path) -> None:
    harness = WatchdogHarness(tmp_path, timeout=0)
    harness.pass_time(10_000)
    assert not harness.watchdog.is_stalled(RUNNING)
    assert harness.watchdog.warning(RUNNING) is None


def test_a_process_that_waits_for_rank_0_is_not_stalled(harness: WatchdogHarness) -> None:
    harness.beat(heartbeat.WAITING)
    harness.pass_time(10_000)
    assert not harness.watchdog.is_stalled(RUNNING)


def test_a_process_that_is_stopped_while_it_waits_for_rank_0_is_stalled(harness: WatchdogHarness) -> None:
    process = subprocess.Popen(["sleep", "60"])
    harness.state.record_generation({1: process.pid})
    harness.beat(heartbeat.WAITING)
    try:
        harness.pass_time(10_000)
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        harness.pass_time(59)
        assert not harness.watchdog.is_stalled(RUNNING), "the time before it was stopped does not count"
        assert (harness.watchdog.warning(RUNNING) or "").startswith("no sign of progress for 30 s (waiting for rank 0)")
        harness.pass_time(2)
        assert harness.watchdog.is_stalled(RUNNING)
        process.send_signal(signal.SIGCONT)
        os.waitpid(process.pid, os.WCONTINUED)
        harness.pass_time(1)
        assert not harness.watchdog.is_stalled(RUNNING)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("rank", "local_rank", "waits"), [(0, 0, False), (1, 1, False), (2, 0, True), (3, 1, True)])
def test_only_other_pods_are_marked_as_waiting_for_rank_0_and_only_while_they_wait(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, rank: int, local_rank: int, waits: bool
) -> None:
    monkeypatch.setenv(ENV_STATE_DIR, str(tmp_path))
    monkeypatch.setattr(heartbeat._LastBeat, "stage", None)
    state, coordinator = RunState(tmp_path), Coordinator(World(rank, local_rank, size=1))
    heartbeat.beat("training")
    with coordinator.waiting():
        assert state.last_heartbeat()[1] == (heartbeat.WAITING if waits else "training")
    assert state.last_heartbeat()[1] == "training"


def test_time_without_polls_does_not_count(harness: WatchdogHarness) -> None:
    harness.beat("training")
    harness.watchdog.poll()
    harness.clock.now += 10_000  # the machine was suspended
    harness.watchdog.poll()
    assert harness.watchdog.idle_seconds <= 1


def test_heartbeats_of_the_same_stage_rarely_touch_the_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_STATE_DIR, str(tmp_path))
    heartbeat.beat("one")
    first = (tmp_path / "beat-0").stat()
    for _ in range(100):
        heartbeat.beat("one")
    assert (tmp_path / "beat-0").stat().st_mtime_ns == first.st_mtime_ns
    heartbeat.beat("two")
    assert RunState(tmp_path).last_heartbeat()[1] == "two"


def test_the_summary_is_the_innermost_frames_of_the_main_thread() -> None:
    stacks = """Thread 0x01 (most recent call first):
  File "/lib/threading.py", line 327 in wait

Current thread 0x02 (most recent call first):
  File "/lib/torch/distributed/distributed_c10d.py", line 3021 in all_reduce
  File "/app/loops/monitor.py", line 80 in step_done
  File "/app/loops/native.py", line 99 in run
  File "/app/train.py", line 110 in train
"""
    assert summarise_stacks(stacks) == "all_reduce (distributed_c10d.py:3021) < step_done (monitor.py:80) < run (native.py:99)"


ANSWERS = """
import faulthandler, signal, sys, time
faulthandler.register(signal.SIGUSR1, open(sys.argv[1], "a"))
print("ready", flush=True)
time.sleep(60)
"""


def test_a_rank_that_does_not_answer_is_named_first_and_the_stacks_are_in_the_log(tmp_path: pathlib.Path) -> None:
    state = RunState(tmp_path)
    processes = [
        subprocess.Popen([sys.executable, "-c", ANSWERS, str(state.stacks(rank))], stdout=subprocess.PIPE) for rank in (0, 1)
    ]
    try:
        for process in processes:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
        processes[1].send_signal(signal.SIGSTOP)
        state.record_generation({rank: process.pid for rank, process in enumerate(processes)})
        with (tmp_path / "log").open("wb") as log:
            failure = diagnose_stall(state, 600, "training", 1, log)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert (failure.reason, failure.rank) == ("Stalled", 1)
    assert failure.message.startswith(
        "no step ended for 600 s (training): rank 1 does not answer, because a signal stopped it; rank 0: <module>"
    )
    assert "most recent call first" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(("grace", "usable"), [(1, 0.5), (10, 5), (60, 54), (600, 540)])
def test_part_of_the_grace_period_is_reserved_for_the_final_report(grace: float, usable: float) -> None:
    assert usable_seconds(grace) == usable


def test_a_stop_that_takes_too_long_names_the_field_and_the_last_checkpoint(harness: WatchdogHarness) -> None:
    interruption = Interruption(60, harness.clock)
    interruption.request()
    harness.clock.now += 53
    assert not interruption.deadline_passed()
    harness.clock.now += 1
    assert interruption.deadline_passed()
    report = interruption.final_report(RUNNING)
    assert report.phase == "Interrupted"
    assert report.message is not None
    assert report.message.endswith("without a new checkpoint, because 60 seconds were too short: there is no checkpoint yet")
    assert report.checkpoint_problem is not None
    assert "spec.pod.terminationGracePeriodSeconds" in report.checkpoint_problem.message


def test_a_stop_does_not_wait_for_an_agreement_of_the_ranks_if_there_is_no_progress(harness: WatchdogHarness) -> None:
    interruption = Interruption(None, harness.clock)
    harness.beat("training")
    harness.pass_time(30)
    assert not interruption.cannot_save(RUNNING, harness.watchdog)
    interruption.request()
    harness.pass_time(9)
    assert not interruption.cannot_save(RUNNING, harness.watchdog)
    harness.pass_time(2)
    assert interruption.cannot_save(RUNNING, harness.watchdog)
    harness.beat(heartbeat.SAVING)
    harness.pass_time(30)
    assert not interruption.cannot_save(RUNNING, harness.watchdog)
    assert interruption.cannot_save(RUNNING.model_copy(update={"phase": "Interrupted"}), harness.watchdog)


def test_a_stop_does_not_wait_if_all_processes_have_ended_and_others_wait_for_a_lost_pod(
    harness: WatchdogHarness,
) -> None:
    interruption = Interruption(60, harness.clock)
    interruption.request()
    harness.beat(heartbeat.SAVING)
    harness.pass_time(5)
    assert not interruption.cannot_save(RUNNING, harness.watchdog)
    ended = subprocess.Popen(["true"])
    ended.wait()
    harness.state.record_generation({0: ended.pid})
    harness.pass_time(1)
    assert not interruption.cannot_save(RUNNING, harness.watchdog), "its parent may be about to notice"
    harness.pass_time(2)
    assert interruption.cannot_save(RUNNING, harness.watchdog)


def test_a_second_stop_request_ends_at_once() -> None:
    interruption = Interruption(None)
    interruption.request()
    assert not interruption.deadline_passed()
    interruption.request()
    assert interruption.deadline_passed()
