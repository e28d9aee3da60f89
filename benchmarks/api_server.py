"""Requests of a benchmark to the API server, through kubectl's proxy. Threads may share the functions."""

import concurrent.futures
import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

PORT = 8901
POLL_SECONDS = 0.5
_WRITERS = 32
Object = dict[str, Any]
_local = threading.local()


@contextlib.contextmanager
def proxy() -> Iterator[None]:
    """Run kubectl's proxy."""
    process = subprocess.Popen(["kubectl", "proxy", f"--port={PORT}"], stdout=subprocess.DEVNULL)
    try:
        time.sleep(2)
        yield
    finally:
        process.terminate()
        process.wait()


def call(method: str, path: str, body: Object | None = None, kind: str = "application/json") -> Object:
    """Send a request, and retry it after an error, as a client does. Return {"code": …} if the object is missing or exists."""
    data = json.dumps(body) if body is not None else None
    for pause in (0.5, 1, 2, 4, 8, None):
        try:
            status, answer = _send(method, path, data, kind)
        except (OSError, http.client.HTTPException):
            _local.connection = None
            if pause is None:
                raise
        else:
            if status < 300:
                return answer
            if status in (404, 409) or pause is None:
                return {"code": status}
        time.sleep(pause or 0)
    raise AssertionError("not reached")


def _send(method: str, path: str, data: str | None, kind: str) -> tuple[int, Object]:
    """Send a request on the connection of this thread."""
    connection = getattr(_local, "connection", None) or http.client.HTTPConnection("127.0.0.1", PORT, timeout=120)
    _local.connection = connection
    connection.request(method, path, data, {"Content-Type": kind})
    response = connection.getresponse()
    text = response.read()
    return response.status, json.loads(text) if response.status < 300 else {}


def for_each(number: int, do: Callable[[int], object]) -> None:
    """Call a function with each number below this one, from many threads."""
    with concurrent.futures.ThreadPoolExecutor(_WRITERS) as pool:
        list(pool.map(do, range(number)))


def count(path: str, query: str = "") -> int:
    """Return the number of objects in a list, without reading them all."""
    page = call("GET", f"{path}?limit=1&{query}")
    return len(page["items"]) + int(page["metadata"].get("remainingItemCount", 0))


def is_empty(path: str, query: str) -> bool:
    """Return whether no object matches."""
    return not call("GET", f"{path}?limit=1&{query}")["items"]


def wait(what: str, done: Callable[[], bool], timeout: float) -> float:
    """Wait for a condition and return the time in seconds since the epoch; exit after the timeout."""
    end = time.time() + timeout
    while not done():
        if time.time() > end:
            sys.exit(f"{what}: not within {timeout:g} s")
        time.sleep(POLL_SECONDS)
    return time.time()


@contextlib.contextmanager
def namespace(name: str) -> Iterator[str]:
    """Create a namespace and yield its path. Delete it at the end, and wait until it is gone."""
    call("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    path = f"namespaces/{name}"
    try:
        yield path
    finally:
        call("DELETE", f"/api/v1/{path}")
        # Otherwise Jobs that can't create the rest of their pods any more delay the deletion by minutes.
        call("DELETE", f"/apis/batch/v1/{path}/jobs?propagationPolicy=Background")
        wait("the deletion of the namespace", lambda: "code" in call("GET", f"/api/v1/{path}"), 900)


class FirstSeen:
    """Watches the objects at a path. times: the time at which each of them was first seen, by name."""

    def __init__(self, path: str) -> None:
        self.times: dict[str, float] = {}
        self._path = path
        self._version = call("GET", f"{path}?limit=1")["metadata"]["resourceVersion"]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):  # the proxy ends first
            self._watch()

    def _watch(self) -> None:
        headers = {"Accept": "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"}
        while True:  # the API server ends the watch of a client that is slow
            connection = http.client.HTTPConnection("127.0.0.1", PORT)
            connection.request("GET", f"{self._path}?watch=1&resourceVersion={self._version}", headers=headers)
            for line in connection.getresponse():
                event = json.loads(line)
                metadata = event["object"]["metadata"]
                self._version = metadata["resourceVersion"]
                if event["type"] == "ADDED":
                    self.times[metadata["name"]] = time.time()
