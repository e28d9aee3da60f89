"""The pod's HTTP server: /metrics, /progress, /healthz. It runs in the launcher, so it answers until the end of the pod."""

import threading
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.multiprocess import MultiProcessCollector

from finetune_api import metrics as declared
from finetune_api.wire import Report
from finetune_trainer.monitoring.metrics import instrument
from finetune_trainer.runtime.state import RunState


class _QuietHandler(WSGIRequestHandler):
    """Does not log requests, because they come every few seconds."""

    def log_message(self, *_: object) -> None:
        return


class PushMetrics:
    """The metrics that the launcher itself counts: pushes to the Hub."""

    def __init__(self, registry: CollectorRegistry, namespace: str, job: str) -> None:
        labels = {"namespace": namespace, "finetunejob": job}
        self._duration = instrument(declared.HUB_PUSH_DURATION, registry)
        self._labels = labels
        self._failures = instrument(declared.HUB_PUSH_FAILURES, registry).labels(**labels)

    def succeeded(self, seconds: float) -> None:
        """Record a push that took ``seconds``."""
        self._duration.labels(**self._labels).set(seconds)

    def failed(self) -> None:
        """Count a push that failed."""
        self._failures.inc()


def build_registry(state: RunState) -> CollectorRegistry:
    """Return a registry that reads the workers' values from their files at each scrape."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(state.metrics_dir))
    return registry


def serve(port: int, registry: CollectorRegistry, report: Callable[[], Report]) -> WSGIServer:
    """Serve in a background thread. Raises OSError if the port is in use."""
    metrics_app = make_wsgi_app(registry)

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path == "/metrics":
            return metrics_app(environ, start_response)
        if path == "/progress":
            body, kind = report().model_dump_json(by_alias=True, exclude_none=True), "application/json"
        elif path == "/healthz":
            body, kind = "ok\n", "text/plain; charset=utf-8"
        else:
            start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"/metrics, /progress, /healthz\n"]
        start_response("200 OK", [("Content-Type", kind), ("Cache-Control", "no-store")])
        return [body.encode()]

    server = make_server("", port, application, server_class=ThreadingWSGIServer, handler_class=_QuietHandler)
    threading.Thread(target=server.serve_forever, name="telemetry", daemon=True).start()
    return server
