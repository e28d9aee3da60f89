"""An in-memory API server that supports the requests of the operator's own modules. It replaces the Kubernetes client.

It has no schema, CEL rules or garbage collection. Its watches send only what a test gives them. Tests on a cluster cover these.
"""

import asyncio
import copy
import datetime
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

from finetune_api import names
from finetune_operator.cluster.api import Api
from finetune_operator.observed import Manifest, write_time
from unit.operator.builders import NOW

ObjectKey = tuple[str, str, str]


class Answer:
    """A response as the Kubernetes client returns it."""

    def __init__(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.headers = headers or {}
        self._text = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def read(self) -> bytes:
        return self._text


class Stream:
    """The response of a watch: events, or the lines of a response. It ends after them, or with the exception."""

    status, headers = 200, dict[str, str]()

    def __init__(self, *lines: Manifest | bytes | Exception) -> None:
        self._lines: Sequence[Manifest | bytes | Exception] = lines
        self.response, self.closed = self, False

    def close(self) -> None:
        self.closed = True

    @property
    async def content(self) -> AsyncIterator[bytes]:
        for line in self._lines:
            if isinstance(line, Exception):
                raise line
            yield line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n"


def refusal(code: int, reason: str, message: str = "no", **headers: str) -> Answer:
    return Answer(code, {"kind": "Status", "reason": reason, "message": message}, headers)


class Killed(BaseException):
    """Ends the process that sent the request."""


class FakeServer:
    """Holds objects by plural, namespace and name. requests: every request, as "METHOD plural name". bodies: their bodies.

    watches: the responses of the next watches by plural; later ones send nothing. watched: the queries of all watches.
    answers: fixed answers by method and plural, as "POST jobs" or "GET pods in team". served: what discovery says.
    done: all successful writes. kill_after: number of successful writes after which the client is killed before it reads the
    answer.
    """

    def __init__(self, now: Callable[[], datetime.datetime] = lambda: NOW) -> None:
        self.objects: dict[ObjectKey, Manifest] = {}
        self.requests: list[str] = []
        self.bodies: list[Any] = []
        self.answers: dict[str, Answer | Exception] = {}
        self.watches: dict[str, list[Stream | Answer]] = defaultdict(list)
        self.watched: list[tuple[str, dict[str, str]]] = []
        self.kill_after: int | None = None
        self.done: list[str] = []
        self.version = 100
        self.served: list[Manifest] = []
        self._now = now

    def api(self, **options: Any) -> Api:
        return Api(self, **options)  # type: ignore[arg-type]

    def put(self, plural: str, manifest: Manifest) -> Manifest:
        """Store an object as if another client wrote it."""
        metadata = manifest["metadata"]
        self.version += 1
        metadata.setdefault("uid", f"uid-{self.version}")
        metadata.setdefault("creationTimestamp", write_time(self._now()))
        metadata["resourceVersion"] = str(self.version)
        self.objects[plural, metadata["namespace"], metadata["name"]] = copy.deepcopy(manifest)
        return manifest

    def take(self, plural: str, name: str, namespace: str = "team") -> Manifest:
        """Return an object in its current state."""
        return self.objects[plural, namespace, name]

    def names_of(self, plural: str) -> list[str]:
        return sorted(name for kind, _, name in self.objects if kind == plural)

    def writes(self) -> list[str]:
        return [request for request in self.requests if not request.startswith("GET")]

    def forget_requests(self) -> None:
        self.requests.clear()
        self.bodies.clear()

    async def param_serialize(self, method: str, path: str, **given: Any) -> tuple[Any, ...]:
        return method, (path, dict(given["query_params"])), given["header_params"], None, None

    async def call_api(self, method: str, url: Any, headers: Any, body: Any, _request_timeout: Any) -> Answer | Stream:
        path, query = url
        parts = path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = parts[1] if parts[:1] == ["namespaces"] else None
        plural, name, subresource = [*(parts[2:] if namespace else parts), "", "", ""][:3]
        if "watch" in query:
            self.watched.append((plural, query))
            if not self.watches[plural]:
                await asyncio.Event().wait()
            return self.watches[plural].pop(0)
        self.requests.append(" ".join(filter(None, [method, plural, f"{name}/{subresource}".strip("/")])))
        self.bodies.append(body)
        answer = self.answers.get(f"{method} {plural}") or self.answers.get(f"{method} {plural} in {namespace}")
        if isinstance(answer, Exception):
            raise answer
        answer = answer or self._answer(method, (plural, namespace or "", name), query, body)
        if method != "GET" and answer.status < 300:
            self.done.append(f"{method} {plural} {name or body['metadata']['name']}")
            if len(self.done) == self.kill_after:
                raise Killed
        return answer

    def _answer(self, method: str, key: ObjectKey, query: dict[str, str], body: Any) -> Answer:
        plural, namespace, name = key
        if not plural and method == "GET":
            return Answer(200, {"resources": self.served})
        if method == "GET" and not name:
            return Answer(200, {"metadata": {"resourceVersion": str(self.version)}, "items": list(self._select(key, query))})
        if method == "POST":
            if (plural, namespace, body["metadata"]["name"]) in self.objects:
                return refusal(409, "AlreadyExists")
            return Answer(201, self.put(plural, copy.deepcopy(body)))
        stored = self.objects.get(key)
        if stored is None:
            return refusal(404, "NotFound")
        if method == "GET":
            return Answer(200, stored)
        preconditions = body.get("preconditions", body.get("metadata", {}))
        if any(
            field in preconditions and preconditions[field] != stored["metadata"][field] for field in ("uid", "resourceVersion")
        ):
            return refusal(409, "Conflict")
        if method == "DELETE":
            return Answer(200, self.objects.pop(key))
        if method == "PATCH":
            ours = {"manager": names.FIELD_MANAGER, "subresource": "status", "time": write_time(self._now())}
            metadata = {**stored["metadata"], "managedFields": [ours]}
            return Answer(200, self.put(plural, {**stored, "metadata": metadata, "status": body["status"]}))
        return Answer(200, self.put(plural, {**body, "metadata": {**stored["metadata"], **body["metadata"]}}))

    def _select(self, kind: ObjectKey, query: dict[str, str]) -> Iterator[Manifest]:
        for (plural, namespace, _), manifest in self.objects.items():
            if plural == kind[0] and kind[1] in ("", namespace):
                labels = manifest["metadata"].get("labels", {})
                if _matches(query.get("labelSelector", ""), lambda key, labels=labels: labels.get(key)) and _matches(
                    query.get("fieldSelector", ""), lambda path, manifest=manifest: _field(manifest, path)
                ):
                    yield manifest


def _matches(selector: str, value: Callable[[str], str | None]) -> bool:
    if " in (" in selector:
        key, _, wanted = selector.rstrip(")").partition(" in (")
        return value(key) in wanted.split(",")
    for term in filter(None, selector.split(",")):
        key, unequal, wanted = term.partition("!=") if "!=" in term else term.partition("=")
        if not unequal:
            if value(key) is None:
                return False
        elif (value(key) == wanted) != (unequal == "="):
            return False
    return True


def _field(manifest: Manifest, path: str) -> str:
    if path == "status.successful":
        return str(manifest.get("status", {}).get("succeeded", 0))
    value: Any = manifest
    for part in path.split("."):
        value = (value or {}).get(part)
    return str(value or "")
