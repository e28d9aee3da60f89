"""The stopwatch tells the work of a coroutine from its waiting, and changes nothing else."""

import asyncio

import pytest

from finetune_operator.stopwatch import Stopwatch


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


async def test_waiting_is_no_work() -> None:
    clock = Clock()

    async def wait() -> None:
        await asyncio.sleep(0)
        clock.seconds += 10  # another task runs

    async def work() -> str:
        clock.seconds += 2
        await asyncio.create_task(wait())
        clock.seconds += 3
        return "done"

    stopwatch = Stopwatch(clock)
    assert await stopwatch.run(work()) == "done"
    assert (stopwatch.total_seconds, stopwatch.working_seconds) == (15, 5)


async def test_an_error_passes_through_and_its_work_counts() -> None:
    clock = Clock()

    async def fail() -> None:
        clock.seconds += 2
        raise ValueError("no")

    stopwatch = Stopwatch(clock)
    with pytest.raises(ValueError, match="no"):
        await stopwatch.run(fail())
    assert stopwatch.working_seconds == 2


async def test_a_cancellation_reaches_the_coroutine() -> None:
    cleaned_up = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned_up.append(True)

    async def run() -> None:
        await Stopwatch(Clock()).run(wait())

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned_up == [True]
