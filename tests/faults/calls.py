"""Requests to the API server as RBAC names them: verb, group, resource, subresource."""

import dataclasses
import json
import time
from collections.abc import Mapping
from typing import Any

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}
WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})


@dataclasses.dataclass(frozen=True)
class Call:
    """One request. resource: empty for paths that are no resource, as /apis. body: its JSON, None without one."""

    verb: str
    group: str
    resource: str
    subresource: str
    namespace: str
    name: str
    path: str
    body: Any = None
    query: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Resource with subresource, as in a Role."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource

    @property
    def target(self) -> str:
        """Name of the object, also of one that is being created."""
        if self.name or not isinstance(self.body, Mapping):
            return self.name
        return str(self.body.get("metadata", {}).get("name", ""))

    def is_write(self) -> bool:
        """Whether it changes anything."""
        return self.verb in WRITES

    def is_of_life(self) -> bool:
        """Whether it is a write that belongs to a job's life: all but events and Leases."""
        return self.is_write() and self.resource not in ("events", "leases")


@dataclasses.dataclass
class Record:
    """What became of a call. status: the API server's answer, 0 if it never got the call. told: what the operator was told.

    at: monotonic seconds when it came. size: bytes of the answer. answer: its JSON, kept for lists and creations only.
    """

    call: Call
    at: float = dataclasses.field(default_factory=time.monotonic)
    status: int = 0
    told: int = 0
    size: int = 0
    answer: Any = None


def read_call(method: str, path: str, query: Mapping[str, str], body: bytes = b"") -> Call:
    """Understand a request: /api/v1/… and /apis/GROUP/VERSION/…, with or without a namespace."""
    parts = path.strip("/").split("/")
    group, rest = "", parts[2:]
    if parts[0] == "apis":
        group, rest = (parts[1] if len(parts) > 1 else ""), parts[3:]
    namespace = ""
    if len(rest) > 2 and rest[0] == "namespaces":
        namespace, rest = rest[1], rest[2:]
    resource, name, subresource = (*rest, "", "", "")[:3]
    return Call(_verb(method, name, query), group, resource, subresource, namespace, name, path, _parse(body), dict(query))


def _verb(method: str, name: str, query: Mapping[str, str]) -> str:
    if method == "GET":
        return "watch" if query.get("watch") in ("true", "1") else "get" if name else "list"
    if method == "DELETE":
        return "delete" if name else "deletecollection"
    return _VERBS.get(method, method.lower())


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except ValueError:
        return None
