"""The commands of `kubectl finetune`, the kubectl plugin for FineTuneJobs."""

import contextlib
import json
import pathlib
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click
import yaml
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from finetune_api import __version__
from finetune_api.cli import find_files
from finetune_api.files import check_files, printable
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.try_command import predict_command
from finetune_client import listing, logs, put, watch, why
from finetune_client.client import FineTune
from finetune_client.errors import ClientError, RefusedError
from finetune_client.job import Job
from finetune_client.options import EXIT_FAILED, EXIT_INTERRUPTED, Command, cluster_options
from finetune_client.push import push

# Width of the output in characters if it does not go to a terminal.
_WIDTH_WITHOUT_TERMINAL = 240
# Number of log lines that are read to draw the loss curve, or to show the last lines of a failed process.
_READ_LINES = 10_000
# Number of log lines of a failed process that are shown.
_SHOWN_LINES = 15
_PROGRAM = "kubectl finetune"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name=_PROGRAM)
def cli() -> None:
    """Submit FineTuneJobs to a cluster, watch them, find out why they wait or failed, fetch their models, copy data into claims.

    The default namespace is that of the kubeconfig's context, as with kubectl.
    """


cli.command_class = Command
cli.add_command(push)


@cli.command(epilog="Example:  kubectl finetune submit job.yaml --watch")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=pathlib.Path))
@click.option("--name", metavar="NAME", help="Name of the job, in place of metadata.name; for a single job.")
@click.option("--watch", "watch_after", is_flag=True, help="Watch the job after it is created; for a single job.")
@cluster_options
def submit(cluster: FineTune, files: tuple[pathlib.Path, ...], name: str | None, watch_after: bool) -> None:
    """Create FineTuneJobs if all of them are valid.

    FILE is a YAML or JSON file, a folder of such files, or - for standard input. Before it creates anything, the command checks
    all files as `finetune validate` does, and prints each error with file and line.
    """
    checked = check_files(list(dict.fromkeys(find_files(files))), secrets_only=True)
    if not checked.problems and not checked.jobs:
        raise FineTuneError(Reason.INVALID_SPEC, "no FineTuneJob in " + ", ".join(map(str, files)))
    if checked.problems:
        raise FineTuneError(Reason.INVALID_SPEC, "\n".join(map(str, checked.problems)))
    if (name or watch_after) and len(checked.jobs) > 1:
        raise FineTuneError(Reason.INVALID_SPEC, f"--name and --watch need a single job, but there are {len(checked.jobs)}")
    manifests = [cluster.prepare(given, name) for given in checked.jobs]
    for manifest in manifests:
        job = cluster.submit(manifest)
        click.echo(f"{click.style('created', fg='green')} finetunejob {job.name} in namespace {job.namespace}")
        if not watch_after:
            click.echo(f"  {_PROGRAM} watch {job.name}{job.flags}")
    if watch_after:
        sys.exit(_watch(job))


@cli.command("list", epilog="Example:  kubectl finetune list -A")
@click.option("--all-namespaces", "-A", is_flag=True, help="List the jobs of all namespaces.")
@click.option(
    "--output", "-o", type=click.Choice(["table", "json"]), default="table", help="Output format: table, or json for programs."
)
@cluster_options
def list_jobs(cluster: FineTune, all_namespaces: bool, output: str) -> None:
    """List FineTuneJobs: unfinished jobs first, then finished jobs, the most recent first."""
    jobs = listing.sort_jobs(cluster.list(all_namespaces))
    if output == "json":
        click.echo(json.dumps([job.manifest for job in jobs], indent=2))
    elif jobs:
        click.echo(listing.build_table(jobs, all_namespaces))
    else:
        where = "any namespace" if all_namespaces else f"namespace {cluster.namespace}"
        click.echo(f"There is no FineTuneJob in {where}.", err=True)


@cli.command("watch", epilog="Example:  kubectl finetune watch news")
@click.argument("name")
@cluster_options
def watch_job(cluster: FineTune, name: str) -> None:
    """Show the progress of a job until it ends. Exits with 0 if the job succeeded, with 1 if it failed."""
    sys.exit(_watch(cluster.job(name)))


def _watch(job: Job) -> int:
    console = Console(highlight=False)
    try:
        record = watch.show(job.follow(), console, lambda: _past_losses(job))
    except KeyboardInterrupt:
        click.echo(f"\n{job.name} continues; to watch it again:  {_PROGRAM} watch {job.name}{job.flags}", err=True)
        return EXIT_INTERRUPTED
    return 0 if record.status.phase == "Succeeded" else EXIT_FAILED


