"""The operator's command line: `python -m finetune_operator run`. `finetune render` prints what it would create."""

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
import ssl
import sys
from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from finetune_api import __version__, names
from finetune_operator import logs
from finetune_operator.child_watch import ChildWatch
from finetune_operator.cluster.api import Api
from finetune_operator.cluster.events import EventRecorder
from finetune_operator.cluster.lease import LeaderElection, LeaseLostError, NoLeaderElection
from finetune_operator.cluster.progress import ProgressClient
from finetune_operator.defaults import OperatorDefaults, read_defaults
from finetune_operator.definition import OldDefinitionError, check_definition
from finetune_operator.handlers import Handlers
from finetune_operator.health import Health
from finetune_operator.metrics import Metrics
from finetune_operator.observed import Key
from finetune_operator.poller import INTERVAL_SECONDS, Poller
from finetune_operator.queue import WorkQueue
from finetune_operator.reconcile import Reconciler
from finetune_operator.render import DEFAULT_TRAINER_IMAGE, ENV_TRAINER_IMAGE
from finetune_operator.resync import Resync
from finetune_operator.server.access import MetricsAccess
from finetune_operator.server.app import SecureMetrics, start_servers
from finetune_operator.server.certificate import build_tls_context, reload_certificate
from finetune_operator.store import Store
from finetune_operator.watch import keep_watching

logger = logging.getLogger("finetune_operator")

# Number of concurrent reconciles. They mostly wait for the API server.
_WORKERS = 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        defaults = read_defaults(options.site_file, options.trainer_image)
        tls = build_tls_context(options.metrics_certificate, socket.gethostname()) if options.metrics_port is not None else None
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return names.EXIT_REFUSED
    logs.configure(options.log_format, options.log_level)
    try:
        asyncio.run(_run(options, defaults, tls))
    except LeaseLostError as lost:
        logger.error("%s: the process exits", lost)
        return 1
    except OldDefinitionError as old:
        logger.error("%s", old)
        return names.EXIT_REFUSED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="finetune_operator", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="watch FineTuneJobs and run them")
    run.add_argument("--namespace", action="append", default=[], help="watch only this namespace; may be repeated")
    run.add_argument("--port", type=int, default=names.PORT_OPERATOR, help="port of /healthz, /readyz and /metrics")
    run.add_argument("--metrics-port", type=int, help="serve /metrics here instead, with TLS, if RBAC allows it to the client")
    run.add_argument("--metrics-certificate", type=pathlib.Path, help="directory with tls.crt and tls.key; else self-signed")
    run.add_argument("--lease", help="act only while holding this Lease; its namespace is $POD_NAMESPACE, the holder $POD_NAME")
    image = os.environ.get(ENV_TRAINER_IMAGE) or DEFAULT_TRAINER_IMAGE
    run.add_argument("--trainer-image", default=image, help=f"image of jobs that name none; ${ENV_TRAINER_IMAGE}")
    run.add_argument("--site-file", type=pathlib.Path, help="operator defaults for all jobs (docs/operations.md)")
    run.add_argument("--log-format", choices=logs.FORMATS, default="Text", help="lines of text, or one JSON object per line")
    run.add_argument("--log-level", choices=logs.LEVELS, default="INFO", help="least important lines of the log")
    run.add_argument("--workers", type=int, default=_WORKERS, help="reconciles at a time (default: %(default)s)")
    run.add_argument(
        "--poll-seconds", type=float, default=INTERVAL_SECONDS, help="time between two polls of a job (default: %(default)s)"
    )
    return parser


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


async def _run(options: argparse.Namespace, defaults: OperatorDefaults, tls: ssl.SSLContext | None) -> None:
    """Start everything and run until a signal. Then cancel the tasks, write the remaining events and release the Lease."""
    stop = asyncio.Event()
    _stop_on_signals(stop)
    queue: WorkQueue[Key] = WorkQueue()
    registry = CollectorRegistry()
    metrics, store = Metrics(registry), Store()
    api = await Api.connect(count=metrics.count_request)
    try:
        await check_definition(api)
    except OldDefinitionError:
        await api.close()
        raise
    leader_election = _build_leader_election(options, api)
    api.set_write_check(leader_election.check)
    health = Health(lambda: queue.stuck_seconds() if leader_election.is_leading() else 0.0)
    progress_client = ProgressClient.open()
    poller = Poller(store, progress_client, queue.add, interval_seconds=options.poll_seconds)
    events = EventRecorder(api)
    reconciler = Reconciler(api, store, poller, events, metrics, defaults, _now, has_backlog=lambda: bool(store.new_jobs))
    resync = Resync(api, store, queue, metrics, health, options.namespace, _now, leader_election.is_leading)

    def refresh() -> None:
        metrics.workqueue_depth.set(queue.depth())
        metrics.set_leading(leader_election.is_leading())

    async def run_as_leader() -> None:
        await leader_election.elected.wait()
        resync.became_leader()
        await asyncio.gather(queue.run(reconciler.reconcile, options.workers), poller.run(), events.run())

    # Each replica serves metrics, so the reviews of tokens don't need the Lease.
    secure = SecureMetrics(options.metrics_port, tls, MetricsAccess(api.without_write_check())) if tls else None
    servers = await start_servers(options.port, secure, health, registry, refresh)
    logger.info("finetune-operator %s: %s", __version__, ", ".join(options.namespace) or "all namespaces")
    handlers = Handlers(store, queue, metrics.watch_last_event.set_to_current_time)
    watch = keep_watching(handlers, health, resync, options.namespace)
    child_handlers = {"Job": handlers.job, "Pod": handlers.pod, "Workload": handlers.workload}
    child_watch = ChildWatch(api, resync, child_handlers, options.namespace).run(health)
    tasks = [leader_election.run(), resync.run(), run_as_leader(), watch, child_watch]
    if tls and options.metrics_certificate:
        tasks.append(reload_certificate(tls, options.metrics_certificate))
    try:
        await _until(stop, [asyncio.create_task(task) for task in tasks])
    finally:
        await events.flush()
        await leader_election.release()
        for server in servers:
            await server.cleanup()
        await progress_client.close()
        await api.close()
        logger.info("stopped")


def _build_leader_election(options: argparse.Namespace, api: Api) -> LeaderElection | NoLeaderElection:
    if options.lease is None:
        return NoLeaderElection()
    # A restarted container in the same pod is another process. It must not mistake the old Lease for its own.
    identity = f"{os.environ.get('POD_NAME') or socket.gethostname()}-{secrets.token_hex(3)}"
    return LeaderElection(api.without_write_check(), os.environ.get("POD_NAMESPACE", "default"), options.lease, identity, _now)


async def _until(stop: asyncio.Event, tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait for the signal, then cancel the tasks. A task that ends by itself has failed, and its error ends the program."""
    waiter = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([waiter, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in (waiter, *tasks):
        task.cancel()
    await asyncio.wait([waiter, *tasks], timeout=8)
    for task in done - {waiter}:
        await task


def _stop_on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
