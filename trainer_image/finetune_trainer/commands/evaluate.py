"""`finetune evaluate`."""

import dataclasses
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from finetune_api import names
from finetune_api.files import read_job
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.resource import parse_spec
from finetune_api.spec import FineTuneJobSpec
from finetune_api.wire import RunConfig
from finetune_trainer.commands.arguments import missing_claims, parse_claims
from finetune_trainer.commands.predict import BASE, TRUST
from finetune_trainer.runtime.sentences import DEBUG, DIRECTORY, model_directory, one_sentence

if TYPE_CHECKING:
    from finetune_trainer.data.rows import Rows
    from finetune_trainer.tasks.base import DataInfo, Scores, Task

_JOB = re.compile(r"\.ya?ml$")
_DATA_CLAIM = "data"
_LANGUAGE_TASKS = {"causal-lm", "sft"}  # of the same model
_BLOCKS = ("maskedLM", "sft")  # of a job, which say what its rows are
_BATCH = 32
_LONGEST_SHOWN = 200  # letters


@click.command(epilog="Example:  finetune evaluate runs/news more-news.csv --column text=article --column label=section")
@DIRECTORY
@click.argument("data", metavar="FILE", type=click.Path(path_type=pathlib.Path))
@click.option("--column", "columns", multiple=True, metavar="NAME=COLUMN", help="Column of FILE, as in spec.datasets.columns.")
@click.option("--claim", "claims", multiple=True, metavar="NAME=DIR", help="Directory that stands for a claim of a job.")
@click.option(
    "--output", type=click.Path(path_type=pathlib.Path), default="predictions.jsonl", show_default=True,
    help="File for the prediction of every row.",
)  # fmt: skip
@BASE
@TRUST
@DEBUG
def evaluate(
    directory: pathlib.Path,
    data: pathlib.Path,
    columns: tuple[str, ...],
    claims: tuple[str, ...],
    output: pathlib.Path,
    base: str | None,
    trust_remote_code: bool,
    debug: bool,
) -> None:
    """Measure the finished model in DIR on all rows of FILE, or on the evaluation data of the job that FILE is (.yaml).

    DIR is an output directory or a model's own. Every row's prediction is written to a file, one JSON object a line.
    """
    with one_sentence(debug):
        model = model_directory(directory)
        asked = _asked(data, parse_claims(claims), columns)
        # Imported late: torch takes seconds, which --help and a slip need not wait for.
        from finetune_trainer.commands.finished import load_finished

        task = load_finished(model, base, trust_remote_code)
        figures, predictions = _measure(task, asked)
        for name, value in figures.items():
            click.echo(f"{name}  {value:.4f}")
        if predictions is None:
            click.echo(f"({task.spec.task} predicts nothing a row: no file was written)", err=True)
            return
        output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions))
        click.echo(f"{len(predictions)} predictions in {output}")


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What to evaluate on: data sets as a spec has them, of which no more than a row to train on is kept.

    task: of the job that they are from, if they are. options: what else that job says of its rows: its seed says which
    of them are held out, its maxTokens what is seen of them.
    """

    datasets: Sequence[Mapping[str, Any]]
    claims: Mapping[str, str]
    task: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _asked(data: pathlib.Path, claims: Mapping[str, str], columns: Sequence[str]) -> _Asked:
    if not data.exists():
        raise FineTuneError(Reason.CONFIGURATION_ERROR, f"FILE: there is no {data}")
    if not _JOB.search(data.name):
        return _Asked(_of_file(data, columns), {_DATA_CLAIM: str(data.resolve().parent)})
    spec = read_job(data).spec
    missing = missing_claims([dataset.claim.claim_name for dataset in spec.datasets if dataset.claim], claims)
    if missing:
        raise FineTuneError(Reason.CONFIGURATION_ERROR, f"FILE: it reads from claims that are not given: add {missing}")
    if spec.hub.endpoint:
        os.environ[names.ENV_HUB_ENDPOINT] = spec.hub.endpoint  # before the Hub's client is imported: it reads it once
    training = {"seed": spec.training.seed, "maxTokens": spec.training.max_tokens, "maxSteps": 1}  # streaming asks for steps
    options = {name: block for name, block in spec.to_wire().items() if name in _BLOCKS} | {"training": training}
    return _Asked([{**dataset.to_wire(), "maxTrainSamples": 1} for dataset in spec.datasets], claims, spec.task, options)


def _of_file(data: pathlib.Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The data sets of a spec: the file is read once to train on, of which one row is kept, and once to evaluate on."""
    pairs = [column.partition("=") for column in columns]
    wrong = next(("".join(pair) for pair in pairs if not (pair[0] and pair[2])), None)
    if wrong is not None:
        raise FineTuneError(Reason.CONFIGURATION_ERROR, f"--column {wrong}: write NAME=COLUMN, for example --column text=review")
    name = data.resolve().name
    return [
        {
            "claim": {"claimName": _DATA_CLAIM, "path": name, "evalPath": name},
            "columns": {name: column for name, _, column in pairs},
            "maxTrainSamples": 1,
        }
    ]