def _past_losses(job: Job) -> list[tuple[int, float]]:
    """Return the (step, loss) pairs in the log of rank 0 so far, or an empty list if the log can't be read."""
    try:
        return logs.read_losses(job.logs(tail=_READ_LINES))
    except ClientError:
        return []


@cli.command("logs", epilog="Example:  kubectl finetune logs news --rank 3 --follow")
@click.argument("name")
@click.option("--rank", metavar="N", type=click.IntRange(min=0), default=0, help="Rank of the process; by default 0.")
@click.option("--attempt", metavar="N", type=click.IntRange(min=1), help="Number of the attempt; by default the latest.")
@click.option("--previous", "-p", is_flag=True, help="Show the attempt before the latest.")
@click.option("--follow", "-f", is_flag=True, help="Continue until the pod has ended.")
@click.option("--tail", metavar="N", type=click.IntRange(min=0), help="Begin with the last N lines of the pod's log.")
@cluster_options
def show_logs(  # one parameter per option
    cluster: FineTune, name: str, rank: int, attempt: int | None, previous: bool, follow: bool, tail: int | None
) -> None:
    """Show the log of one process of a job, whichever pod it runs in.

    Of an attempt whose pods are deleted, it shows the end of the log, which the pods keep in the volume of the job.
    """
    job = cluster.job(name)
    if previous:
        if attempt is not None:
            raise click.UsageError("use --attempt or --previous, not both")
        attempt = (job.status.attempt or 1) - 1
        if attempt < 1:
            raise click.UsageError(f"{name} is in its first attempt")
    for line in job.logs(rank, attempt, follow, tail, lambda problem: click.echo(f"… {problem}", err=True)):
        click.echo(line)


@cli.command("why", epilog="Example:  kubectl finetune why news")
@click.argument("name")
@cluster_options
def explain_job(cluster: FineTune, name: str) -> None:
    """Show on one screen what a job waits for, or why it failed, and what to do."""
    job = cluster.job(name)
    record = job.refresh()
    pods = job.pods()
    tail = _log_tail(job, why.failed_rank(record, pods)) if why.current_failure(record) or record.phase == "Failed" else []
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL)
    console.print(why.build_view(record, job.events_of(record), pods, tail))


def _log_tail(job: Job, rank: int | None) -> list[str]:
    if rank is None:
        return []
    try:
        return list(job.logs(rank, tail=_READ_LINES))[-_SHOWN_LINES:]
    except ClientError:  # The log is deleted, or the user may not read it. The screen shows the rest.
        return []


@cli.command(epilog="Example:  kubectl finetune suspend news --wait")
@click.argument("name")
@click.option("--wait", is_flag=True, help="Wait until the checkpoint is saved and the nodes are released.")
@click.option(
    "--timeout", metavar="SECONDS", type=click.IntRange(min=1), default=600, show_default=True, help="Time limit of --wait."
)
@cluster_options
def suspend(cluster: FineTune, name: str, wait: bool, timeout: int) -> None:
    """Suspend a job: it saves a checkpoint and releases its nodes. `resume` continues from the checkpoint."""
    job = cluster.job(name)
    _refuse_if_finished(job)
    job.suspend(wait, timeout)
    click.echo(f"{name} {'is' if wait else 'is being'} suspended; to resume it:  {_PROGRAM} resume {name}{job.flags}")


@cli.command(epilog="Example:  kubectl finetune resume news --wait")
@click.argument("name")
@click.option("--wait", is_flag=True, help="Wait until it trains or has succeeded.")
@click.option(
    "--timeout", metavar="SECONDS", type=click.IntRange(min=1), default=600, show_default=True, help="Time limit of --wait."
)
@cluster_options
def resume(cluster: FineTune, name: str, wait: bool, timeout: int) -> None:
    """Resume a suspended job from its last checkpoint."""
    job = cluster.job(name)
    _refuse_if_finished(job)
    if job.resume(wait, timeout).phase == "Succeeded":
        click.echo(f"{name} has succeeded; to fetch the model:  {_PROGRAM} pull {name} ./{name}{job.flags}")
    else:
        click.echo(f"{name} is resumed; to watch it:  {_PROGRAM} watch {name}{job.flags}")


