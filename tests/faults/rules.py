"""Rules: which calls the proxy disturbs, and how."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Literal

from faults.calls import Call

Match = Callable[[Call], bool]
_REASONS = {403: "Forbidden", 409: "Conflict", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}


@dataclasses.dataclass(frozen=True)
class Response:
    """A response that the proxy returns without the API server. body: a Status object if None."""

    code: int
    message: str = "injected by the test"
    retry_after: int | None = None
    body: bytes | None = None

    def content(self) -> bytes:
        if self.body is not None:
            return self.body
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": self.code, "message": self.message}
        return json.dumps({**status, "reason": _REASONS.get(self.code, "Unknown")}).encode()


@dataclasses.dataclass
class Rule:
    """A fault for the calls that match.

    drop: close the operator's connection "before" the API server gets the call, or "after" it has answered.
    response: returned instead of the API server's. delay_seconds: pause before anything else.
    callback: called when the fault is injected. skip: number of matching calls to which the rule does not apply at first.
    times: number of calls after them to which it applies (None: all). hits: number of calls to which it has applied so far.
    """

    match: Match
    drop: Literal["before", "after"] | None = None
    response: Response | Callable[[Call], Response] | None = None
    delay_seconds: float = 0.0
    callback: Callable[[], Any] | None = None
    skip: int = 0
    times: int | None = 1
    hits: int = 0
    _seen: int = 0

    def applies_to(self, call: Call) -> bool:
        """Return whether the rule applies to this call, and count the call."""
        if (self.times is not None and self.hits >= self.times) or not self.match(call):
            return False
        self._seen += 1
        if self._seen <= self.skip:
            return False
        self.hits += 1
        return True


def calls(verb: str, rbac_resource: str, name: str | None = None) -> Match:
    """Match calls by verb, by resource or resource/subresource, and by the object's name if one is given."""
    return lambda call: call.verb == verb and call.rbac_resource == rbac_resource and (name is None or call.target == name)
