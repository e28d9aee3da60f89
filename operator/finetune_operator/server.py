"""The operator's HTTP server: /metrics, /healthz, /readyz."""

import asyncio
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from finetune_operator.health import Health


def build_app(registry: CollectorRegistry, health: Health, refresh: Callable[[], None]) -> web.Application:
    """Return the application. refresh: called before each scrape, to set gauges that are not updated all the time."""

    async def serve_metrics(_: web.Request) -> web.Response:
        refresh()
        # With a thousand jobs this takes some tenths of a second. In a thread it does not delay the Lease and the reconciles.
        body = await asyncio.to_thread(generate_latest, registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def serve_healthz(_: web.Request) -> web.Response:
        liveness_failure = health.liveness_failure()
        return web.Response(text=liveness_failure or "ok", status=503 if liveness_failure else 200)

    async def serve_readyz(_: web.Request) -> web.Response:
        ready = health.is_ready()
        return web.Response(text="ok" if ready else "the first list has not succeeded yet", status=200 if ready else 503)

    app = web.Application()
    app.add_routes([web.get("/metrics", serve_metrics), web.get("/healthz", serve_healthz), web.get("/readyz", serve_readyz)])
    return app


async def start_server(app: web.Application, port: int) -> web.AppRunner:
    """Serve on all addresses of the pod. The cleanup of the returned runner stops it."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner
