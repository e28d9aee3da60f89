"""`finetune push`."""

import pathlib
import re

import click

from finetune_api.reasons import FineTuneError, Reason
from finetune_trainer.runtime.sentences import DEBUG, DIRECTORY, known_to_run, model_directory, one_sentence

_REPOSITORY = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")


@click.command(epilog="Example:  finetune push runs/news --to my-team/news")
@DIRECTORY
@click.option("--to", "repository", metavar="OWNER/NAME", help="Repository of the Hub.  [default: that of the job]")
@click.option("--public", is_flag=True, help="Let everybody see the repository if it is created now.  [default: private]")
@click.option("--message", help="Message of the commit.")
@DEBUG
def push(directory: pathlib.Path, repository: str | None, public: bool, message: str | None, debug: bool) -> None:
    """Push the finished model in DIR, an output directory or a model's own, to the Hub.

    Where it goes on after a push that failed, nothing is sent twice. Access to the Hub is as usual, by HF_TOKEN and HF_ENDPOINT.
    """
    with one_sentence(debug):
        model = model_directory(directory)
        target = _checked(repository or known_to_run(directory, "repository"))
        # Imported late: the Hub's client takes half a second, which --help need not wait for.
        from finetune_trainer.publish.push import upload

        name = known_to_run(directory, "name")
        said = message or (f"Fine-tuned by {name}" if name else "A fine-tuned model")
        published = upload(model, target, not public, said, "--to")
        click.echo(f"{published.url}\ncommit {published.commit}")


def _checked(repository: str | None) -> str:
    if repository is None:
        raise FineTuneError(Reason.CONFIGURATION_ERROR, "--to: the job names no repository; write --to OWNER/NAME")
    if not _REPOSITORY.fullmatch(repository):
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR, f"--to: {repository!r} is no repository; write OWNER/NAME, for example my-team/news"
        )
    return repository
