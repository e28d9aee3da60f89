"""How fast the steps since the last logged one were: what goes into the history beside the loss."""


class Pace:
    """rows: of an optimizer step."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._steps, self._seconds, self._tokens = 0, 0.0, 0

    def step(self, seconds: float) -> None:
        """Count an optimizer step; evaluations and checkpoints are none of it."""
        self._steps += 1
        self._seconds += seconds

    def tokens(self, count: int) -> None:
        """Count tokens of all processes, padding left out."""
        self._tokens += count

    def take(self) -> dict[str, float]:
        """Seconds a step, rows and tokens of all processes a second, since this was last asked; nothing without a step."""
        steps, seconds, tokens = self._steps, self._seconds, self._tokens
        self._steps, self._seconds, self._tokens = 0, 0.0, 0
        if steps == 0 or seconds <= 0:
            return {}
        return {
            "stepSeconds": round(seconds / steps, 6),
            "samplesPerSecond": round(steps * self._rows / seconds, 3),
            "tokensPerSecond": round(tokens / seconds, 3),
        }
