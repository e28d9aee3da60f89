"""When silence is a stall, and what is said of it."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from finetune_api.wire import Report
from finetune_trainer.pod.interruption import Interruption, usable_seconds
from finetune_trainer.pod.stall import Watchdog, autopsy, summarise
from finetune_trainer.runtime import heartbeat
from finetune_trainer.runtime.distributed import Control, World
from finetune_trainer.runtime.state import ENV_STATE_DIR, RunState

RUNNING = Report(attempt=1, phase="Running", step=10, total_steps=20, remaining_seconds=20.0)  # 2 s a step


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Place:
    """A watchdog over one process, with a clock that is set by hand."""

    def __init__(self, directory: pathlib.Path, timeout: float = 60.0) -> None:
        self.state, self.clock, self._beats = RunState(directory), Clock(), 0
        self.state.begin_round({0: os.getpid()})
        self.watchdog = Watchdog(self.state, timeout, self.clock)
        self.watchdog.look()

    def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds * 2)):
            self.clock.now += 0.5
            self.watchdog.look()

    def beat(self, stage: str) -> None:
        self._beats += 1
        path = self.state.directory / "beat-0"
        path.write_text(stage)
        os.utime(path, ns=(2**62 + self._beats, 2**62 + self._beats))


@pytest.fixture
def place(tmp_path: pathlib.Path) -> Place:
    return Place(tmp_path)


def test_silence_is_warned_of_at_half_of_the_time_and_is_a_stall_at_its_end(place: Place) -> None:
    place.beat("training")
    place.pass_time(29)
    assert place.watchdog.warning(RUNNING) is None
    place.pass_time(2)
    warning = place.watchdog.warning(RUNNING)
    assert warning == "no sign of progress for 30 s (training); after 60 s the job goes back to its last checkpoint"
    assert not place.watchdog.is_stalled(RUNNING)
    place.pass_time(30)
    assert place.watchdog.is_stalled(RUNNING)
    place.beat("training")
    place.pass_time(0.5)
    assert not place.watchdog.is_stalled(RUNNING)
    assert place.watchdog.warning(RUNNING) is None


def test_ten_usual_steps_are_waited_for_and_a_start_has_half_an_hour(place: Place) -> None:
    slow = RUNNING.model_copy(update={"remaining_seconds": 1000.0})  # 100 s a step
    assert place.watchdog.limit_seconds(slow) == 1000
    assert place.watchdog.limit_seconds(Report(attempt=1, phase="Initializing")) == 1800
    assert place.watchdog.limit_seconds(RUNNING) == 60


@pytest.mark.parametrize(("stage", "seconds"), [(heartbeat.WRITING, 1800), (heartbeat.SAVING, 60)])
def test_a_model_that_is_written_has_half_an_hour_too(place: Place, stage: str, seconds: float) -> None:
    place.beat(stage)
    place.watchdog.look()
    assert place.watchdog.limit_seconds(RUNNING) == seconds


def test_a_time_of_zero_waits_without_end(tmp_path: pathlib.Path) -> None:
    place = Place(tmp_path, timeout=0)
    place.pass_time(10_000)
    assert not place.watchdog.is_stalled(RUNNING)
    assert place.watchdog.warning(RUNNING) is None


def test_who_waits_for_rank_0_is_not_to_blame(place: Place) -> None:
    place.beat(heartbeat.WAITING)
    place.pass_time(10_000)
    assert not place.watchdog.is_stalled(RUNNING)


@pytest.mark.parametrize(("rank", "local_rank", "waits"), [(0, 0, False), (1, 1, False), (2, 0, True), (3, 1, True)])
def test_only_other_pods_leave_it_to_rank_0_and_only_for_so_long(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, rank: int, local_rank: int, waits: bool
) -> None:
    monkeypatch.setenv(ENV_STATE_DIR, str(tmp_path))
    monkeypatch.setattr(heartbeat._Last, "stage", None)
    state, ranks = RunState(tmp_path), Control(World(rank, local_rank, size=1))
    heartbeat.beat("training")
    with ranks.waiting():
        assert state.last_beat()[1] == (heartbeat.WAITING if waits else "training")
    assert state.last_beat()[1] == "training"


def test_time_in_which_nobody_looked_does_not_count(place: Place) -> None:
    place.beat("training")
    place.watchdog.look()
    place.clock.now += 10_000  # the machine was asleep
    place.watchdog.look()
    assert place.watchdog.idle_seconds <= 1


def test_beats_of_the_same_stage_cost_a_touch_now_and_then(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_STATE_DIR, str(tmp_path))
    heartbeat.beat("one")
    first = (tmp_path / "beat-0").stat()
    for _ in range(100):
        heartbeat.beat("one")
    assert (tmp_path / "beat-0").stat().st_mtime_ns == first.st_mtime_ns
    heartbeat.beat("two")
    assert RunState(tmp_path).last_beat()[1] == "two"


def test_the_summary_is_the_innermost_frames_of_the_main_thread() -> None:
    stacks = """Thread 0x01 (most recent call first):
  File "/lib/threading.py", line 327 in wait

