"""The progress of a training: throughput, remaining time, and the report that launcher, operator and terminal read."""

import collections
import datetime
import logging
import os
import threading
import time
from typing import Any

from finetune_api.wire import Report, Timing
from finetune_trainer.runtime import heartbeat
from finetune_trainer.runtime.state import ENV_START_TIME, RunState

log = logging.getLogger(__name__)

_WRITE_EVERY_SECONDS = 0.5
_RATE_WINDOW_STEPS = 50


def timestamp(seconds: float) -> str:
    """Return a Unix time in the format of the API: RFC 3339 in UTC, whole seconds."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Reporter:
    """Keeps the report of one process current. Only the first process of each pod writes it to the state folder."""

    def __init__(self, state: RunState, attempt: int, writes: bool) -> None:
        self._state = state
        self._writes = writes
        earlier = state.read_report()  # of processes that were restarted in place
        from_step = earlier.from_step if earlier is not None and earlier.attempt == attempt else None
        self._report = Report(attempt=attempt, phase="Initializing", from_step=from_step)
        self._written_at = 0.0
        self._startup_stages: list[tuple[str, float]] = [("imports", float(os.environ.get(ENV_START_TIME) or time.time()))]
        self._lock = threading.RLock()  # the thread that writes checkpoints also reports them
        self._steps: collections.deque[tuple[float, int, int]] = collections.deque(maxlen=_RATE_WINDOW_STEPS)

    @property
    def report(self) -> Report:
        """The current report."""
        return self._report

    def update(self, **fields: Any) -> None:
        """Change fields and write the report at once, from any thread. During the start-up a message begins a new stage."""
        with self._lock:
            self._set_fields(fields)
            if fields.get("message"):
                heartbeat.beat(fields["message"])
            if self._startup_stages and fields.get("message"):
                self._startup_stages.append((fields["message"], time.time()))
            self._write()

    def step(self, step: int, epoch: float, rows_per_step: int, tokens: int, timing: Timing) -> None:
        """Record that a step ended. Write the report at most twice a second. tokens: of all processes and all steps so far."""
        self._log_startup()
        now = time.time()
        self._steps.append((time.monotonic(), step, tokens))
        (start, first, earlier), (end, last, _) = self._steps[0], self._steps[-1]
        fields: dict[str, Any] = {"phase": "Running", "message": None, "step": step, "epoch": round(epoch, 4)}
        fields |= {"last_step_time": timestamp(now), "timing": timing}
        if last > first and end > start:
            rate = (last - first) / (end - start)
            total = self._report.total_steps or last
            fields |= {"samples_per_second": rate * rows_per_step, "remaining_seconds": (total - last) / rate}
            fields["tokens_per_second"] = (tokens - earlier) / (end - start)
        with self._lock:
            self._set_fields(fields)
            if time.monotonic() - self._written_at >= _WRITE_EVERY_SECONDS:
                self._write()

    def _log_startup(self) -> None:
        """Log once, at the first step, how long each stage of the start-up took."""
        if not self._startup_stages:
            return
        ends = [begun for _, begun in self._startup_stages[1:]] + [time.time()]
        parts = [f"{stage} {end - begun:.1f} s" for (stage, begun), end in zip(self._startup_stages, ends, strict=True)]
        log.info("first step %.1f s after the start: %s", ends[-1] - self._startup_stages[0][1], ", ".join(parts))
        self._startup_stages = []

    def _set_fields(self, fields: dict[str, Any]) -> None:
        self._report = self._report.model_copy(update=fields)

    def _write(self) -> None:
        if self._writes:
            self._state.write_report(self._report)
        self._written_at = time.monotonic()
