"""The work queue, with a clock that only a test advances."""

import asyncio
import contextlib

import pytest

from finetune_operator.queue import BASE_DELAY_SECONDS, MAX_DELAY_SECONDS, RetryLaterError, WorkQueue


class Clock:
    """A clock in seconds that only a test advances."""

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


def test_a_key_added_twice_is_processed_once(queue: WorkQueue[str]) -> None:
    queue.add("a")
    queue.add("a")
    assert [queue.take(), queue.take()] == ["a", None]


def test_keys_are_taken_in_the_order_in_which_they_were_added(queue: WorkQueue[str]) -> None:
    for key in ("b", "a", "c"):
        queue.add(key)
    assert [queue.take() for _ in range(3)] == ["b", "a", "c"]


def test_a_key_is_not_processed_by_two_workers_but_is_requeued(queue: WorkQueue[str]) -> None:
    queue.add("a")
    assert queue.take() == "a"
    queue.add("a")
    assert queue.take() is None
    queue.done("a")
    assert queue.take() == "a"


def test_a_key_added_while_it_is_processed_is_requeued_at_once_and_not_after_the_delay(
    queue: WorkQueue[str], clock: Clock
) -> None:
    queue.add("a")
    queue.take()
    queue.add("a")
    queue.done("a", requeue_after_seconds=60)
    assert queue.take() == "a"
    queue.done("a")
    clock.now += 1000
    assert queue.take() is None


def test_a_delayed_key_is_taken_when_it_is_due(queue: WorkQueue[str], clock: Clock) -> None:
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


