"""What `finetune push`, `predict` and `evaluate` share: a finished model's directory, and errors as one sentence."""

import contextlib
import json
import logging
import pathlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import click

from finetune_api import names
from finetune_api.cli import refuse
from finetune_api.reasons import FineTuneError, Reason

DEBUG = click.option("--debug", is_flag=True, help="Show the traceback of an error.")
DIRECTORY = click.argument("directory", metavar="DIR", type=click.Path(path_type=pathlib.Path))

_SIGNS_OF_A_MODEL = ("config.json", "adapter_config.json")


@contextlib.contextmanager
def one_sentence(debug: bool) -> Iterator[None]:
    """End the program with one sentence on standard error for whatever goes wrong; with --debug, with a traceback."""
    logging.basicConfig(format="%(message)s", level=logging.INFO if debug else logging.WARNING)
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")  # of libraries: they are about our code, not about the user's data
            yield
    except FineTuneError as error:
        if debug:
            raise
        sys.exit(refuse(error))
    except Exception as error:
        if debug:
            raise
        first_line = (str(error).strip().splitlines() or [""])[0]
        click.echo(f"{type(error).__name__}: {first_line} (--debug shows where)", err=True)
        sys.exit(names.EXIT_FAILED)


def model_directory(directory: pathlib.Path) -> pathlib.Path:
    """Where the model lies: in model/ of an output directory, or in the directory itself. Raises FineTuneError."""
    for candidate in (directory / "model", directory):
        if any((candidate / sign).is_file() for sign in _SIGNS_OF_A_MODEL):
            return candidate
    raise FineTuneError(
        Reason.CONFIGURATION_ERROR,
        f"DIR: {directory} holds no finished model; write the output directory of a job that has succeeded, or a directory with "
        "config.json",
    )


def known_to_run(directory: pathlib.Path, field: str) -> Any:
    """What run.json of an output directory (or of the one that a model directory is in) says; None where it does not."""
    for candidate in (directory, directory.resolve().parent):
        with contextlib.suppress(OSError, ValueError):
            return json.loads((candidate / "run.json").read_text()).get(field)
    return None