def _measure(task: "Task", asked: _Asked) -> tuple[dict[str, float], list[dict[str, Any]] | None]:
    """Figures, and the predictions in the order of the rows."""
    from finetune_trainer.data.prepare import prepare
    from finetune_trainer.data.rows import Rows
    from finetune_trainer.hub import client as hub

    if asked.task not in (None, task.spec.task) and {asked.task, task.spec.task} != _LANGUAGE_TASKS:
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR, f"FILE: spec.task is {asked.task}, and the model in DIR is for {task.spec.task}"
        )
    spec = _with_data(task, asked)
    revisions = hub.resolve(spec, None).dataset_revisions or []
    with tempfile.TemporaryDirectory(prefix="finetune-") as scratch:
        config = RunConfig(
            name="evaluation", namespace="default", spec=spec, nodes=1, processes_per_node=1, claims=asked.claims, output=scratch
        )
        prepared = prepare(config, revisions, task.tokenizer, task.config, type(task))
        task = _as_trained(task, spec, prepared.info)
        rows = Rows(prepared.open()[1], task, spec.training.seed, varied=False)
        scores = _score(task, rows)
        figures, _ = task.metrics(scores)
        return figures, _in_order(task, rows, task.predictions(scores))


def _as_trained(task: "Task", spec: FineTuneJobSpec, info: "DataInfo") -> "Task":
    """The same model, in a task that knows the options of the job."""
    anew = type(task)(spec, task.tokenizer, task.config, info)
    anew.model = task.model
    anew.prepare_model()
    return anew


def _with_data(task: "Task", asked: _Asked) -> FineTuneJobSpec:
    """The task's spec with the data; labels are the model's own, whatever of them the data has."""
    spec = {**task.spec.to_wire(), "datasets": list(asked.datasets)}
    if asked.task == task.spec.task:
        spec |= asked.options
    elif asked.task is not None:
        spec["training"] = asked.options["training"]
    if task.info.classes and len(task.info.classes) > 1:
        spec["classification"] = {"labels": list(task.info.classes)}
    if task.info.problem:
        spec["classification"] = {**spec.get("classification", {}), "problemType": task.info.problem}
    return parse_spec(spec)


def _score(task: "Task", rows: "Rows") -> "Scores":
    import numpy as np
    import torch

    from finetune_trainer.data.batches import evaluation_batches

    parts = []
    with torch.no_grad():
        for keys in evaluation_batches(rows.lengths, _BATCH, rank=0, world=1):
            batch = task.collate(rows.__getitems__(keys))
            parts.append(task.score(task.model, {name: tensor.to(task.model.device) for name, tensor in batch.items()}))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _in_order(task: "Task", rows: "Rows", predictions: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Each prediction with its row's number, from 0, and the beginning of what the model saw of it."""
    from finetune_trainer.data.batches import evaluation_order

    if predictions is None:
        return None
    order = evaluation_order(rows.lengths, _BATCH, world=1).tolist()
    by_row = dict(zip(order, predictions, strict=True))
    seen = (rows[0, row]["input_ids"] for row in range(len(rows)))
    texts = [task.tokenizer.decode(ids, skip_special_tokens=True)[:_LONGEST_SHOWN] for ids in seen]
    return [{"row": row, "text": texts[row], **by_row[row]} for row in range(len(rows))]
