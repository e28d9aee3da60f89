"""`finetune predict`."""

import json
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import Message, Sample
from finetune_api.status import SampleAnswer
from finetune_trainer.runtime.sentences import DEBUG, DIRECTORY, model_directory, one_sentence

if TYPE_CHECKING:
    from finetune_trainer.tasks.base import Task

BASE = click.option("--base", metavar="DIR|OWNER/NAME", help="Model that the adapter in DIR belongs to, where it does not say.")
TRUST = click.option("--trust-remote-code", is_flag=True, help="Run Python code that the model carries.")
_STANDARD_INPUT = "-"
_LONGEST_TEXT = 4096


@click.command(epilog="Example:  finetune predict runs/news 'The striker scored twice.' 'Shares fell.'")
@DIRECTORY
@click.argument("texts", metavar="TEXT...", nargs=-1, required=True)
@click.option("--pair", "pairs", metavar="TEXT", multiple=True, help="Second text, for models of pairs; one for each TEXT.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each text.")
@BASE
@TRUST
@DEBUG
def predict(
    directory: pathlib.Path,
    texts: tuple[str, ...],
    pairs: tuple[str, ...],
    as_json: bool,
    base: str | None,
    trust_remote_code: bool,
    debug: bool,
) -> None:
    """Say what the finished model in DIR makes of each TEXT: its class, the words behind [MASK], what is named in it, an answer.

    DIR is an output directory or a model's own. A TEXT of - stands for the lines of standard input.
    """
    with one_sentence(debug):
        model = model_directory(directory)
        asked = _samples(texts, pairs)
        # Imported late: torch takes seconds, which --help and a slip need not wait for.
        from finetune_trainer.commands.finished import load_finished

        task = load_finished(model, base, trust_remote_code)
        for sample in asked:
            [answer] = task.answer([_as_asked(sample, task)])
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
        if not 0 < len(text) <= _LONGEST_TEXT:
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR, f"TEXT: {text[:40]!r} has {len(text)} letters; write 1 to {_LONGEST_TEXT}"
            )
    return [Sample(text=text, text_pair=pairs[number] if pairs else None) for number, text in enumerate(read)]


def _as_asked(sample: Sample, task: "Task") -> Sample:
    """To a model that learned to chat, a text is what a user says."""
    if sample.text_pair is not None and task.spec.task != "text-classification":
        raise FineTuneError(Reason.CONFIGURATION_ERROR, f"--pair: {task.spec.task} knows no pairs of texts; leave it out")
    if task.spec.task != "sft":
        return sample
    return Sample(messages=[Message(role="user", content=sample.text or "")])


def describe(answer: SampleAnswer) -> str:
    """An answer on one line; what the model goes on with may have several."""
    if answer.guesses is not None:
        return "  ".join(f"{guess.token} {guess.score:.4f}" for guess in answer.guesses)
    if answer.entities is not None:
        return "  ".join(f"{entity.label}: {entity.text}" for entity in answer.entities) or "(nothing found)"
    if answer.answer is not None:
        return answer.answer
    score = "" if answer.score is None else f"{answer.score:.4f}"
    return f"{answer.label}  {score}".rstrip() if answer.label is not None else score
