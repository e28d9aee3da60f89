"""The command `finetune`, which works on FineTuneJob files without a cluster.

`validate` needs only this package. The other commands belong to the packages of the operator and the trainer, which do not import
each other. They are entry points. `finetune` imports a command only when the user calls it, so `validate` starts fast.
"""

import importlib.metadata
import os
import pathlib
import sys
from collections.abc import Iterable
from typing import Any

import click

from finetune_api import __version__, names
from finetune_api.files import SUFFIXES, check_files, printable
from finetune_api.manifest import STANDARD_INPUT
from finetune_api.reasons import FineTuneError

ENTRY_POINTS = "finetune.commands"


class _MissingCommand(click.Command):
    """Replaces a command whose packages are not installed. Names the extra that installs them."""

    def __init__(self, point: importlib.metadata.EntryPoint, error: ModuleNotFoundError) -> None:
        super().__init__(point.name, help="Not installed.", add_help_option=False)
        self.context_settings = {"ignore_unknown_options": True, "allow_extra_args": True}
        self._message = _missing_package(point, error)

    def invoke(self, ctx: click.Context) -> None:
        """Report the missing package. Accept any options."""
        raise click.ClickException(self._message)


def _missing_package(point: importlib.metadata.EntryPoint, error: ModuleNotFoundError) -> str:
    package = (error.name or str(error)).partition(".")[0]
    return f"`finetune {point.name}` needs the package {package}: pip install 'finetune-operator[{','.join(point.extras)}]'"


class Commands(click.Group):
    """The commands of this package and of the other installed packages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names without importing a command."""
        return sorted({*self.commands, *importlib.metadata.entry_points(group=ENTRY_POINTS).names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name; import it if it belongs to another package."""
        point = _entry_point(cmd_name)
        if cmd_name in self.commands or point is None:
            return self.commands.get(cmd_name)
        try:
            command = point.load()
        except ModuleNotFoundError as error:
            return _MissingCommand(point, error)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; if a package that it imports is not installed, name the extra that installs it."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            point = _entry_point(ctx.invoked_subcommand or "")
            if point is None:
                raise
            raise click.ClickException(_missing_package(point, error)) from None


def _entry_point(name: str) -> importlib.metadata.EntryPoint | None:
    return next(iter(importlib.metadata.entry_points(group=ENTRY_POINTS, name=name)), None)


@click.command("finetune", cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="finetune")
def main() -> None:
    """Fine-tune Hugging Face models from a FineTuneJob file."""


@main.command(epilog="Example:  finetune validate job.yaml deploy/")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=pathlib.Path))
@click.option("--data", is_flag=True, help="Also read the data, and say for what the labels are taken; needs the extra trainer.")
@click.option("--claim", "claims", multiple=True, metavar="NAME=DIR", help="For --data: local directory to use for a claim.")
@click.pass_context
def validate(ctx: click.Context, files: tuple[pathlib.Path, ...], data: bool, claims: tuple[str, ...]) -> None:
    """Report what a cluster would reject, with file and line. Needs no cluster.

    FILE is a YAML or JSON file, a folder (every *.yaml, *.yml and *.json in it and its subfolders, except hidden files and
    folders), or - for standard input. Objects of other kinds are skipped. A push needs a token: from the Secret that the file
    names, or for `finetune run` from HF_TOKEN.
    """
    if claims and not data:
        raise click.UsageError("--claim is for --data")
    paths = list(dict.fromkeys(find_files(files)))
    if data and STANDARD_INPUT in paths:
        raise click.UsageError("--data needs files: standard input can be read once only")
    result = check_files(paths, secrets_only=not os.environ.get(names.ENV_HUB_TOKEN))
    for problem in result.problems:
        click.echo(f"{click.style(problem.location, bold=True)}: {click.style(printable(problem.message), fg='red')}")
    skipped = f" ({_count(result.skipped, 'other object')} skipped)" if result.skipped else ""
    counts = (len(paths), "file"), (result.found, "FineTuneJob"), (len(result.problems), "problem")
    summary = ", ".join(_count(number, noun) for number, noun in counts) + skipped
    click.secho(summary, bold=True, fg="red" if result.problems else "green")
    if result.problems:
        sys.exit(names.EXIT_REFUSED)
    if data:
        _check_data(ctx, paths, claims)


def _check_data(ctx: click.Context, paths: Iterable[pathlib.Path], claims: Iterable[str]) -> None:
    """Read the data of each file as `finetune preview` does, without showing rows. Exit at the first error."""
    preview = main.get_command(ctx, "preview")
    assert preview is not None
    options = [word for claim in claims for word in ("--claim", claim)]
    for path in paths:
        if check_files([path]).jobs:
            click.secho(f"{path}:", bold=True)
            preview.main([str(path), "--rows", "0", *options], prog_name="finetune validate --data", standalone_mode=False)


def find_files(paths: Iterable[pathlib.Path]) -> Iterable[pathlib.Path]:
    """Yield each file of ``paths``, and for each folder the files below it, ordered by name."""
    for path in paths:
        if path == STANDARD_INPUT or not path.is_dir():
            yield path
            continue
        for entry in sorted(path.rglob("*")):
            hidden = any(part.startswith(".") for part in entry.relative_to(path).parts)
            if not hidden and entry.suffix.lower() in SUFFIXES and entry.is_file():
                yield entry


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def refuse(error: FineTuneError) -> int:
    """Print the error on standard error and return its exit code."""
    click.echo(error.message, err=True)
    return names.EXIT_REFUSED


if __name__ == "__main__":
    main()
