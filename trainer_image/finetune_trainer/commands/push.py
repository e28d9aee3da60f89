"""`finetune push`."""

import pathlib
import re

import click

from finetune_api.reasons import FineTuneError, Reason
from finetune_trainer.runtime.command_line import DEBUG, DIRECTORY, find_model_directory, read_run_field, short_errors

_REPOSITORY = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")


@click.command(epilog="Example:  finetune push runs/news --to my-team/news")
@DIRECTORY
@click.option("--to", "repository", metavar="OWNER/NAME", help="Repository on the Hub.  [default: that of the job]")
@click.option("--public", is_flag=True, help="Make the repository public if it is created now.  [default: private]")
@click.option("--message", help="Commit message.")
@DEBUG
def push(directory: pathlib.Path, repository: str | None, public: bool, message: str | None, debug: bool) -> None:
    """Push the finished model in DIR (an output directory or the directory of a model) to the Hub.

    After a failed push, the same command continues and sends no file twice. It reads HF_TOKEN and HF_ENDPOINT.
    """
    with short_errors(debug):
        model = find_model_directory(directory)
        target = _checked(repository or read_run_field(directory, "repository"))
        # Imported late: the Hub's client takes half a second to import, and --help must not wait for it.
        from finetune_trainer.publish.push import upload

        name = read_run_field(directory, "name")
        commit_message = message or (f"Fine-tuned by {name}" if name else "A fine-tuned model")
        published = upload(model, target, not public, commit_message, "--to")
        click.echo(f"{published.url}\ncommit {published.commit}")


def _checked(repository: str | None) -> str:
    if repository is None:
        raise FineTuneError(Reason.CONFIGURATION_ERROR, "--to: the job names no repository; write --to OWNER/NAME")
    if not _REPOSITORY.fullmatch(repository):
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR, f"--to: {repository!r} is not a repository; write OWNER/NAME, for example my-team/news"
        )
    return repository
