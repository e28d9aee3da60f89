"""`finetune predict`."""

import json
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import Message, Sample
from finetune_api.status import SampleAnswer, describe_tags
from finetune_trainer.commands.arguments import CLAIM, parse_claims
from finetune_trainer.commands.locate import MODEL, find_model
from finetune_trainer.runtime.command_line import DEBUG, short_errors

if TYPE_CHECKING:
    from finetune_trainer.tasks.base import Task

BASE = click.option(
    "--base", metavar="DIR|OWNER/NAME", help="Base model of an adapter, if it is not the one that the adapter names."
)
TRUST = click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the model.")
_STANDARD_INPUT = "-"
_MAX_TEXT_LENGTH = 4096


@click.command(epilog="Example:  finetune predict runs/news 'The striker scored twice.' 'Shares fell.'")
@MODEL
@click.argument("texts", metavar="TEXT...", nargs=-1, required=True)
@click.option("--pair", "pairs", metavar="TEXT", multiple=True, help="Second text, for models of text pairs; one for each TEXT.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each text.")
@BASE
@CLAIM
@TRUST
@DEBUG
def predict(
    model: pathlib.Path,
    texts: tuple[str, ...],
    pairs: tuple[str, ...],
    as_json: bool,
    base: str | None,
    claims: tuple[str, ...],
    trust_remote_code: bool,
    debug: bool,
) -> None:
    """Print the prediction of a finished model for each TEXT: class, words for [MASK], named entities, or answer.

    MODEL is an output directory, the directory of a model, or a repository on the Hub. A TEXT of - stands for the lines of
    standard input.
    """
    with short_errors(debug):
        given, samples = parse_claims(claims), _samples(texts, pairs)
        directory = find_model(model)
        # Imported late: torch takes seconds, and --help and wrong arguments must not wait for it.
        from finetune_trainer.commands.finished import load_finished

        task = load_finished(directory, base, given, trust_remote_code)
        for sample in samples:
            [answer] = task.answer([_for_task(sample, task)])
            click.echo(json.dumps(answer.to_wire(), ensure_ascii=False) if as_json else describe(answer))


def _samples(texts: Sequence[str], pairs: Sequence[str]) -> list[Sample]:
    read: list[str] = []
    for text in texts:
        read += [line.rstrip("\n") for line in sys.stdin if line.strip()] if text == _STANDARD_INPUT else [text]
    if pairs and len(pairs) != len(read):
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR, f"--pair: {len(pairs)} for {len(read)} texts; write one --pair for each TEXT"
        )
    for text in (*read, *pairs):
        if not 0 < len(text) <= _MAX_TEXT_LENGTH:
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR, f"TEXT: {text[:40]!r} has {len(text)} characters; write 1 to {_MAX_TEXT_LENGTH}"
            )
    return [Sample(text=text, text_pair=pairs[number] if pairs else None) for number, text in enumerate(read)]


def _for_task(sample: Sample, task: "Task") -> Sample:
    """Return the sample in the form that the task needs. For sft, a text becomes a message of the user."""
    if sample.text_pair is not None and task.spec.task != "text-classification":
        raise FineTuneError(Reason.CONFIGURATION_ERROR, f"--pair: {task.spec.task} does not support text pairs; leave it out")
    if task.spec.task != "sft":
        return sample
    return Sample(messages=[Message(role="user", content=sample.text or "")])


def describe(answer: SampleAnswer) -> str:
    """Return an answer as one line. Generated text may have several lines."""
    if answer.guesses is not None:
        return "  ".join(f"{guess.token} {guess.score:.4f}" for guess in answer.guesses)
    if answer.entities is not None:
        return "  ".join(f"{entity.label}: {entity.text}" for entity in answer.entities) or "(nothing found)"
    if answer.answer is not None:
        return answer.answer
    if answer.labels is not None:
        return describe_tags(answer.labels, digits=4)
    score = "" if answer.score is None else f"{answer.score:.4f}"
    return f"{answer.label}  {score}".rstrip() if answer.label is not None else score
