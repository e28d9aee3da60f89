"""A fake API server over HTTP. The real Kubernetes client connects to it with a kubeconfig.

It checks no schema, CEL rules or rights: the tests on a cluster cover these. A test sets the error responses that it needs.
"""

import base64
import contextlib
import copy
import hashlib
import json
import pathlib
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from client.fake_exec import run_with_input
from finetune_api import names
from finetune_client.helper_pod import PUT_DIR

Manifest = dict[str, Any]
TOKEN = "token-of-the-kubeconfig"
NOW = "2026-11-21T10:00:00Z"
FRAME_BYTES = 32 * 1024


def error_response(code: int, reason: str, message: str, **details: Any) -> tuple[int, bytes]:
    """Return an error Status as the API server sends it."""
    return code, json.dumps({"kind": "Status", "code": code, "reason": reason, "message": message, "details": details}).encode()


class FakeApiServer:
    """Holds objects by plural, namespace and name.

    output: the folder that a pod sees as its volume. responses: the response to a method and a plural, such as "POST pods", in
    place of the usual one. drop_requests: the number of next requests without a response. hanging_logs: the number of next logs
    that stay open without an end. cut_after: for a file, the bytes after which each of its next transfers ends.
    corrupt_transfers: the number of next transfers with a wrong byte. cut_uploads: the bytes of standard input after which each
    of the next uploads ends. corrupt_uploads: the number of next uploads with a wrong byte.
    """

    def __init__(self, output: pathlib.Path) -> None:
        self.objects: dict[tuple[str, str, str], Manifest] = {}
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()
        self.responses: dict[str, tuple[int, bytes]] = {}
        self.drop_requests = 0
        self.crd_installed = True
        self.pods_start = True
        self.logs: dict[str, list[str]] = {}
        self.output = output
        self.cut_after: dict[str, list[int]] = {}
        self.corrupt_transfers = 0
        self.cut_uploads: list[int] = []
        self.corrupt_uploads = 0
        self.hanging_logs = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"api": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> "FakeApiServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def put(self, plural: str, manifest: Manifest, namespace: str = "team") -> Manifest:
        """Store an object without a request of the client."""
        metadata = manifest.setdefault("metadata", {})
        metadata.setdefault("namespace", namespace)
        if "generateName" in metadata:
            metadata["name"] = f"{metadata['generateName']}{len(self.objects)}"
        metadata.setdefault("uid", f"uid-of-{metadata['name']}")
        metadata.setdefault("creationTimestamp", NOW)
        self.objects[plural, metadata["namespace"], metadata["name"]] = manifest
        return manifest

    def get(self, plural: str, name: str, namespace: str = "team") -> Manifest:
        return self.objects[plural, namespace, name]

    def list_names(self, plural: str) -> list[str]:
        return sorted(name for kind, _, name in self.objects if kind == plural)

    def respond(self, method: str, plural: str, key: tuple[str, str], query: dict[str, str], body: Any) -> tuple[int, bytes]:
        """Return the response to a request. key: namespace and name; without a name, all objects."""
        namespace, name = key
        if plural == names.PLURAL and not self.crd_installed:
            return 404, b"404 page not found\n"
        if f"{method} {plural}" in self.responses:
            return self.responses[f"{method} {plural}"]
        if method == "GET" and not name:
            return 200, json.dumps({"metadata": {}, "items": list(self._select(plural, namespace, query))}).encode()
        if method == "POST":
            return self._create(plural, namespace, body)
        stored = self.objects.get((plural, namespace, name))
        if stored is None:
            return error_response(404, "NotFound", f'{plural} "{name}" not found', name=name, kind=plural)
        if method == "DELETE":
            if body.get("preconditions", {}).get("uid", stored["metadata"]["uid"]) != stored["metadata"]["uid"]:
                return error_response(409, "Conflict", "the uid differs")
            del self.objects[plural, namespace, name]
        if method == "PATCH":
            merge(stored, body)
        return 200, json.dumps(stored).encode()

    def _create(self, plural: str, namespace: str, body: Manifest) -> tuple[int, bytes]:
        if (plural, namespace, body["metadata"].get("name")) in self.objects:
            return error_response(409, "AlreadyExists", "already exists", name=body["metadata"]["name"], kind=plural)
        created = self.put(plural, copy.deepcopy(body), namespace)
        if plural == "pods" and self.pods_start:
            created["status"] = {"phase": "Running", "containerStatuses": [{"name": "reader", "state": {"running": {}}}]}
        return 201, json.dumps(created).encode()

    def _select(self, plural: str, namespace: str, query: dict[str, str]) -> Any:
        for (kind, found_in, _), manifest in sorted(self.objects.items()):
            if kind != plural or namespace not in ("", found_in):
                continue
            key, _, wanted = query.get("labelSelector", "").partition("=")
            if key and manifest["metadata"].get("labels", {}).get(key) != wanted:
                continue
            _, _, uid = query.get("fieldSelector", "").partition("involvedObject.uid=")
            if not uid or manifest["involvedObject"]["uid"] == uid:
                yield manifest

    def log(self, pod: str, query: dict[str, str]) -> bytes:
        """Return the lines of a log. The stored lines begin with their timestamps."""
        since = query.get("sinceTime", "")
        lines = [line for line in self.logs.get(pod, []) if line[:19] >= since[:19]]
        lines = lines[-int(query["tailLines"]) :] if "tailLines" in query else lines
        if "timestamps" not in query:
            lines = [line.partition(" ")[2] for line in lines]
        return "".join(f"{line}\n" for line in lines).encode()


