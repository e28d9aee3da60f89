"""The operator's command line: `python -m finetune_operator run`. What it would create is shown by `finetune render`."""

import argparse
import asyncio
import contextlib
import datetime
import logging
import os
import pathlib
import secrets
import signal
import socket
import sys
from collections.abc import Sequence

import kopf
from prometheus_client import CollectorRegistry

from finetune_api import __version__, names
from finetune_operator.cluster.api import Api
from finetune_operator.cluster.events import Events
from finetune_operator.cluster.lease import Alone, Leadership, LeaseLostError
from finetune_operator.cluster.progress import ProgressClient
from finetune_operator.handlers import build_registry, build_settings
from finetune_operator.health import Health
from finetune_operator.metrics import Metrics
from finetune_operator.observed import Key
from finetune_operator.poller import Poller
from finetune_operator.queue import WorkQueue
from finetune_operator.reconcile import Reconciler
from finetune_operator.render import DEFAULT_TRAINER_IMAGE, ENV_TRAINER_IMAGE
from finetune_operator.resync import Resync
from finetune_operator.server import build_app, start_server
from finetune_operator.site import Site, read_site
from finetune_operator.store import Store

logger = logging.getLogger("finetune_operator")

# Turns at the same time: they mostly wait for the API server.
_WORKERS = 32
# Before watches that broke off are taken up again.
_WATCH_PAUSE_SECONDS = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and do what it says; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        site = read_site(options.site_file, options.trainer_image)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return names.EXIT_REFUSED
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("kopf").setLevel(logging.WARNING)
    try:
        asyncio.run(_run(options, site))
    except LeaseLostError as lost:
        logger.error("%s: this process ends", lost)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="finetune_operator", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="watch FineTuneJobs and run them")
    run.add_argument("--namespace", action="append", default=[], help="watch this namespace only; may be given again")
    run.add_argument("--port", type=int, default=names.PORT_OPERATOR, help="for /metrics, /healthz, /readyz")
    run.add_argument("--lease", help="act only while holding this Lease; its namespace is $POD_NAMESPACE, the holder $POD_NAME")
    image = os.environ.get(ENV_TRAINER_IMAGE) or DEFAULT_TRAINER_IMAGE
    run.add_argument("--trainer-image", default=image, help=f"for jobs that name none; ${ENV_TRAINER_IMAGE}")
    run.add_argument("--site-file", type=pathlib.Path, help="what the site sets for all jobs (docs/operations.md)")
    return parser


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


async def _run(options: argparse.Namespace, site: Site) -> None:
    """Wire everything, work until a signal comes, and end in order: first the turns, then the watches, then the Lease."""
    stop = asyncio.Event()
    _stop_on_signals(stop)
    queue: WorkQueue[Key] = WorkQueue()
    registry = CollectorRegistry()
    metrics, store = Metrics(registry), Store()
    api = await Api.connect(count=metrics.count_request)
    leadership = _leadership(options, api)
    api.guard(leadership.check)
    health = Health(lambda: queue.oldest_seconds() if leadership.is_leading() else 0.0)
    pods = ProgressClient.open()
    poller = Poller(store, pods, queue.add)
    events = Events(api)
    reconciler = Reconciler(api, store, poller, events, metrics, site, _now, is_rush=lambda: queue.depth() > 0)
    resync = Resync(api, store, queue, metrics, health, options.namespace, _now)

    def refresh() -> None:
        metrics.workqueue_depth.set(queue.depth())
        metrics.lead(leadership.is_leading())

    async def act() -> None:
        await leadership.taken.wait()
        await asyncio.gather(queue.run(reconciler.reconcile, _WORKERS), poller.run(), events.run())

    server = await start_server(build_app(registry, health, refresh), options.port)
    logger.info("finetune-operator %s: %s", __version__, ", ".join(options.namespace) or "all namespaces")
    watch = _watch(store, queue, metrics, health, resync, options.namespace, stop)
    try:
        await _until(stop, [asyncio.create_task(work) for work in (leadership.run(), resync.run(), act(), watch)])
    finally:
        await events.finish()
        await leadership.release()
        await server.cleanup()
        await pods.close()
        await api.close()
        logger.info("stopped")


def _leadership(options: argparse.Namespace, api: Api) -> Leadership | Alone:
    if options.lease is None:
        return Alone()
    # A container that starts again in the same pod is another process: it must not take itself for the one that was stopped.
    identity = f"{os.environ.get('POD_NAME') or socket.gethostname()}-{secrets.token_hex(3)}"
    return Leadership(api.unguarded(), os.environ.get("POD_NAMESPACE", "default"), options.lease, identity, _now)


async def _until(stop: asyncio.Event, tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait for the signal, then cancel the tasks; a task that ends by itself has failed, and its error ends the program."""
    waiter = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([waiter, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in (waiter, *tasks):
        task.cancel()
    await asyncio.wait([waiter, *tasks], timeout=8)
    for task in done - {waiter}:
        await task


async def _watch(
    store: Store,
    queue: WorkQueue[Key],
    metrics: Metrics,
    health: Health,
    resync: Resync,
    namespaces: Sequence[str],
    stop: asyncio.Event,
) -> None:
    """Keep kopf running. It looks once for the resources to be watched, so it starts when there are some to list.

    It gives up after a minute without an API server, and at once where a namespace may not be watched; so it is started anew
    whenever it turns out that one is closed, or open again. The full list heals what is lost until it runs again.
    """
    await health.wait_ready()
    while True:
        others = asyncio.all_tasks()
        resync.closed_changed.clear()
        tasks = await kopf.spawn_tasks(
            registry=build_registry(store, queue, metrics.watch_last_event.set_to_current_time),
            settings=build_settings(),
            standalone=True,
            clusterwide=not namespaces,
            namespaces=[namespace for namespace in namespaces if namespace not in resync.closed],
            stop_flag=resync.closed_changed,
        )
        _stop_on_signals(stop)  # kopf has taken the signals; it would end its watches first, and cancel turns half done
        try:
            await kopf.run_tasks(tasks, ignored=others)
        except Exception as error:
            logger.warning("the watches broke off: %s", error)
        await asyncio.sleep(_WATCH_PAUSE_SECONDS)


def _stop_on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
