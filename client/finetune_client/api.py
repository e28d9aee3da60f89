"""Requests to the API server in its own JSON; each refusal becomes an error with one sentence."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import urllib3.exceptions
import websocket
from kubernetes.client import ApiClient
from kubernetes.client.exceptions import ApiException
from kubernetes.stream.ws_client import ERROR_CHANNEL, STDERR_CHANNEL, STDOUT_CHANNEL, create_websocket

from finetune_api import names
from finetune_client.errors import PullError, UnreachableError
from finetune_client.refusals import build_error

Manifest = dict[str, Any]

_TIMEOUT_SECONDS = 30
_PAGE_SIZE = 500
# A log or a transfer that is silent for longer may be a connection that is gone.
SILENCE_SECONDS = 60

PATHS = {
    names.PLURAL: f"/apis/{names.GROUP}/{names.VERSION}/namespaces/{{}}/{names.PLURAL}",
    "pods": "/api/v1/namespaces/{}/pods",
    "events": "/api/v1/namespaces/{}/events",
    "persistentvolumeclaims": "/api/v1/namespaces/{}/persistentvolumeclaims",
}
# How RBAC calls the methods.
_VERBS = {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}


class Api:
    """Get, list, create, patch, delete, logs and exec; raises ClientError.

    namespace: of a list None for all of them. Plurals are the keys of ``PATHS``. silence_seconds: after so long without a
    byte a stream is taken for broken.
    """

    def __init__(self, client: ApiClient, silence_seconds: float = SILENCE_SECONDS) -> None:
        self._client = client
        self.silence_seconds = silence_seconds

    def get(self, plural: str, namespace: str, name: str) -> Manifest:
        """The object; NotFoundError if there is none."""
        return self._ask("GET", plural, namespace, name)

    def list(self, plural: str, namespace: str | None, **query: str) -> list[Manifest]:
        """The objects that match."""
        found: list[Manifest] = []
        following: str | None = None
        while following != "":
            more = {"limit": str(_PAGE_SIZE), **({"continue": following} if following else {})}
            page = self._ask("GET", plural, namespace, query={**query, **more})
            following = page["metadata"].get("continue", "")
            found += page["items"]
        return found

    def create(self, plural: str, namespace: str, manifest: Manifest) -> Manifest:
        """Create an object; NameTakenError if there is one of that name."""
        return self._ask("POST", plural, namespace, body=manifest)

    def patch(self, plural: str, namespace: str, name: str, change: Manifest) -> Manifest:
        """Merge a change into an object."""
        return self._ask("PATCH", plural, namespace, name, body=change, content_type="application/merge-patch+json")

    def delete(self, plural: str, namespace: str, name: str, uid: str, grace_seconds: int | None = None) -> None:
        """Delete that very object, what it owns in the background; NotFoundError if it is gone."""
        options: Manifest = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        self._ask("DELETE", plural, namespace, name, body=options)

    def stream_log(self, namespace: str, pod: str, **query: str) -> Iterator[str]:
        """Lines of a pod's log, without their ends; UnreachableError where the connection breaks.

        query: as of the API server. With follow it may end before the log does: after a minute without a line.
        """
        where = f"{PATHS['pods'].format(namespace)}/{pod}/log"
        response = self._send("GET", where, query, timeout=(_TIMEOUT_SECONDS, self.silence_seconds))
        if response.status != 200:
            raise build_error(response.status, response.data, "get", "pods/log", namespace, pod)
        rest = b""
        try:
            for piece in response.stream(2**16):
                *lines, rest = (rest + piece).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
        except urllib3.exceptions.ReadTimeoutError as error:
            if "follow" in query:
                return  # nobody writes; or the connection is gone, which whoever follows finds out when it asks again
            raise UnreachableError(f"the log of {pod} does not come: no answer for {self.silence_seconds:g} s") from error
        except urllib3.exceptions.HTTPError as error:
            raise UnreachableError(f"the connection to the log of {pod} broke: {type(error).__name__}") from error
        finally:
            response.close()
        if rest:
            yield rest.decode(errors="replace")

    def execute(self, namespace: str, pod: str, container: str, command: Sequence[str]) -> Iterator[tuple[int, bytes]]:
        """Run a command in a container: (STDOUT_CHANNEL or STDERR_CHANNEL, bytes) as they come.

        Not through kubernetes.stream: it keeps all that ever came in memory, and copies it for each frame. Raises PullError when
        the command fails and UnreachableError when the connection ends before the command.
        """
        query = [("command", word) for word in command]
        query += [("container", container), ("stdout", "true"), ("stderr", "true")]
        _, url, headers, _, _ = self._client.param_serialize(
            "GET", f"{PATHS['pods'].format(namespace)}/{pod}/exec", query_params=query, auth_settings=["BearerToken"]
        )
        try:
            address = "ws" + url.removeprefix("http")
            socket = create_websocket(self._client.configuration, address, headers)  # type: ignore[no-untyped-call]
        except websocket.WebSocketBadStatusException as error:
            raise build_error(error.status_code, error.resp_body or b"", "create", "pods/exec", namespace, pod) from error
        except (websocket.WebSocketException, OSError) as error:
            raise self._unreachable(error) from error
        socket.settimeout(self.silence_seconds)
        with contextlib.closing(socket):
            yield from _read_frames(socket)

    def _ask(
        self,
        method: str,
        plural: str,
        namespace: str | None,
        name: str = "",
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        content_type: str = "application/json",
    ) -> Manifest:
        path = PATHS[plural].format(namespace) if namespace else PATHS[plural].replace("/namespaces/{}", "")
        response = self._send(method, f"{path}/{name}" if name else path, query or {}, body, content_type)
        verb = "list" if method == "GET" and not name else _VERBS[method]
        try:
            text: bytes = response.data
        except urllib3.exceptions.HTTPError as error:
            raise self._unreachable(error) from error
        if not 200 <= response.status <= 299:
            raise build_error(response.status, text, verb, plural, namespace, name)
        answer: Manifest = json.loads(text)
        return answer

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Manifest | None = None,
        content_type: str = "application/json",
        timeout: float | tuple[float, float] = _TIMEOUT_SECONDS,
    ) -> urllib3.HTTPResponse:
        _, url, headers, content, _ = self._client.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            answer = self._client.call_api(method, url, headers, content, _request_timeout=timeout)
        except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
            raise self._unreachable(error) from error
        response: urllib3.HTTPResponse = answer.response
        return response

    def _unreachable(self, error: Exception) -> UnreachableError:
        why = " ".join(str(error).split()) or type(error).__name__
        # urllib3 puts its own object before the reason.
        return UnreachableError(f"the API server {self._client.configuration.host} can't be reached: {why.rpartition('>: ')[2]}")


def _read_frames(socket: websocket.WebSocket) -> Iterator[tuple[int, bytes]]:
    """What a command writes, until the server says how it ended."""
    complaint = b""
    while True:
        try:
            opcode, frame = socket.recv_data_frame(True)
        except (websocket.WebSocketException, OSError) as error:
            raise UnreachableError(f"the connection to the pod broke: {type(error).__name__}") from error
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            raise UnreachableError("the connection to the pod was closed before the end")
        if opcode not in (websocket.ABNF.OPCODE_BINARY, websocket.ABNF.OPCODE_TEXT) or not frame.data:
            continue
        channel, content = frame.data[0], frame.data[1:]
        if channel == ERROR_CHANNEL and content:
            status = json.loads(content)
            if status.get("status") != "Success":
                raise PullError(complaint.decode(errors="replace").strip() or status.get("message", "the command failed"))
            return
        if channel in (STDOUT_CHANNEL, STDERR_CHANNEL) and content:
            complaint += content if channel == STDERR_CHANNEL else b""
            yield channel, content
