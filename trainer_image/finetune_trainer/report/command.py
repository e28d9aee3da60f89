"""`finetune report`."""

import pathlib

import click

from finetune_trainer.report import NAME
from finetune_trainer.runtime.command_line import DEBUG, short_errors


@click.command(epilog="Example:  finetune report runs/news --output news.html")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=pathlib.Path))
@click.option(
    "--output", type=click.Path(path_type=pathlib.Path, dir_okay=False), help=f"File to write.  [default: {NAME} in DIR]"
)
@DEBUG
def report(directory: pathlib.Path, output: pathlib.Path | None, debug: bool) -> None:
    """Write one HTML page about the training in DIR: progress, evaluation and configuration. The page needs no network.

    DIR is an output directory, also of a training that is running or was interrupted. For a job on a cluster that has ended or
    failed, fetch its record first: kubectl finetune pull NAME DIR --report.
    """
    with short_errors(debug):
        # Imported late: matplotlib takes a second, and --help and wrong arguments must not wait for it.
        from finetune_trainer.report.read import read_training

        training = read_training(directory)
        from finetune_trainer.report.page import write

        path = output or training.directory / NAME
        write(training, path)
        click.echo(str(path))
