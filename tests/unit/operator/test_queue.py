"""The work queue, with a clock that stands still until a test moves it."""

import asyncio
import contextlib

import pytest

from finetune_operator.queue import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, RetryLaterError, WorkQueue


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> WorkQueue[str]:
    return WorkQueue(clock=clock, jitter=lambda: 1.0)


def test_a_key_added_twice_has_one_turn(queue: WorkQueue[str]) -> None:
    queue.add("a")
    queue.add("a")
    assert [queue.take(), queue.take()] == ["a", None]


def test_keys_come_in_the_order_in_which_they_were_added(queue: WorkQueue[str]) -> None:
    for key in ("b", "a", "c"):
        queue.add(key)
    assert [queue.take() for _ in range(3)] == ["b", "a", "c"]


def test_a_key_in_work_is_not_given_to_a_second_worker_but_comes_again(queue: WorkQueue[str]) -> None:
    queue.add("a")
    assert queue.take() == "a"
    queue.add("a")
    assert queue.take() is None
    queue.done("a")
    assert queue.take() == "a"


def test_a_turn_asked_for_during_work_comes_at_once_and_not_after_the_pause(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add("a")
    queue.take()
    queue.add("a")
    queue.done("a", again_after_seconds=60)
    assert queue.take() == "a"
    queue.done("a")
    clock.now += 1000
    assert queue.take() is None


def test_a_delayed_key_comes_when_it_is_due(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add_after("a", 3)
    assert queue.next_due_seconds() == 3
    clock.now += 2.9
    assert queue.take() is None
    clock.now += 0.2
    assert queue.take() == "a"


def test_the_earlier_of_two_delays_counts(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add_after("a", 10)
    queue.add_after("a", 3)
    queue.add_after("a", 20)
    clock.now += 3
    assert queue.take() == "a"
    queue.done("a")
    clock.now += 100
    assert queue.take() is None


def test_an_event_overtakes_a_delay_and_uses_it_up(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add_after("a", 60)
    queue.add("a")
    assert queue.take() == "a"
    queue.done("a")
    clock.now += 100
    assert queue.take() is None


def test_a_delay_that_runs_out_during_work_gives_another_turn(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add("a")
    queue.take()
    queue.add_after("a", 1)
    clock.now += 2
    assert queue.take() is None
    queue.done("a")
    assert queue.take() == "a"


def test_pauses_after_errors_double_up_to_the_longest_and_a_success_ends_them(queue: WorkQueue[str], clock: Clock) -> None:
    pauses = []
    for _ in range(10):
        queue.add("a")
        queue.take()
        pauses.append(queue.failed("a"))
    assert pauses[:4] == [FIRST_PAUSE_SECONDS * 2**n for n in range(4)]
    assert pauses[-1] == LONGEST_PAUSE_SECONDS
    queue.add("a")
    queue.take()
    queue.done("a")
    queue.add("a")
    queue.take()
    assert queue.failed("a") == FIRST_PAUSE_SECONDS


def test_jitter_shortens_a_pause_to_half_at_most(clock: Clock) -> None:
    queue: WorkQueue[str] = WorkQueue(clock=clock, jitter=lambda: 0.0)
    queue.add("a")
    queue.take()
    assert queue.failed("a") == FIRST_PAUSE_SECONDS / 2


def test_a_pause_that_the_server_asks_for_is_kept(queue: WorkQueue[str]) -> None:
    queue.add("a")
    queue.take()
    assert queue.failed("a", at_least_seconds=17) == 17


def test_an_event_does_not_shorten_a_pause_that_the_server_asked_for(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add("a")
    queue.take()
    queue.failed("a", at_least_seconds=17)
    queue.add("a")
    assert queue.take() is None
    clock.now += 17
    assert queue.take() == "a"


def test_depth_and_age_tell_of_what_waits_and_of_what_is_worked_on(queue: WorkQueue[str], clock: Clock) -> None:
    assert (queue.depth(), queue.oldest_seconds()) == (0, 0)
    queue.add("a")
    clock.now += 5
    queue.add("b")
    assert (queue.depth(), queue.oldest_seconds()) == (2, 5)
    queue.take()
    clock.now += 5
    assert (queue.depth(), queue.oldest_seconds()) == (1, 5)
    queue.done("a")


async def _run_until(queue: WorkQueue[str], handle: object, finished: asyncio.Event, workers: int = 4) -> None:
    runner = asyncio.create_task(queue.run(handle, workers))  # type: ignore[arg-type]
    await asyncio.wait_for(finished.wait(), 5)
    runner.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await runner


async def test_workers_work_on_different_keys_at_the_same_time_and_never_on_one() -> None:
    queue: WorkQueue[str] = WorkQueue()
    working: set[str] = set()
    most, turns, finished = 0, 0, asyncio.Event()

    async def handle(key: str) -> float | None:
        nonlocal most, turns
        assert key not in working
        working.add(key)
        most = max(most, len(working))
        queue.add(key)
        await asyncio.sleep(0)
        working.discard(key)
        turns += 1
        if turns == 50:
            finished.set()
        return None

    for key in "abcdef":
        queue.add(key)
    await _run_until(queue, handle, finished, workers=3)
    assert most == 3


async def test_an_error_costs_a_pause_and_neither_the_queue_nor_the_key(caplog: pytest.LogCaptureFixture) -> None:
    queue: WorkQueue[str] = WorkQueue(jitter=lambda: 0.0)
    finished, turns = asyncio.Event(), []

    async def handle(key: str) -> float | None:
        turns.append(key)
        if len(turns) == 1:
            raise RetryLaterError("the server is busy", 0.0)
        if len(turns) == 2:
            raise RuntimeError("unforeseen")
        finished.set()
        return None

    queue.add("a")
    await _run_until(queue, handle, finished)
    assert turns == ["a", "a", "a"]
    assert "unforeseen" in caplog.text


async def test_a_turn_that_somebody_cancels_is_not_lost() -> None:
    queue: WorkQueue[str] = WorkQueue(jitter=lambda: 0.0)
    finished, turns = asyncio.Event(), 0

    async def handle(_: str) -> float | None:
        nonlocal turns
        turns += 1
        if turns == 1:
            raise asyncio.CancelledError
        finished.set()
        return None

    queue.add("a")
    await _run_until(queue, handle, finished)
    assert turns == 2


async def test_a_turn_that_wants_another_gets_it() -> None:
    queue: WorkQueue[str] = WorkQueue()
    finished, turns = asyncio.Event(), 0

    async def handle(_: str) -> float | None:
        nonlocal turns
        turns += 1
        if turns == 3:
            finished.set()
        return 0.01

    queue.add("a")
    await _run_until(queue, handle, finished)
    assert turns == 3


def test_a_look_that_was_to_come_sooner_waits_for_what_the_server_asked_for() -> None:
    now = [0.0]
    queue: WorkQueue[str] = WorkQueue(clock=lambda: now[0], jitter=lambda: 0.0)
    queue.add("a")
    assert queue.take() == "a"
    queue.add_after("a", 0.1)
    queue.failed("a", at_least_seconds=4.0)
    queue.add_after("a", 0.1)
    now[0] = 3.9
    assert queue.take() is None
    now[0] = 4.0
    assert queue.take() == "a"
