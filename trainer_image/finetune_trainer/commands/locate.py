"""Finds the finished model that a command names: an output directory, the directory of a model, or a repository on the Hub."""

import pathlib
import re

import click

from finetune_api.reasons import FineTuneError, Reason
from finetune_trainer.runtime.command_line import MODEL_FILES, find_model_directory

MODEL = click.argument("model", metavar="MODEL", type=click.Path(path_type=pathlib.Path))
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+")


def find_model(model: pathlib.Path) -> pathlib.Path:
    """Return the directory of a finished model, downloaded if the name is that of a repository. Raise FineTuneError."""
    if model.exists() or not _REPOSITORY.fullmatch(str(model)):
        return find_model_directory(model)
    # Imported late: the Hub's client takes half a second to import, and a directory does not need it.
    from finetune_trainer.hub.client import download_model

    try:
        directory = download_model(str(model))
    except FineTuneError as error:
        message = f"there is no directory {model}; as a repository on the Hub, {error.message}"
        raise FineTuneError(error.reason, message) from None
    if not any((directory / name).is_file() for name in MODEL_FILES):
        raise FineTuneError(Reason.CONFIGURATION_ERROR, f"{model}: the repository holds no model: it has no config.json")
    return directory
