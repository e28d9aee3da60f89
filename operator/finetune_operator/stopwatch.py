"""Measures how long a coroutine works, and how long it waits."""

import functools
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


class Stopwatch:
    """Runs a coroutine. total_seconds: since the start of the stopwatch. working_seconds: without those in which it waited.

    What other tasks do for it is waiting, too. clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started = clock()
        self.working_seconds = 0.0

    @property
    def total_seconds(self) -> float:
        return self._clock() - self._started

    @types.coroutine
    def run(self, coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """Return the result of the coroutine."""
        step: Callable[[], Any] = functools.partial(coroutine.send, None)
        while True:
            resumed = self._clock()
            try:
                awaited = step()
            except StopIteration as end:
                result: T = end.value
                return result
            finally:
                self.working_seconds += self._clock() - resumed
            try:
                yield awaited
            except BaseException as error:  # a cancellation, which the coroutine must see
                step = functools.partial(coroutine.throw, error)
            else:
                step = functools.partial(coroutine.send, None)
