"""Keeps kopf running, in a thread and an event loop of its own. When kopf ends, it cancels every task of its loop."""

import asyncio
import logging
import threading
from collections.abc import Collection

import kopf

from finetune_operator.handlers import Handlers, build_registry, build_settings
from finetune_operator.health import Health
from finetune_operator.resync import Resync

logger = logging.getLogger(__name__)

# Pause before the watches are started again.
_RETRY_SECONDS = 5.0


async def keep_watching(handlers: Handlers, health: Health, resync: Resync, namespaces: Collection[str]) -> None:
    """Run kopf until cancelled. namespaces: those to watch; if empty, the whole cluster.

    kopf looks up the watched resources only once, so it starts after the first successful list. It ends after a minute without an
    API server, and at once if it may not watch a namespace. So this function starts kopf again when it has ended, and when the
    set of forbidden namespaces changes. Until then the full list corrects what the watches miss.
    """
    await health.wait_ready()
    loop = asyncio.get_running_loop()
    while True:
        resync.forbidden_namespaces_changed.clear()
        registry = build_registry(handlers, loop.call_soon_threadsafe)
        watched = None if not namespaces else [name for name in namespaces if name not in resync.forbidden_namespaces]
        stop = threading.Event()
        ended = asyncio.create_task(asyncio.to_thread(_run_kopf, registry, watched, stop))
        changed = asyncio.create_task(resync.forbidden_namespaces_changed.wait())
        try:
            await asyncio.wait({ended, changed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
            stop.set()
        try:
            await ended
        except Exception as error:
            logger.warning("the watches failed and will be started again: %s", error)
        await asyncio.sleep(_RETRY_SECONDS)


def _run_kopf(registry: kopf.OperatorRegistry, namespaces: Collection[str] | None, stop: threading.Event) -> None:
    """Run kopf until it fails or is stopped. namespaces: None for the whole cluster."""

    async def run() -> None:
        try:
            await kopf.operator(
                registry=registry,
                settings=build_settings(),
                standalone=True,
                clusterwide=namespaces is None,
                namespaces=namespaces or (),
                stop_flag=stop,
            )
        finally:
            stop.set()  # kopf waits for it in a further thread, which must end with it

    asyncio.run(run())
