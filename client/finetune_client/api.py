"""Send requests to the API server, as plain JSON. An error response becomes a ClientError with one sentence."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import urllib3.exceptions
import websocket
from kubernetes.client import ApiClient
from kubernetes.client.exceptions import ApiException
from kubernetes.stream.ws_client import create_websocket

from finetune_api import names
from finetune_client.api_errors import build_error
from finetune_client.errors import UnreachableError
from finetune_client.remote_command import RemoteCommand

Manifest = dict[str, Any]

_TIMEOUT_SECONDS = 30
_PAGE_SIZE = 500
# A log or a transfer that sends nothing for longer may have lost its connection.
IDLE_TIMEOUT_SECONDS = 60

PATHS = {
    names.PLURAL: f"/apis/{names.GROUP}/{names.VERSION}/namespaces/{{}}/{names.PLURAL}",
    "pods": "/api/v1/namespaces/{}/pods",
    "events": "/api/v1/namespaces/{}/events",
    "persistentvolumeclaims": "/api/v1/namespaces/{}/persistentvolumeclaims",
}
# The RBAC verb of each HTTP method.
_VERBS = {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}


class Api:
    """Gets, lists, creates, patches and deletes objects, streams logs, and runs commands in pods. Raises ClientError.

    plural: a key of ``PATHS``. namespace: None lists the objects of all namespaces. idle_timeout_seconds: a stream that sends no
    byte for this long counts as broken.
    """

    def __init__(self, client: ApiClient, idle_timeout_seconds: float = IDLE_TIMEOUT_SECONDS) -> None:
        self._client = client
        self.idle_timeout_seconds = idle_timeout_seconds

    def get(self, plural: str, namespace: str, name: str) -> Manifest:
        """Return the object. Raise NotFoundError if it does not exist."""
        return self._request("GET", plural, namespace, name)

    def list(self, plural: str, namespace: str | None, **query: str) -> list[Manifest]:
        """Return the objects that match, read page by page."""
        objects: list[Manifest] = []
        token: str | None = None
        while token != "":
            paging = {"limit": str(_PAGE_SIZE), **({"continue": token} if token else {})}
            page = self._request("GET", plural, namespace, query={**query, **paging})
            token = page["metadata"].get("continue", "")
            objects += page["items"]
        return objects

    def create(self, plural: str, namespace: str, manifest: Manifest) -> Manifest:
        """Create an object. Raise NameTakenError if the name is taken."""
        return self._request("POST", plural, namespace, body=manifest)

    def patch(self, plural: str, namespace: str, name: str, change: Manifest) -> Manifest:
        """Apply a JSON merge patch to an object."""
        return self._request("PATCH", plural, namespace, name, body=change, content_type="application/merge-patch+json")

    def delete(self, plural: str, namespace: str, name: str, uid: str, grace_seconds: int | None = None) -> None:
        """Delete the object with this uid, and its dependents in the background. Raise NotFoundError if it does not exist."""
        options: Manifest = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        self._request("DELETE", plural, namespace, name, body=options)

    def stream_log(self, namespace: str, pod: str, **query: str) -> Iterator[str]:
        """Yield the lines of a pod's log, without line ends. Raise UnreachableError if the connection breaks.

        query: query parameters of the API server. With ``follow``, the stream may end before the log does: after
        ``idle_timeout_seconds`` without a line.
        """
        path = f"{PATHS['pods'].format(namespace)}/{pod}/log"
        response = self._send("GET", path, query, timeout=(_TIMEOUT_SECONDS, self.idle_timeout_seconds))
        if response.status != 200:
            raise build_error(response.status, response.data, "get", "pods/log", namespace, pod)
        rest = b""
        try:
            for chunk in response.stream(2**16):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
        except urllib3.exceptions.ReadTimeoutError as error:
            if "follow" in query:
                return  # The pod writes nothing, or the connection is lost. The caller finds out with its next request.
            raise UnreachableError(f"the log of {pod} can't be read: no answer for {self.idle_timeout_seconds:g} s") from error
        except urllib3.exceptions.HTTPError as error:
            raise UnreachableError(f"the connection to the log of {pod} broke: {type(error).__name__}") from error
        finally:
            response.close()
        if rest:
            yield rest.decode(errors="replace")

    def execute(self, namespace: str, pod: str, container: str, command: Sequence[str]) -> Iterator[tuple[int, bytes]]:
        """Run a command in a container and yield its output as (STDOUT_CHANNEL or STDERR_CHANNEL, bytes).

        Raises CommandError if the command fails, and UnreachableError if the connection ends before the command.
        """
        with self.start_command(namespace, pod, container, command) as running:
            yield from running.frames()

    @contextlib.contextmanager
    def start_command(
        self, namespace: str, pod: str, container: str, command: Sequence[str], stdin: bool = False
    ) -> Iterator[RemoteCommand]:
        """Start a command in a container; the connection is closed at the end."""
        query = [("command", word) for word in command]
        query += [("container", container), ("stdin", str(stdin).lower()), ("stdout", "true"), ("stderr", "true")]
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
        socket.settimeout(self.idle_timeout_seconds)
        with contextlib.closing(socket):
            yield RemoteCommand(socket)

    def _request(
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
