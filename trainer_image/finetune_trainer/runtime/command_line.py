"""Shared code of `finetune push`, `predict` and `evaluate`: finds a finished model, and prints errors as one sentence."""

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

MODEL_FILES = ("config.json", "adapter_config.json")


@contextlib.contextmanager
def short_errors(debug: bool) -> Iterator[None]:
    """On any error, print one sentence to standard error and end the program. With --debug, show the traceback instead."""
    logging.basicConfig(format="%(message)s", level=logging.INFO if debug else logging.WARNING)
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")  # warnings of libraries are about our code, not about the user's data
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


def find_model_directory(directory: pathlib.Path) -> pathlib.Path:
    """Return the directory of the model: model/ in an output directory, or the directory itself. Raises FineTuneError."""
    for candidate in (directory / "model", directory):
        if any((candidate / name).is_file() for name in MODEL_FILES):
            return candidate
    raise FineTuneError(
        Reason.CONFIGURATION_ERROR,
        f"{directory}: holds no finished model; write the output directory of a job that has succeeded, or a directory with "
        "config.json",
    )


def read_run_field(directory: pathlib.Path, field: str) -> Any:
    """Return a field of run.json in an output directory, or in the parent of a model directory; None if it is missing."""
    for candidate in (directory, directory.resolve().parent):
        with contextlib.suppress(OSError, ValueError):
            return json.loads((candidate / "run.json").read_text()).get(field)
    return None
