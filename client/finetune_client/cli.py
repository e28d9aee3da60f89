"""`kubectl finetune`: what kubectl does not do with FineTuneJobs."""

import json
import pathlib
import shlex
import sys
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from finetune_api import __version__
from finetune_api.cli import find_files
from finetune_api.files import check_files
from finetune_api.reasons import FineTuneError, Reason
from finetune_client import listing, logs, watch, why
from finetune_client.client import FineTune, Job
from finetune_client.errors import ClientError, RefusedError
from finetune_client.options import EXIT_FAILED, EXIT_INTERRUPTED, Command, cluster_options

_WIDE = 240
_CURVE_LINES = 10_000
_LOG_LINES = 15  # of a pod that failed
_PROGRAM = "kubectl finetune"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name=_PROGRAM)
def cli() -> None:
    """Submit FineTuneJobs to a cluster, watch them, find out why they wait or failed, and fetch their models.

    The namespace is that of the kubeconfig's context, as with kubectl.
    """


cli.command_class = Command


@cli.command(epilog="Example:  kubectl finetune submit job.yaml --watch")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=pathlib.Path))
@click.option("--name", metavar="NAME", help="Create it under this name; of one job only.")
@click.option("--watch", "watches", is_flag=True, help="Go on watching it; of one job only.")
@cluster_options
def submit(cluster: FineTune, files: tuple[pathlib.Path, ...], name: str | None, watches: bool) -> None:
    """Create FineTuneJobs, once all of them are valid.

    FILE is a YAML or JSON file, a folder of them, or - for standard input. What is wrong is said with file and line, as
    `finetune validate` does, before anything is created.
    """
    verdict = check_files(list(dict.fromkeys(find_files(files))))
    if not verdict.problems and not verdict.jobs:
        raise FineTuneError(Reason.INVALID_SPEC, "no FineTuneJob in " + ", ".join(map(str, files)))
    if verdict.problems:
        raise FineTuneError(Reason.INVALID_SPEC, "\n".join(map(str, verdict.problems)))
    if (name or watches) and len(verdict.jobs) > 1:
        raise FineTuneError(Reason.INVALID_SPEC, f"--name and --watch are for one job, and there are {len(verdict.jobs)}")
    manifests = [cluster.prepare(given, name) for given in verdict.jobs]
    for manifest in manifests:
        job = cluster.submit(manifest)
        click.echo(f"{click.style('created', fg='green')} finetunejob {job.name} in namespace {job.namespace}")
        if not watches:
            click.echo(f"  {_PROGRAM} watch {job.name}{job.place}")
    if watches:
        sys.exit(_watch(job))


@cli.command("list", epilog="Example:  kubectl finetune list -A")
@click.option("--all-namespaces", "-A", is_flag=True, help="The jobs of all namespaces.")
@click.option("--output", "-o", type=click.Choice(["table", "json"]), default="table", help="table, or json for programs.")
@cluster_options
def list_jobs(cluster: FineTune, all_namespaces: bool, output: str) -> None:
    """List FineTuneJobs: those that go on first, then those that ended, the latest first."""
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
    """Show a job as it goes on, until it has ended: with 0 when it succeeded, with 1 when it failed."""
    sys.exit(_watch(cluster.job(name)))


def _watch(job: Job) -> int:
    console = Console(highlight=False)
    try:
        record = watch.show(job.follow(), console, lambda: _losses_so_far(job))
    except KeyboardInterrupt:
        click.echo(f"\n{job.name} goes on; to watch it again:  {_PROGRAM} watch {job.name}{job.place}", err=True)
        return EXIT_INTERRUPTED
    return 0 if record.status.phase == "Succeeded" else EXIT_FAILED


def _losses_so_far(job: Job) -> list[tuple[int, float]]:
    """What the log of rank 0 tells of the time before somebody watched. A courtesy: whoever may not read logs has none."""
    try:
        return logs.read_losses(job.logs(tail=_CURVE_LINES))
    except ClientError:
        return []


@cli.command("logs", epilog="Example:  kubectl finetune logs news --rank 3 --follow")
@click.argument("name")
@click.option("--rank", metavar="N", type=click.IntRange(min=0), default=0, help="The process whose log it is; 0 if left out.")
@click.option("--attempt", metavar="N", type=click.IntRange(min=1), help="The newest if left out.")
@click.option("--previous", "-p", is_flag=True, help="The attempt before the newest.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the pod has ended.")
@click.option("--tail", metavar="N", type=click.IntRange(min=0), help="Only so many lines of the pod before the end.")
@cluster_options
def show_logs(  # its options are the command line's
    cluster: FineTune, name: str, rank: int, attempt: int | None, previous: bool, follow: bool, tail: int | None
) -> None:
    """Show the log of one process of a job, wherever it runs."""
    job = cluster.job(name)
    if previous:
        if attempt is not None:
            raise click.UsageError("write --attempt or --previous, not both")
        attempt = (job.status.attempt or 1) - 1
        if attempt < 1:
            raise click.UsageError(f"{name} is in its first attempt")
    for line in job.logs(rank, attempt, follow, tail, lambda problem: click.echo(f"… {problem}", err=True)):
        click.echo(line)