def test_an_event_replaces_a_delay(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add_after("a", 60)
    queue.add("a")
    assert queue.take() == "a"
    queue.done("a")
    clock.now += 100
    assert queue.take() is None


def test_a_delay_that_ends_while_the_key_is_processed_requeues_it(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add("a")
    queue.take()
    queue.add_after("a", 1)
    clock.now += 2
    assert queue.take() is None
    queue.done("a")
    assert queue.take() == "a"


def test_the_backoff_after_errors_doubles_up_to_its_maximum_and_a_success_resets_it(queue: WorkQueue[str], clock: Clock) -> None:
    delays = []
    for _ in range(10):
        queue.add("a")
        queue.take()
        delays.append(queue.failed("a"))
    assert delays[:4] == [BASE_DELAY_SECONDS * 2**n for n in range(4)]
    assert delays[-1] == MAX_DELAY_SECONDS
    queue.add("a")
    queue.take()
    queue.done("a")
    queue.add("a")
    queue.take()
    assert queue.failed("a") == BASE_DELAY_SECONDS


def test_jitter_shortens_the_backoff_to_half_at_most(clock: Clock) -> None:
    queue: WorkQueue[str] = WorkQueue(clock=clock, jitter=lambda: 0.0)
    queue.add("a")
    queue.take()
    assert queue.failed("a") == BASE_DELAY_SECONDS / 2


def test_a_delay_that_the_server_requests_is_kept(queue: WorkQueue[str]) -> None:
    queue.add("a")
    queue.take()
    assert queue.failed("a", at_least_seconds=17) == 17


def test_an_event_does_not_shorten_a_delay_that_the_server_requested(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add("a")
    queue.take()
    queue.failed("a", at_least_seconds=17)
    queue.add("a")
    assert queue.take() is None
    clock.now += 17
    assert queue.take() == "a"


def test_depth_counts_waiting_keys(queue: WorkQueue[str]) -> None:
    assert queue.depth() == 0
    queue.add("a")
    queue.add("b")
    assert queue.depth() == 2
    queue.take()
    assert queue.depth() == 1


def test_a_queue_is_stuck_if_no_key_was_processed_while_others_wait(queue: WorkQueue[str], clock: Clock) -> None:
    clock.now += 1000
    assert queue.stuck_seconds() == 0, "there is nothing to do"
    queue.add("a")
    queue.add("b")
    clock.now += 5
    assert queue.stuck_seconds() == 5


def test_a_long_queue_that_moves_is_not_stuck(queue: WorkQueue[str], clock: Clock) -> None:
    for number in range(10_000):
        queue.add(str(number))
    for _ in range(1000):
        key = queue.take()
        assert key is not None
        clock.now += 1
        queue.done(key)
        assert queue.stuck_seconds() <= 1


def test_a_queue_is_stuck_if_one_key_stays_in_progress(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add("a")
    queue.take()
    for number in range(10):
        queue.add(str(number))
        key = queue.take()
        assert key is not None
        clock.now += 20
        queue.done(key)
    assert queue.stuck_seconds() == 200
    queue.done("a")
    assert queue.stuck_seconds() == 0


async def _run_until(queue: WorkQueue[str], handle: object, finished: asyncio.Event, workers: int = 4) -> None:
    runner = asyncio.create_task(queue.run(handle, workers))  # type: ignore[arg-type]
    await asyncio.wait_for(finished.wait(), 5)
    runner.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await runner


async def test_workers_process_different_keys_at_the_same_time_but_never_the_same_key() -> None:
    queue: WorkQueue[str] = WorkQueue()
    working: set[str] = set()
    most, runs, finished = 0, 0, asyncio.Event()

    async def handle(key: str) -> float | None:
        nonlocal most, runs
        assert key not in working
        working.add(key)
        most = max(most, len(working))
        queue.add(key)
        await asyncio.sleep(0)
        working.discard(key)
        runs += 1
        if runs == 50:
            finished.set()
        return None

    for key in "abcdef":
        queue.add(key)
    await _run_until(queue, handle, finished, workers=3)
    assert most == 3


async def test_a_key_is_retried_after_an_error_and_the_queue_keeps_running(caplog: pytest.LogCaptureFixture) -> None:
    queue: WorkQueue[str] = WorkQueue(jitter=lambda: 0.0)
    finished, runs = asyncio.Event(), []

    async def handle(key: str) -> float | None:
        runs.append(key)
        if len(runs) == 1:
            raise RetryLaterError("the server is busy", 0.0)
        if len(runs) == 2:
            raise RuntimeError("unforeseen")
        finished.set()
        return None

    queue.add("a")
    await _run_until(queue, handle, finished)
    assert runs == ["a", "a", "a"]
    assert "unforeseen" in caplog.text


async def test_a_key_whose_processing_is_cancelled_is_not_lost() -> None:
    queue: WorkQueue[str] = WorkQueue(jitter=lambda: 0.0)
    finished, runs = asyncio.Event(), 0

    async def handle(_: str) -> float | None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise asyncio.CancelledError
        finished.set()
        return None

    queue.add("a")
    await _run_until(queue, handle, finished)
    assert runs == 2


async def test_a_key_is_requeued_if_its_handler_requests_it() -> None:
    queue: WorkQueue[str] = WorkQueue()
    finished, runs = asyncio.Event(), 0

    async def handle(_: str) -> float | None:
        nonlocal runs
        runs += 1
        if runs == 3:
            finished.set()
        return 0.01

    queue.add("a")
    await _run_until(queue, handle, finished)
    assert runs == 3


def test_an_earlier_requeue_waits_for_the_delay_that_the_server_requested() -> None:
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


@pytest.mark.parametrize("turns", range(4))
async def test_a_queue_can_be_cancelled_while_a_key_arrives(turns: int) -> None:
    """asyncio.wait_for of Python 3.11 forgets the cancellation if what it waits for happens at the same time."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("later", 100)
    runner = asyncio.create_task(queue.run(lambda _: asyncio.sleep(0), 4))  # type: ignore[arg-type, return-value]
    for _ in range(5):
        await asyncio.sleep(0)
    queue.add("a")
    for _ in range(turns):
        await asyncio.sleep(0)
    runner.cancel()
    done, _ = await asyncio.wait({runner}, timeout=2)
    assert done
    assert runner.cancelled()
