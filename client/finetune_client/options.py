"""What all commands of `kubectl finetune` have in common: which cluster is meant, and how errors are said."""

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

# 2 is also what click ends with where the command line is wrong.
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


class Command(click.Command):
    """A command whose errors are one sentence each; --debug adds the traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; end with 1 where the cluster refuses, with 2 where a file is not valid, with 130 after Ctrl-C."""
        debug = ctx.params.pop("debug")
        try:
            return super().invoke(ctx)
        except (ClientError, FineTuneError) as error:
            if debug:
                raise
            for line in error.message.splitlines():
                complain(line)
            ctx.exit(EXIT_USAGE if isinstance(error, FineTuneError) else EXIT_FAILED)
        except KeyboardInterrupt:  # of a command that has nothing to add
            click.echo(err=True)  # after the ^C of the terminal
            ctx.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:  # of `| head`
            sys.stderr.close()
            ctx.exit(EXIT_FAILED)


def complain(sentence: str) -> None:
    """One sentence on standard error."""
    click.echo(f"{click.style('error:', fg='red', bold=True)} {printable(sentence)}", err=True)


def cluster_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of kubectl that say which cluster is meant; the function gets them as ``cluster``, a FineTune."""

    @functools.wraps(function)
    def connected(namespace: str | None, context: str | None, kubeconfig: pathlib.Path | None, **given: Any) -> Any:
        return function(cluster=FineTune(namespace, context=context, kubeconfig=kubeconfig), **given)

    for option in (
        click.option("--debug", is_flag=True, help="Show the traceback of an error."),
        click.option("--kubeconfig", metavar="FILE", type=click.Path(path_type=pathlib.Path), help="The kubeconfig to use."),
        click.option("--context", metavar="NAME", help="The context of the kubeconfig to use."),
        click.option("--namespace", "-n", metavar="NAME", help="The namespace; that of the context if left out."),
    ):
        connected = option(connected)
    return connected
