"""`finetune`: what can be done with a FineTuneJob file without a cluster.

`validate` needs nothing but this package. The other commands belong to the operator and the trainer, which never meet: they
are found as entry points, and imported only when they are called for, so that `validate` answers at once.
"""

import importlib.metadata
import pathlib
import sys
from collections.abc import Iterable
from typing import Any

import click

from finetune_api import __version__, names
from finetune_api.files import ENDINGS, check_files, printable
from finetune_api.manifest import STANDARD_INPUT
from finetune_api.reasons import FineTuneError

ENTRY_POINTS = "finetune.commands"


class _MissingCommand(click.Command):
    """Stands for a command whose packages are not installed, and says which extra brings them."""

    def __init__(self, point: importlib.metadata.EntryPoint, error: ModuleNotFoundError) -> None:
        super().__init__(point.name, help="Not installed.", add_help_option=False)
        self.context_settings = {"ignore_unknown_options": True, "allow_extra_args": True}
        self._sentence = _missing_package(point, error)

    def invoke(self, ctx: click.Context) -> None:
        """Refuse, whatever the options."""
        raise click.ClickException(self._sentence)


def _missing_package(point: importlib.metadata.EntryPoint, error: ModuleNotFoundError) -> str:
    package = (error.name or str(error)).partition(".")[0]
    return f"`finetune {point.name}` needs the package {package}: pip install 'finetune[{','.join(point.extras)}]'"


class Commands(click.Group):
    """The commands of this package, and those of the packages that are installed beside it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, without an import."""
        return sorted({*self.commands, *importlib.metadata.entry_points(group=ENTRY_POINTS).names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now if it is another package's."""
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
        """Run the command; a package that it imports only now, and that is not installed, is named as one of its extra."""
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
def validate(files: tuple[pathlib.Path, ...]) -> None:
    """Say what a cluster would refuse, with file and line, and without a cluster.

    FILE is a YAML or JSON file, a folder (every *.yaml, *.yml and *.json in it and below, hidden ones left out), or - for
    standard input. Objects of other kinds are skipped.
    """
    paths = list(dict.fromkeys(find_files(files)))
    verdict = check_files(paths)
    for problem in verdict.problems:
        click.echo(f"{click.style(problem.place, bold=True)}: {click.style(printable(problem.sentence), fg='red')}")
    skipped = f" ({_count(verdict.skipped, 'other object')} skipped)" if verdict.skipped else ""
    counts = (len(paths), "file"), (verdict.found, "FineTuneJob"), (len(verdict.problems), "problem")
    summary = ", ".join(_count(number, noun) for number, noun in counts) + skipped
    click.secho(summary, bold=True, fg="red" if verdict.problems else "green")
    sys.exit(names.EXIT_REFUSED if verdict.problems else 0)


def find_files(paths: Iterable[pathlib.Path]) -> Iterable[pathlib.Path]:
    """Files as they are, folders as the files below them in the order of their names."""
    for path in paths:
        if path == STANDARD_INPUT or not path.is_dir():
            yield path
            continue
        for entry in sorted(path.rglob("*")):
            hidden = any(part.startswith(".") for part in entry.relative_to(path).parts)
            if not hidden and entry.suffix.lower() in ENDINGS and entry.is_file():
                yield entry


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def refuse(error: FineTuneError) -> int:
    """Print a refusal on standard error; the exit code for it."""
    click.echo(error.message, err=True)
    return names.EXIT_REFUSED


if __name__ == "__main__":
    main()
