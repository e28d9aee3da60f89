"""The operator's servers: one for /healthz, /readyz and /metrics, or one for the probes and one with TLS for /metrics."""

import asyncio
import dataclasses
import ssl
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from finetune_operator.health import Health
from finetune_operator.server.access import MetricsAccess, require_access


def add_metrics(app: web.Application, registry: CollectorRegistry, refresh: Callable[[], None]) -> None:
    """Serve /metrics. refresh: called before each scrape, to set gauges that are not updated all the time."""

    async def serve_metrics(_: web.Request) -> web.Response:
        refresh()
        # With a thousand jobs this takes some tenths of a second. In a thread it does not delay the Lease and the reconciles.
        body = await asyncio.to_thread(generate_latest, registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app.router.add_get("/metrics", serve_metrics)


def add_probes(app: web.Application, health: Health) -> None:
    """Serve /healthz and /readyz for the kubelet."""

    async def serve_healthz(_: web.Request) -> web.Response:
        liveness_failure = health.liveness_failure()
        return web.Response(text=liveness_failure or "ok", status=503 if liveness_failure else 200)

    async def serve_readyz(_: web.Request) -> web.Response:
        ready = health.is_ready()
        return web.Response(text="ok" if ready else "the first list has not succeeded yet", status=200 if ready else 503)

    app.router.add_get("/healthz", serve_healthz)
    app.router.add_get("/readyz", serve_readyz)


@dataclasses.dataclass(frozen=True)
class SecureMetrics:
    """Metrics at a port of their own, with TLS, for those who have access."""

    port: int
    tls: ssl.SSLContext
    access: MetricsAccess


async def start_servers(
    port: int, secure: SecureMetrics | None, health: Health, registry: CollectorRegistry, refresh: Callable[[], None]
) -> list[web.AppRunner]:
    """Serve the probes at the port, and the metrics there or as secure says. The cleanup of a runner stops its server."""
    probes = web.Application()
    add_probes(probes, health)
    if secure is None:
        add_metrics(probes, registry, refresh)
        return [await start_server(probes, port)]
    metrics = web.Application(middlewares=[require_access(secure.access)])
    add_metrics(metrics, registry, refresh)
    return [await start_server(probes, port), await start_server(metrics, secure.port, secure.tls)]


async def start_server(app: web.Application, port: int, tls: ssl.SSLContext | None = None) -> web.AppRunner:
    """Serve on all addresses of the pod. The cleanup of the returned runner stops it."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, port=port, ssl_context=tls).start()
    return runner
