"""The operator's command line: `run` it, or `render` what it would create."""

import argparse
import asyncio
import contextlib
import datetime
import logging
import os
import pathlib
import signal
import sys
from collections.abc import Sequence

import kopf
from prometheus_client import CollectorRegistry

from finetune_api import __version__, names
from finetune_api.reasons import FineTuneError
from finetune_operator.cluster.api import Api
from finetune_operator.cluster.progress import ProgressClient
from finetune_operator.handlers import build_registry, build_settings
from finetune_operator.health import Health
from finetune_operator.metrics import Metrics
from finetune_operator.observed import Key
from finetune_operator.queue import WorkQueue
from finetune_operator.reconcile import Reconciler
from finetune_operator.render import dump_objects, render_objects
from finetune_operator.resync import Resync
from finetune_operator.server import build_app, start_server

logger = logging.getLogger("finetune_operator")

ENV_TRAINER_IMAGE = "FINETUNE_TRAINER_IMAGE"
# Turns at the same time: they mostly wait for the API server.
_WORKERS = 32
# Before watches that broke off are taken up again.
_WATCH_PAUSE_SECONDS = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and do what it says; the exit code."""
    options = _parser().parse_args(arguments)
    if options.command == "render":
        return _render(options.file, options.trainer_image)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("kopf").setLevel(logging.WARNING)
    asyncio.run(_run(options))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="finetune_operator", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="watch FineTuneJobs and run them")
    run.add_argument("--namespace", action="append", default=[], help="watch this namespace only; may be given again")
    run.add_argument("--port", type=int, default=names.PORT_OPERATOR, help="for /metrics, /healthz, /readyz")
    render = commands.add_parser("render", help="print the objects that the first attempt of a FineTuneJob would get")
    render.add_argument("file", type=pathlib.Path)
    image = os.environ.get(ENV_TRAINER_IMAGE) or f"finetune-trainer:{__version__}"
    for command in (run, render):
        command.add_argument("--trainer-image", default=image, help=f"for jobs that name none; ${ENV_TRAINER_IMAGE}")
    return parser


def _render(path: pathlib.Path, trainer_image: str) -> int:
    try:
        sys.stdout.write(dump_objects(render_objects(path, trainer_image)))
    except FineTuneError as error:
        sys.stderr.write(f"{error}\n")
        return names.EXIT_REFUSED
    return 0


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


async def _run(options: argparse.Namespace) -> None:
    """Wire everything, work until a signal comes, and end in order: first the turns, then the watches."""
    stop = asyncio.Event()
    _stop_on_signals(stop)
    queue: WorkQueue[Key] = WorkQueue()
    health = Health(queue.oldest_seconds)
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    api, pods = await Api.connect(), ProgressClient.open()
    reconciler = Reconciler(api, pods, metrics, options.trainer_image, _now)
    resync = Resync(api, queue, metrics, health, options.namespace, _now)
    app = build_app(registry, health, lambda: metrics.workqueue_depth.set(queue.depth()))
    server = await start_server(app, options.port)
    logger.info("finetune-operator %s: %s", __version__, ", ".join(options.namespace) or "all namespaces")
    try:
        work = [asyncio.create_task(resync.run()), asyncio.create_task(queue.run(reconciler.reconcile, _WORKERS))]
        await _until(stop, [*work, asyncio.create_task(_watch(queue, metrics, health, options.namespace, stop))])
    finally:
        await server.cleanup()
        await pods.close()
        await api.close()
        logger.info("stopped")


async def _until(stop: asyncio.Event, tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait for the signal, then cancel the tasks; a task that ends by itself has failed, and its error ends the program."""
    waiter = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([waiter, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in (waiter, *tasks):
        task.cancel()
    await asyncio.wait([waiter, *tasks], timeout=8)
    for task in done - {waiter}:
        await task


async def _watch(queue: WorkQueue[Key], metrics: Metrics, health: Health, namespaces: Sequence[str], stop: asyncio.Event) -> None:
    """Keep kopf running. It looks once for the resources to be watched, so it starts when there are some to list.

    It gives up after a minute without an API server; the full list heals what is lost until it runs again.
    """
    await health.wait_ready()
    while True:
        others = asyncio.all_tasks()
        tasks = await kopf.spawn_tasks(
            registry=build_registry(queue.add, metrics.watch_last_event.set_to_current_time),
            settings=build_settings(),
            standalone=True,
            clusterwide=not namespaces,
            namespaces=list(namespaces),
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