@cli.command("why", epilog="Example:  kubectl finetune why news")
@click.argument("name")
@cluster_options
def explain_job(cluster: FineTune, name: str) -> None:
    """Say on one screen what a job waits for, or why it failed, and what to do."""
    job = cluster.job(name)
    record = job.refresh()
    pods = job.pods()
    tail = _log_tail(job, why.culprit(record, pods)) if record.status.failure or record.phase == "Failed" else []
    # Without a terminal a table has as many columns as it needs.
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDE)
    console.print(why.build_view(record, job.events_of(record), pods, tail))


def _log_tail(job: Job, rank: int | None) -> list[str]:
    if rank is None:
        return []
    try:
        return list(job.logs(rank, tail=_CURVE_LINES))[-_LOG_LINES:]
    except ClientError:  # gone, or not to be read by everybody; what is known without it is on the screen
        return []


@cli.command(epilog="Example:  kubectl finetune suspend news --wait")
@click.argument("name")
@click.option("--wait", is_flag=True, help="Until the checkpoint is saved and the machines are given back.")
@click.option("--timeout", metavar="SECONDS", type=click.IntRange(min=1), default=600, show_default=True, help="Of --wait.")
@cluster_options
def suspend(cluster: FineTune, name: str, wait: bool, timeout: int) -> None:
    """Have a job save a checkpoint and give its machines back; `resume` has it go on from there."""
    job = cluster.job(name)
    _refuse_if_finished(job)
    job.suspend(wait, timeout)
    click.echo(f"{name} {'is' if wait else 'is being'} suspended; to go on:  {_PROGRAM} resume {name}{job.place}")


@cli.command(epilog="Example:  kubectl finetune resume news --wait")
@click.argument("name")
@click.option("--wait", is_flag=True, help="Until it trains, or is through.")
@click.option("--timeout", metavar="SECONDS", type=click.IntRange(min=1), default=600, show_default=True, help="Of --wait.")
@cluster_options
def resume(cluster: FineTune, name: str, wait: bool, timeout: int) -> None:
    """Have a suspended job go on from its last checkpoint."""
    job = cluster.job(name)
    _refuse_if_finished(job)
    if job.resume(wait, timeout).phase == "Succeeded":
        click.echo(f"{name} has succeeded; to fetch the model:  {_PROGRAM} pull {name} ./{name}{job.place}")
    else:
        click.echo(f"{name} goes on; to watch it:  {_PROGRAM} watch {name}{job.place}")


def _refuse_if_finished(job: Job) -> None:
    record = job.refresh()
    if record.finished:
        raise RefusedError(f"{job.name} has {'succeeded' if record.phase == 'Succeeded' else 'failed'} already")


@cli.command(epilog="Example:  kubectl finetune pull news ./my-model")
@click.argument("name")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=pathlib.Path))
@click.option("--report", is_flag=True, help="In place of the model what `finetune report` reads; also of a job that failed.")
@cluster_options
def pull(cluster: FineTune, name: str, directory: pathlib.Path, report: bool) -> None:
    """Fetch the finished model of a job into DIR, which must not be there yet or be empty.

    A pod of the trainer's image reads the job's volume, and goes away again. Each file is verified. Broken off, the same command
    goes on where it ended.
    """
    job = cluster.job(name)
    columns: tuple[Any, ...] = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    progress = Progress(TextColumn("{task.description}", markup=False), BarColumn(), *columns, console=Console(stderr=True))
    try:
        with progress:
            task = progress.add_task("starting a pod that reads the volume", total=None)
            job.pull(
                directory,
                lambda done, size, file: progress.update(task, description=file, completed=done, total=size),
                report,
            )
    except KeyboardInterrupt:
        click.echo(f"\nStopped; the same command goes on with what is in {directory}.partial.", err=True)
        sys.exit(EXIT_INTERRUPTED)
    click.echo(f"The record of the training: {directory}" if report else f"The model: {directory}")
    quoted = shlex.quote(str(directory))
    click.echo(f"  finetune report {quoted}" if report else f"  finetune predict {quoted} TEXT")


def main() -> None:
    """Entry point of kubectl-finetune."""
    cli(prog_name=_PROGRAM)
