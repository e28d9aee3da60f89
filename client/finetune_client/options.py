"""Options and error handling that all commands of `kubectl finetune` share."""

import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import click

from finetune_api.files import printable
from finetune_api.reasons import FineTuneError
from finetune_client.client import FineTune
from finetune_client.errors import ClientError

# click also exits with 2 if the command line is wrong.
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


class Command(click.Command):
    """A command that prints each error as one sentence; --debug raises it, with its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Exit with 1 after an error of the cluster, with 2 if a file is invalid, with 130 after Ctrl-C."""
        debug = ctx.params.pop("debug")
        try:
            return super().invoke(ctx)
        except (ClientError, FineTuneError) as error:
            if debug:
                raise
            for line in error.message.splitlines():
                print_error(line)
            ctx.exit(EXIT_USAGE if isinstance(error, FineTuneError) else EXIT_FAILED)
        except KeyboardInterrupt:  # in a command that does not handle it itself
            click.echo(err=True)  # ends the line where the terminal shows ^C
            ctx.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:  # for example `| head`
            sys.stderr.close()
            ctx.exit(EXIT_FAILED)


def print_error(sentence: str) -> None:
    """Print one sentence to standard error."""
    click.echo(f"{click.style('error:', fg='red', bold=True)} {printable(sentence)}", err=True)


def cluster_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add kubectl's options that select the cluster. The function receives them as ``cluster``, a FineTune."""

    @functools.wraps(function)
    def connected(namespace: str | None, context: str | None, kubeconfig: pathlib.Path | None, **given: Any) -> Any:
        return function(cluster=FineTune(namespace, context=context, kubeconfig=kubeconfig), **given)

    for option in (
        click.option("--debug", is_flag=True, help="Show the traceback of an error."),
        click.option("--kubeconfig", metavar="FILE", type=click.Path(path_type=pathlib.Path), help="The kubeconfig to use."),
        click.option("--context", metavar="NAME", help="The context of the kubeconfig to use."),
        click.option("--namespace", "-n", metavar="NAME", help="The namespace; by default that of the context."),
    ):
        connected = option(connected)
    return connected