def merge(into: Manifest, change: Manifest) -> None:
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


class Handler(BaseHTTPRequestHandler):
    """Handles one connection. api: the fake API server."""

    api: FakeApiServer
    wbufsize = 1 << 16  # headers and body in one packet; otherwise each response waits for an acknowledgement
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        address = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(address.query).items()}
        parts = address.path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = parts[1] if parts[0] == "namespaces" else ""
        plural, name, subresource = [*(parts[2:] if namespace else parts), "", ""][:3]
        size = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size)) if size else {}
        self.api.requests.append(" ".join(filter(None, [self.command, plural, f"{name}/{subresource}".strip("/")])))
        self.api.tokens.add(self.headers.get("authorization"))
        if self.api.drop_requests > 0:
            self.api.drop_requests -= 1
            self.close_connection = True
            return
        if subresource == "exec" and "GET pods/exec" not in self.api.responses:
            self._execute(parse_qs(address.query)["command"], query["stdin"] == "true")
            return
        if subresource == "log" and self.api.hanging_logs > 0:
            self.api.hanging_logs -= 1
            self._reply_and_hang(self.api.log(name, query))
            return
        if subresource == "log" and f"GET {plural}/log" not in self.api.responses:
            self._reply(200, self.api.log(name, query))
            return
        kind = f"{plural}/{subresource}" if subresource else plural
        self._reply(*self.api.respond(self.command, kind, (namespace, name), query, body))

    do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815 - the names that http.server calls

    def _reply_and_hang(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + 1))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        self.connection.settimeout(5)
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.recv(1)  # waits until the client closes the connection

    def _reply(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _execute(self, command: list[str], stdin: bool) -> None:
        """Run the command locally, and send its output over a WebSocket with the channels of Kubernetes."""
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # the GUID of RFC 6455
        accepted = hashlib.sha1(key.encode())  # noqa: S324
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(accepted.digest()).decode())
        self.send_header("Sec-WebSocket-Protocol", "v5.channel.k8s.io")
        self.end_headers()
        self.close_connection = True
        words = [word.replace(names.OUTPUT_DIR, str(self.api.output)).replace(PUT_DIR, str(self.api.output)) for word in command]
        if stdin:
            self.wfile.flush()
            cut = self.api.cut_uploads.pop(0) if self.api.cut_uploads else None
            run_with_input(words, self.rfile, self._send_now, cut, self.api.corrupt_uploads > 0)
            self.api.corrupt_uploads -= 1
            return
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, check=False)
        output = done.stdout
        if words[3] == "send" and self.api.corrupt_transfers:
            self.api.corrupt_transfers -= 1
            output = bytes([output[0] ^ 1]) + output[1:]
        cuts = self.api.cut_after.get(words[5], []) if words[3] == "send" else []
        cut = cuts.pop(0) if cuts else None
        for start in range(0, len(output), FRAME_BYTES):
            if cut is not None and start >= cut:
                return  # without a close frame, like a broken connection
            self._frame(1, output[start : start + FRAME_BYTES])
        if cut is not None:
            return
        self._frame(2, done.stderr)
        failed = {"status": "Failure", "message": "command terminated with exit code 1"}
        self._frame(3, json.dumps(failed if done.returncode else {"status": "Success"}).encode())

    def _frame(self, channel: int, content: bytes) -> None:
        content = bytes([channel]) + content
        size = bytes([len(content)]) if len(content) < 126 else bytes([126]) + struct.pack(">H", len(content))
        self.wfile.write(b"\x82" + size + content)

    def _send_now(self, channel: int, content: bytes) -> None:
        self._frame(channel, content)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        return
