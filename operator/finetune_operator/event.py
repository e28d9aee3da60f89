"""An event of a FineTuneJob."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Event:
    """An event to write.

    type, reason: those of the Kubernetes event. message: one sentence. attempt: the attempt in which it happened, 0 before the
    first. occurrence: distinguishes events with the same reason in the same attempt.
    """

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    attempt: int
    occurrence: int = 0
