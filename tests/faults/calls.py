"""Requests to the API server in the terms of RBAC: verb, group, resource, subresource."""

import dataclasses
import json
import time
from collections.abc import Mapping
from typing import Any

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}
WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})


@dataclasses.dataclass(frozen=True)
class Call:
    """A request. resource: empty for a path without a resource, such as /apis. body: parsed JSON, None if there is none."""

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
    def rbac_resource(self) -> str:
        """The resource as a Role names it: resource or resource/subresource."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource

    @property
    def target(self) -> str:
        """The name of the object. For a creation, the body contains it."""
        if self.name or not isinstance(self.body, Mapping):
            return self.name
        return str(self.body.get("metadata", {}).get("name", ""))

    def is_write(self) -> bool:
        """Return whether the call changes an object."""
        return self.verb in WRITES

    def is_job_write(self) -> bool:
        """Return whether the call is a write for a job: every write except those of Events and Leases."""
        return self.is_write() and self.resource not in ("events", "leases")


@dataclasses.dataclass
class Record:
    """A call and its result.

    at: time of arrival in monotonic seconds. status: status code of the API server, 0 if the call did not reach it.
    returned: status code that the operator received, 0 if none. size: bytes of the response.
    response: parsed JSON, only for lists, creations and patches.
    """

    call: Call
    at: float = dataclasses.field(default_factory=time.monotonic)
    status: int = 0
    returned: int = 0
    size: int = 0
    response: Any = None


def read_call(method: str, path: str, query: Mapping[str, str], body: bytes = b"") -> Call:
    """Parse a request to /api/v1/… or /apis/GROUP/VERSION/…, with or without a namespace. Other paths name no resource."""
    parts = path.strip("/").split("/")
    group, rest = "", parts[2:] if parts[0] == "api" else []
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