def _refuse_if_finished(job: Job) -> None:
    record = job.refresh()
    if record.finished:
        raise RefusedError(f"{job.name} has {'succeeded' if record.phase == 'Succeeded' else 'failed'} already")


@cli.command(epilog="Example:  kubectl finetune pull news ./my-model")
@click.argument("name")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=pathlib.Path))
@click.option(
    "--report", is_flag=True, help="Instead of the model, fetch the files for `finetune report`; also for a failed job."
)
@cluster_options
def pull(cluster: FineTune, name: str, directory: pathlib.Path, report: bool) -> None:
    """Fetch the finished model of a job into DIR, which must not exist yet or must be empty.

    The command starts a pod with the trainer's image, which reads the job's volume, and deletes the pod at the end. It verifies
    each file. After an interruption, the same command continues where it stopped.
    """
    job = cluster.job(name)
    spec = job.refresh().spec
    try:
        with _transfer("starting a pod that reads the volume") as on_progress:
            job.pull(directory, on_progress, report)
    except KeyboardInterrupt:
        click.echo(f"\nStopped; run the same command again to continue with the files in {directory}.partial.", err=True)
        sys.exit(EXIT_INTERRUPTED)
    click.echo(f"The training record: {directory}" if report else f"The model: {directory}")
    place = str(directory)
    click.echo(f"  {shlex.join(['finetune', 'report', place]) if report else predict_command(place, spec, elsewhere=True)}")


@cli.command("put", epilog="Example:  kubectl finetune put ./reviews datasets --create --size 10Gi")
@click.argument("source", metavar="FILE|DIR", type=click.Path(path_type=pathlib.Path))
@click.argument("target", metavar="CLAIM[/PATH]")
@click.option("--create", is_flag=True, help="Create the claim if it does not exist; needs --size.")
@click.option("--size", metavar="SIZE", help="Size of the new claim, for example 10Gi.")
@click.option(
    "--access-mode",
    type=click.Choice(["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"]),
    default="ReadWriteOnce",
    show_default=True,
    help="Access mode of the new claim: ReadWriteMany if pods on several nodes use it at the same time.",
)
@click.option("--storage-class", metavar="NAME", help="Storage class of the new claim; by default that of the cluster.")
@click.option("--replace", is_flag=True, help="Replace PATH if it exists and differs.")
@click.option("--image", metavar="IMAGE", help="Image with Python 3 for the pod; by default that of the newest job.")
@click.option("--user", metavar="UID", type=click.IntRange(min=1), help="User and group of the files; by default those of jobs.")
@cluster_options
def put_files(  # one parameter per option
    cluster: FineTune,
    source: pathlib.Path,
    target: str,
    create: bool,
    size: str | None,
    access_mode: str,
    storage_class: str | None,
    replace: bool,
    image: str | None,
    user: int | None,
) -> None:
    """Copy a file or a folder into a claim, and verify it there.

    PATH is where it will be in the claim. Without PATH, or if PATH ends with /, it keeps its name. The command sends nothing that
    is in the claim already. After an interruption, the same command continues where it stopped.
    """
    if create != (size is not None):
        raise click.UsageError("use --create and --size together")
    new = put.NewClaim(size, access_mode, storage_class) if size is not None else None
    try:
        with _transfer("reading") as on_progress:
            placed = cluster.put(source, target, new, replace, put.PodOptions(image, user), on_progress)
    except KeyboardInterrupt:
        click.echo("\nStopped; run the same command again to continue.", err=True)
        sys.exit(EXIT_INTERRUPTED)
    done = f"{placed.sent:,} bytes sent" if placed.sent else "nothing to send"
    click.echo(f"{placed.files:,} {'file' if placed.files == 1 else 'files'} in the claim ({done}); in a FineTuneJob:")
    place = {"claim": {"claimName": placed.claim, "path": placed.path}}
    click.echo("  " + yaml.safe_dump(place, default_flow_style=None, width=sys.maxsize, allow_unicode=True).rstrip())


@contextlib.contextmanager
def _transfer(start: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show the progress of a transfer. Yields what to call with the bytes done, the bytes in all, and the current file."""
    columns: tuple[Any, ...] = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    progress = Progress(TextColumn("{task.description}", markup=False), BarColumn(), *columns, console=Console(stderr=True))
    with progress:
        task = progress.add_task(start, total=None)
        yield lambda done, size, file: progress.update(task, description=printable(file), completed=done, total=size)


def main() -> None:
    """Entry point of kubectl-finetune."""
    cli(prog_name=_PROGRAM)
