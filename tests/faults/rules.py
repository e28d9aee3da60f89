"""Faults: what a proxy does to the calls that a rule chooses."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Literal

from faults.calls import Call

Match = Callable[[Call], bool]
_REASONS = {403: "Forbidden", 409: "Conflict", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer without the API server. Its body is a Status, unless there is one."""

    code: int
    message: str = "made up by the test"
    retry_after: int | None = None
    body: bytes | None = None

    def content(self) -> bytes:
        if self.body is not None:
            return self.body
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": self.code, "message": self.message}
        return json.dumps({**status, "reason": _REASONS.get(self.code, "Unknown")}).encode()


@dataclasses.dataclass
class Rule:
    """A fault for the calls that match: after the first ``skip`` of them, ``times`` of them (None: all).

    drop: cut the connection, "before" the call reaches the API server, or "after" it did and before the answer is given.
    answer: instead of the API server's. delay_seconds: before anything else. effect: called at the moment of the fault.
    hits counts how often it struck.
    """

    match: Match
    drop: Literal["before", "after"] | None = None
    answer: Answer | Callable[[Call], Answer] | None = None
    delay_seconds: float = 0.0
    effect: Callable[[], Any] | None = None
    skip: int = 0
    times: int | None = 1
    hits: int = 0
    _seen: int = 0

    def strikes(self, call: Call) -> bool:
        """Whether it strikes this call; counts."""
        if (self.times is not None and self.hits >= self.times) or not self.match(call):
            return False
        self._seen += 1
        if self._seen <= self.skip:
            return False
        self.hits += 1
        return True


def calls(verb: str, kind: str, name: str | None = None) -> Match:
    """Matches calls by verb and resource, or resource/subresource, as a Role has them; by the object's name if given."""
    return lambda call: call.verb == verb and call.kind == kind and (name is None or call.target == name)
