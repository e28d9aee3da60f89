"""`finetune preview`: shows some rows as the model will see them, before the training."""

import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from finetune_api import names
from finetune_api.files import read_job
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.wire import RunConfig
from finetune_trainer.commands.arguments import CLAIM, find_model, missing_claims, parse_claims
from finetune_trainer.runtime.command_line import DEBUG, short_errors

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from finetune_trainer.models.load import ModelLocation
    from finetune_trainer.tasks.base import Row, Task

_TOKENS_SHOWN = 400
# Marks around tokens that are learned, if the output has no colours.
_OPEN, _CLOSE = "⟦", "⟧"


@click.command(epilog="Example:  finetune preview examples/news.yaml --claim minilm=./models/minilm --claim news=./data/news")
@click.argument("file", metavar="FILE", type=click.Path(path_type=pathlib.Path))
@CLAIM
@click.option("--rows", type=click.IntRange(0, 1000), default=3, show_default=True, help="How many rows to show.")
@click.option("--model-dir", metavar="DIR", help="Directory with config.json and tokenizer, in place of the file's model.")
@DEBUG
def preview(file: pathlib.Path, claims: tuple[str, ...], rows: int, model_dir: str | None, debug: bool) -> None:
    """Show some rows of the job in FILE (- for standard input) as the model will see them: tokens, labels, learned tokens.

    Also shows how many rows were read and left out, how long they are, and how many are cut. Needs the tokenizer, not the
    weights.
    """
    with short_errors(debug):
        job = read_job(file)
        given = parse_claims(claims)
        if job.spec.hub.endpoint:
            os.environ[names.ENV_HUB_ENDPOINT] = job.spec.hub.endpoint  # the Hub's client reads it once, when it is imported
        _preview(job.metadata.name, job.spec, given, rows, model_dir)


def _preview(name: str, spec: FineTuneJobSpec, claims: dict[str, str], rows: int, model_dir: str | None) -> None:
    needed = sorted({dataset.claim.claim_name for dataset in spec.datasets if dataset.claim} if model_dir else spec.claim_names())
    if missing := missing_claims(needed, claims):
        raise FineTuneError(Reason.CONFIGURATION_ERROR, f"the file reads from claims that are not given: add {missing}")

    from rich.console import Console

    from finetune_trainer.commands.console import print_findings
    from finetune_trainer.data.prepare import prepare
    from finetune_trainer.findings import find_in_data
    from finetune_trainer.models.load import load_config, load_tokenizer
    from finetune_trainer.tasks import task_class

    location, revisions = _locate(spec, claims, model_dir)
    tokenizer, model_config, task_type = load_tokenizer(location), load_config(location), task_class(spec.task)
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="finetune-") as output:
        config = RunConfig(name=name, namespace="default", spec=spec, nodes=1, processes_per_node=1, claims=claims, output=output)
        prepared = prepare(config, revisions, tokenizer, model_config, task_type)
        task = task_type(spec, tokenizer, model_config, prepared.info)
        train, _ = prepared.open()
        for index in range(min(rows, len(train))):
            _show_row(console, task, index, train[index])
    for line in prepared.report.lines():
        console.print(line, markup=False, soft_wrap=True)
    print_findings(console, find_in_data(spec.task, prepared.report))


def _locate(spec: FineTuneJobSpec, claims: dict[str, str], model_dir: str | None) -> "tuple[ModelLocation, list[str]]":
    """Return the location of the tokenizer, and the commit of each data set."""
    from finetune_trainer.hub.client import resolve_revisions
    from finetune_trainer.models.load import ModelLocation

    source = spec.model
    model_revision: str | None = None
    revisions = [""] * len(spec.datasets)
    if any(dataset.hub for dataset in spec.datasets) or (source.hub and not model_dir):
        resolved = resolve_revisions(spec.model_copy(update={"publish": None}), None)
        model_revision, revisions = resolved.model_revision, list(resolved.dataset_revisions or revisions)
    if model_dir:
        return ModelLocation(model_dir, None, "--model-dir", source.trust_remote_code), revisions
    if source.hub:
        return ModelLocation(source.hub.name, model_revision, "spec.model.hub", source.trust_remote_code), revisions
    assert source.claim
    return ModelLocation(str(find_model(source.claim, claims)), None, "spec.model.claim", source.trust_remote_code), revisions


