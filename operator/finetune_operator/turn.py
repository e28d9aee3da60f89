"""A turn in a job's life, as an event tells it."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Turn:
    """An event to be: the API's type, a reason in one word, a sentence. attempt: in which it happened, 0 before the first.

    occasion: tells turns of the same reason in the same attempt from each other.
    """

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    attempt: int
    occasion: int = 0
