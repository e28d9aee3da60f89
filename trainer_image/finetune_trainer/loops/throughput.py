"""Measures the throughput between two logged steps. The history records it with the loss."""


class Throughput:
    """Counts steps, time and tokens. rows: number of rows in an optimizer step."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._steps, self._seconds, self._tokens = 0, 0.0, 0

    def add_step(self, seconds: float) -> None:
        """Count an optimizer step. seconds: without evaluations and checkpoints."""
        self._steps += 1
        self._seconds += seconds

    def add_tokens(self, count: int) -> None:
        """Count tokens of all processes, without padding."""
        self._tokens += count

    def read_and_reset(self) -> dict[str, float]:
        """Return seconds per step, and rows and tokens of all processes per second, since the last call; empty without a step."""
        steps, seconds, tokens = self._steps, self._seconds, self._tokens
        self._steps, self._seconds, self._tokens = 0, 0.0, 0
        if steps == 0 or seconds <= 0:
            return {}
        return {
            "stepSeconds": round(seconds / steps, 6),
            "samplesPerSecond": round(steps * self._rows / seconds, 3),
            "tokensPerSecond": round(tokens / seconds, 3),
        }