Current thread 0x02 (most recent call first):
  File "/lib/torch/distributed/distributed_c10d.py", line 3021 in all_reduce
  File "/app/loops/watch.py", line 80 in step_done
  File "/app/loops/native.py", line 99 in run
  File "/app/train.py", line 110 in train
"""
    assert summarise(stacks) == "all_reduce (distributed_c10d.py:3021) < step_done (watch.py:80) < run (native.py:99)"


ANSWERS = """
import faulthandler, signal, sys, time
faulthandler.register(signal.SIGUSR1, open(sys.argv[1], "a"))
print("ready", flush=True)
time.sleep(60)
"""


def test_who_does_not_answer_is_named_first_and_the_stacks_are_in_the_log(tmp_path: pathlib.Path) -> None:
    state = RunState(tmp_path)
    processes = [
        subprocess.Popen([sys.executable, "-c", ANSWERS, str(state.stacks(rank))], stdout=subprocess.PIPE) for rank in (0, 1)
    ]
    try:
        for process in processes:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
        processes[1].send_signal(signal.SIGSTOP)
        state.begin_round({rank: process.pid for rank, process in enumerate(processes)})
        with (tmp_path / "log").open("wb") as log:
            failure = autopsy(state, 600, "training", 1, log)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert (failure.reason, failure.rank) == ("Stalled", 1)
    assert failure.message.startswith("no step ended for 600 s (training): rank 1 does not answer (stopped?); rank 0: <module>")
    assert "most recent call first" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(("grace", "usable"), [(1, 0.5), (10, 5), (60, 54), (600, 540)])
def test_of_the_grace_period_enough_is_left_for_the_last_word(grace: float, usable: float) -> None:
    assert usable_seconds(grace) == usable


def test_an_end_that_takes_too_long_names_the_field_and_the_checkpoint_that_counts(place: Place) -> None:
    asked = Interruption(60, place.clock)
    asked.ask()
    place.clock.now += 53
    assert not asked.time_is_over()
    place.clock.now += 1
    assert asked.time_is_over()
    report = asked.last_word(RUNNING)
    assert report.phase == "Interrupted"
    assert report.message is not None
    assert report.message.endswith("without another checkpoint, as 60 seconds were too short: there is no checkpoint yet")
    assert report.checkpoint_problem is not None
    assert "spec.pod.terminationGracePeriodSeconds" in report.checkpoint_problem.message


def test_the_agreement_is_not_waited_for_when_nothing_moves_any_more(place: Place) -> None:
    asked = Interruption(None, place.clock)
    place.beat("training")
    place.pass_time(30)
    assert not asked.is_hopeless(RUNNING, place.watchdog)
    asked.ask()
    place.pass_time(9)
    assert not asked.is_hopeless(RUNNING, place.watchdog)
    place.pass_time(2)
    assert asked.is_hopeless(RUNNING, place.watchdog)
    place.beat(heartbeat.SAVING)
    place.pass_time(30)
    assert not asked.is_hopeless(RUNNING, place.watchdog)
    assert asked.is_hopeless(RUNNING.model_copy(update={"phase": "Interrupted"}), place.watchdog)


def test_nothing_is_waited_for_when_all_processes_have_ended_and_others_wait_for_a_pod_that_is_gone(place: Place) -> None:
    asked = Interruption(60, place.clock)
    asked.ask()
    place.beat(heartbeat.SAVING)
    place.pass_time(5)
    assert not asked.is_hopeless(RUNNING, place.watchdog)
    ended = subprocess.Popen(["true"])
    ended.wait()
    place.state.begin_round({0: ended.pid})
    place.pass_time(1)
    assert not asked.is_hopeless(RUNNING, place.watchdog), "whoever started it may just be finding out"
    place.pass_time(2)
    assert asked.is_hopeless(RUNNING, place.watchdog)


def test_asked_twice_it_ends_at_once() -> None:
    asked = Interruption(None)
    asked.ask()
    assert not asked.time_is_over()
    asked.ask()
    assert asked.time_is_over()
