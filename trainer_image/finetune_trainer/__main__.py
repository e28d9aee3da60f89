"""`finetune run` trains a job's YAML file on this machine, without a cluster. `python -m finetune_trainer` also has `plan`."""

import os
import pathlib
import signal
import sys
import tempfile
from typing import TYPE_CHECKING

import click

from finetune_api import __version__, names
from finetune_api.files import read_job
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.resource import FineTuneJob
from finetune_api.wire import RunConfig
from finetune_trainer.commands.arguments import CLAIM, missing_claims, parse_claims
from finetune_trainer.plan.command import plan

if TYPE_CHECKING:  # imported late, so that the command starts fast
    from rich.console import Console


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="finetune")
def main() -> None:
    """Fine-tune Hugging Face models from a FineTuneJob file."""


main.add_command(plan)


@main.command(epilog="Example:  finetune run examples/news.yaml --claim minilm=./models/minilm --claim news=./data/news")
@click.argument("file", metavar="FILE", type=click.Path(path_type=pathlib.Path))
@CLAIM
@click.option(
    "--output", type=click.Path(path_type=pathlib.Path), help="Directory for checkpoints and model.  [default: runs/<job's name>]"
)
@click.option("--processes", type=click.IntRange(1, 64), help="Training processes.  [default: one per GPU, or one]")
@click.option("--publish/--no-publish", default=True, help="Push the model as spec.publish says.  [default: publish]")
@click.option("--debug", is_flag=True, help="Show everything that the training processes print.")
def run(
    file: pathlib.Path, claims: tuple[str, ...], output: pathlib.Path | None, processes: int | None, publish: bool, debug: bool
) -> None:
    """Train the job in FILE on this machine, in the foreground. Ctrl-C saves a checkpoint; the same command resumes from it."""
    from rich.console import Console

    from finetune_trainer.commands.console import print_error

    console = Console(highlight=False)
    try:
        job = read_job(file)
        config = local_config(job, parse_claims(claims), output, processes, publish)
    except FineTuneError as error:
        print_error(console, error.message)
        sys.exit(names.EXIT_REFUSED)
    if job.spec.distributed.gpus_per_node and not config.spec.distributed.gpus_per_node:
        console.print("spec.distributed.gpusPerNode asks for GPUs, and this machine has none: training on the CPU")
    if job.spec.hub.endpoint:
        os.environ[names.ENV_HUB_ENDPOINT] = job.spec.hub.endpoint  # the Hub's client reads it once, when it is imported
    sys.exit(run_locally(config, console, debug))


def local_config(
    job: FineTuneJob, claims: dict[str, str], output: pathlib.Path | None, processes: int | None, publish: bool
) -> RunConfig:
    """Return the RunConfig that the operator would write to the ConfigMap, for one machine, with directories for claims."""
    gpus = visible_gpus()
    # The job's own number of GPUs is that of a node of the cluster.
    spec = job.spec.model_copy(update={"distributed": job.spec.distributed.model_copy(update={"gpus_per_node": gpus})})
    if not publish:
        spec = spec.model_copy(update={"publish": None})
    missing = missing_claims(spec.claim_names(), claims)
    if missing:
        raise FineTuneError(Reason.CONFIGURATION_ERROR, f"the file reads from claims that are not given: add {missing}")
    if output is None:
        claim = spec.output.claim
        given = pathlib.Path(claims[claim.claim_name]) / (claim.path or "") if claim and claim.claim_name in claims else None
        output = given or pathlib.Path("runs") / job.metadata.name
    return RunConfig(
        name=job.metadata.name,
        namespace=job.metadata.namespace,
        spec=spec,
        nodes=1,
        processes_per_node=processes or gpus or 1,
        claims=claims,
        output=str(output.resolve()),
    )


def visible_gpus() -> int:
    """Return the number of GPUs that this process may use. It does not import torch, because the launcher has to start fast."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return len([device for device in listed.split(",") if device.strip() not in ("", "-1")])
    return len(list(pathlib.Path("/proc/driver/nvidia/gpus").glob("*")))


def run_locally(config: RunConfig, console: "Console", debug: bool) -> int:
    """Launch the training, show its progress and its result, and return the exit code."""
    from finetune_trainer.commands.console import ProgressView, print_error, show_result, tail
    from finetune_trainer.output.directory import OutputDirectory
    from finetune_trainer.pod.launch import Launcher, exit_immediately
    from finetune_trainer.pod.processes import PodRank
    from finetune_trainer.pod.termination_message import exit_code
    from finetune_trainer.runtime.state import RunState

    output = OutputDirectory(pathlib.Path(config.output))
    log_file = output.directory / "train.log"
    try:
        output.directory.mkdir(parents=True, exist_ok=True)
        log_stream = log_file.open("ab")
    except OSError as error:
        print_error(console, f"--output: {output.directory} can't be written: {error.strerror}")
        return names.EXIT_REFUSED
    with tempfile.TemporaryDirectory(prefix="finetune-") as directory, log_stream, ProgressView(console) as progress:
        state = RunState(pathlib.Path(directory))
        state.create()
        launcher = Launcher(config, PodRank(), state)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: launcher.request_stop())
        report = launcher.run(None if debug else log_stream, progress.show)
        progress.show(report)
    if report.phase == "Succeeded":
        show_result(console, report, output, config.spec)
    elif report.phase == "Interrupted":
        console.print(f"{report.message}. The same command resumes from there.")
    else:
        assert report.failure
        if report.failure.traceback and not debug:
            console.print(tail(log_file), markup=False, soft_wrap=True)
            console.print(f"(full log: {log_file})", markup=False, soft_wrap=True)
        print_error(console, report.failure.message, report.failure.hint)
    if launcher.push_abandoned:
        exit_immediately(exit_code(report))
    return exit_code(report)


if __name__ == "__main__":
    main()