# --- one row ----------------------------------------------------------------------------------------------------------------


def _show_row(console: "Console", task: "Task", index: int, row: "Row") -> None:
    """Print a row as it is in the first epoch: its length, its tokens with the learned ones marked, and its label."""
    import numpy as np
    from rich.text import Text

    length = row.pop("length")
    cut = ", cut" if task.is_truncated(row) else ""
    row = task.augment(row, np.random.default_rng([task.spec.training.seed, 0, index]))
    console.print(Text(f"Row {index + 1}: {length:,} tokens{cut}", style="bold"))
    for name, ids in row.items():
        if name in ("input_ids", "chosen_ids", "rejected_ids"):
            learned = _loss_mask(task, row, ids)
            title = "" if name == "input_ids" else f"{name.removesuffix('_ids')}: "
            text = Text(title).append_text(_marked(task.tokenizer, list(ids), learned, console.is_terminal))
            console.print(text, soft_wrap=not console.is_terminal)
    if (label := _label(task, row)) is not None:
        console.print(Text(f"label: {label}", style="green"), soft_wrap=True)
    console.print()


def _loss_mask(task: "Task", row: "Row", ids: Sequence[int]) -> list[bool]:
    """Return which tokens the loss counts."""
    from finetune_trainer.tasks.base import IGNORE_INDEX

    labels = row.get("labels")
    if labels is not None and task.info.problem is None:  # otherwise labels are per row
        return [label != IGNORE_INDEX for label in labels]
    start = row.get("answer_start", len(ids))  # in dpo, the answers are learned
    return [position >= start for position in range(len(ids))]


def _marked(tokenizer: Any, ids: list[int], learned: list[bool], colours: bool) -> "Text":
    from rich.text import Text

    text = Text()
    for run, is_learned in _runs(ids[:_TOKENS_SHOWN], learned):
        words = tokenizer.decode(run, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if is_learned and not colours:
            words = f"{_OPEN}{words}{_CLOSE}"
        text.append(words + (" " if not tokenizer.is_fast or words.startswith(_OPEN) else ""), "green" if is_learned else "")
    return text.append(f" … {len(ids) - _TOKENS_SHOWN:,} more" if len(ids) > _TOKENS_SHOWN else "", "dim")


def _runs(ids: Sequence[int], learned: Sequence[bool]) -> Iterator[tuple[list[int], bool]]:
    """Group consecutive tokens that are all learned, or all not learned."""
    run: list[int] = []
    for position, token in enumerate(ids):
        if run and learned[position] != learned[position - 1]:
            yield run, learned[position - 1]
            run = []
        run.append(token)
    if run:
        yield run, learned[len(ids) - 1]


def _label(task: "Task", row: "Row") -> str | None:
    """Return the class, classes or number of the row, or the tags of its words; None for tasks without labels."""
    from finetune_trainer.tasks.base import IGNORE_INDEX

    labels: Any = row.get("labels")
    info = task.info
    if info.problem == "Regression":
        return f"{float(labels):g}"
    if not info.classes:
        return None
    if isinstance(labels, int):
        return str(info.classes[labels])
    if info.problem == "MultiLabel":
        return ", ".join(name for name, is_set in zip(info.classes, labels, strict=True) if is_set) or "none"
    tokens = task.tokenizer.convert_ids_to_tokens(list(row["input_ids"]))
    return " ".join(f"{token}/{info.classes[tag]}" for token, tag in zip(tokens, labels, strict=True) if tag != IGNORE_INDEX)
