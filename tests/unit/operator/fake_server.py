"""As much of an API server as the operator's own modules ask for, in memory: it stands where the Kubernetes client would.

What the real one decides (schema, CEL, garbage collection, watches) is for the tests on a cluster.
"""

import copy
import datetime
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from finetune_api import names
from finetune_operator.cluster.api import Api
from finetune_operator.observed import Manifest, write_time
from unit.operator.builders import NOW

Place = tuple[str, str, str]


class Answer:
    """A response of the client."""

    def __init__(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.headers = headers or {}
        self._text = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def read(self) -> bytes:
        return self._text


def refusal(code: int, reason: str, message: str = "no", **headers: str) -> Answer:
    return Answer(code, {"kind": "Status", "reason": reason, "message": message}, headers)


class Killed(BaseException):
    """The process that asked has come to its end."""


class FakeServer:
    """Objects by plural, namespace and name. requests: what was asked for, as "METHOD plural name"; bodies: what came with it.

    answers: for a method and a plural, as "POST jobs" or "GET pods in team", what is answered instead. kill_after: after so many
    writes that went through from the start, whoever asked is killed before it reads the answer.
    """

    def __init__(self, now: Callable[[], datetime.datetime] = lambda: NOW) -> None:
        self.objects: dict[Place, Manifest] = {}
        self.requests: list[str] = []
        self.bodies: list[Any] = []
        self.answers: dict[str, Answer | Exception] = {}
        self.kill_after: int | None = None
        self.done: list[str] = []
        self.version = 100
        self._now = now

    def api(self, **options: Any) -> Api:
        return Api(self, **options)  # type: ignore[arg-type]

    def put(self, plural: str, manifest: Manifest) -> Manifest:
        """An object that somebody else wrote."""
        metadata = manifest["metadata"]
        self.version += 1
        metadata.setdefault("uid", f"uid-{self.version}")
        metadata.setdefault("creationTimestamp", write_time(self._now()))
        metadata["resourceVersion"] = str(self.version)
        self.objects[plural, metadata["namespace"], metadata["name"]] = copy.deepcopy(manifest)
        return manifest

    def take(self, plural: str, name: str, namespace: str = "team") -> Manifest:
        """An object as it is now."""
        return self.objects[plural, namespace, name]

    def names_of(self, plural: str) -> list[str]:
        return sorted(name for kind, _, name in self.objects if kind == plural)

    def writes(self) -> list[str]:
        return [request for request in self.requests if not request.startswith("GET")]

    def forget_requests(self) -> None:
        self.requests.clear()
        self.bodies.clear()

    async def param_serialize(self, method: str, path: str, **given: Any) -> tuple[Any, ...]:
        return method, (path, dict(given["query_params"])), given["header_params"], given["body"], None

    async def call_api(self, method: str, url: Any, headers: Any, body: Any, _request_timeout: float) -> Answer:
        path, query = url
        parts = path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = parts[1] if parts[0] == "namespaces" else None
        plural, name, subresource = [*(parts[2:] if namespace else parts), "", ""][:3]
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

    def _answer(self, method: str, place: Place, query: dict[str, str], body: Any) -> Answer:
        plural, namespace, name = place
        if method == "GET" and not name:
            return Answer(200, {"metadata": {"resourceVersion": str(self.version)}, "items": list(self._select(place, query))})
        if method == "POST":
            if (plural, namespace, body["metadata"]["name"]) in self.objects:
                return refusal(409, "AlreadyExists")
            return Answer(201, self.put(plural, copy.deepcopy(body)))
        there = self.objects.get(place)
        if there is None:
            return refusal(404, "NotFound")
        if method == "GET":
            return Answer(200, there)
        asked = body.get("preconditions", body.get("metadata", {}))
        if any(field in asked and asked[field] != there["metadata"][field] for field in ("uid", "resourceVersion")):
            return refusal(409, "Conflict")
        if method == "DELETE":
            return Answer(200, self.objects.pop(place))
        if method == "PATCH":
            ours = {"manager": names.FIELD_MANAGER, "subresource": "status", "time": write_time(self._now())}
            metadata = {**there["metadata"], "managedFields": [ours]}
            return Answer(200, self.put(plural, {**there, "metadata": metadata, "status": body["status"]}))
        return Answer(200, self.put(plural, {**body, "metadata": {**there["metadata"], **body["metadata"]}}))

    def _select(self, place: Place, query: dict[str, str]) -> Iterator[Manifest]:
        for (plural, namespace, _), manifest in self.objects.items():
            if plural == place[0] and place[1] in ("", namespace):
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
