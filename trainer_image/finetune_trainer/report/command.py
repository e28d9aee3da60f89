"""`finetune report`."""

import pathlib

import click

from finetune_trainer.report import NAME
from finetune_trainer.runtime.sentences import DEBUG, one_sentence


@click.command(epilog="Example:  finetune report runs/news --output news.html")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=pathlib.Path))
@click.option(
    "--output", type=click.Path(path_type=pathlib.Path, dir_okay=False), help=f"File to write.  [default: {NAME} in DIR]"
)
@DEBUG
def report(directory: pathlib.Path, output: pathlib.Path | None, debug: bool) -> None:
    """Write one HTML page on the training in DIR: its course, how good the model is, with what it was made. It needs no network.

    DIR is an output directory, also of a training that runs or was interrupted. Of a job on a cluster that has ended, also of one
    that failed, fetch its record first: kubectl finetune pull NAME DIR --report.
    """
    with one_sentence(debug):
        # Imported late: drawing takes a second, which --help and a slip need not wait for.
        from finetune_trainer.report.read import read_training

        training = read_training(directory)
        from finetune_trainer.report.page import write

        path = output or training.directory / NAME
        write(training, path)
        click.echo(str(path))
