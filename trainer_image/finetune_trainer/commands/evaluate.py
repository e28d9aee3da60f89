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
from finetune_trainer.runtime.command_line import DEBUG, DIRECTORY, find_model_directory, short_errors

if TYPE_CHECKING:
    from finetune_trainer.data.rows import RowDataset
    from finetune_trainer.tasks.base import DataInfo, Scores, Task

_JOB = re.compile(r"\.ya?ml$")
_DATA_CLAIM = "data"
_LANGUAGE_TASKS = {"causal-lm", "sft"}  # both use the same kind of model
_BLOCKS = ("maskedLM", "sft")  # fields of a job that determine its rows
_BATCH_SIZE = 32
_MAX_SHOWN_CHARACTERS = 200


@click.command(epilog="Example:  finetune evaluate runs/news more-news.csv --column text=article --column label=section")
@DIRECTORY
@click.argument("data", metavar="FILE", type=click.Path(path_type=pathlib.Path))
@click.option("--column", "columns", multiple=True, metavar="NAME=COLUMN", help="Column of FILE, as in spec.datasets.columns.")
@click.option("--claim", "claims", multiple=True, metavar="NAME=DIR", help="Local directory to use for a claim of the job.")
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
    """Evaluate the finished model in DIR on all rows of FILE. If FILE is a job (.yaml), use the job's evaluation data.

    DIR is an output directory or the directory of a model. The predictions are written to a file, one JSON object per row.
    """
    with short_errors(debug):
        model = find_model_directory(directory)
        request = _parse_request(data, parse_claims(claims), columns)
        # Imported late: torch takes seconds, and --help and wrong arguments must not wait for it.
        from finetune_trainer.commands.finished import load_finished

        task = load_finished(model, base, trust_remote_code)
        metrics, predictions = _evaluate(task, request)
        for name, value in metrics.items():
            click.echo(f"{name}  {value:.4f}")
        if predictions is None:
            click.echo(f"({task.spec.task} makes no predictions per row: no file was written)", err=True)
            return
        output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions))
        click.echo(f"{len(predictions)} predictions in {output}")


@dataclasses.dataclass(frozen=True)
class _Request:
    """The data to evaluate on.

    datasets: ``datasets`` of a spec, with only one training row each. task: task of the job, if the data is that of a job.
    options: other fields of that job that affect its rows. For example, the seed selects the held-out rows, and maxTokens cuts
    them.
    """

    datasets: Sequence[Mapping[str, Any]]
    claims: Mapping[str, str]
    task: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _parse_request(data: pathlib.Path, claims: Mapping[str, str], columns: Sequence[str]) -> _Request:
    if not data.exists():
        raise FineTuneError(Reason.CONFIGURATION_ERROR, f"FILE: there is no {data}")
    if not _JOB.search(data.name):
        return _Request(_of_file(data, columns), {_DATA_CLAIM: str(data.resolve().parent)})
    spec = read_job(data).spec
    missing = missing_claims([dataset.claim.claim_name for dataset in spec.datasets if dataset.claim], claims)
    if missing:
        raise FineTuneError(Reason.CONFIGURATION_ERROR, f"FILE: it reads from claims that are not given: add {missing}")
    if spec.hub.endpoint:
        os.environ[names.ENV_HUB_ENDPOINT] = spec.hub.endpoint  # the Hub's client reads it once, when it is imported
    training = {"seed": spec.training.seed, "maxTokens": spec.training.max_tokens, "maxSteps": 1}  # streaming requires maxSteps
    options = {name: block for name, block in spec.to_wire().items() if name in _BLOCKS} | {"training": training}
    return _Request([{**dataset.to_wire(), "maxTrainSamples": 1} for dataset in spec.datasets], claims, spec.task, options)


def _of_file(data: pathlib.Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the data sets of a spec that evaluates on the file. Its training data is one row of the same file."""
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


def _evaluate(task: "Task", request: _Request) -> tuple[dict[str, float], list[dict[str, Any]] | None]:
    """Return the metrics, and the predictions in the order of the rows."""
    from finetune_trainer.data.prepare import prepare
    from finetune_trainer.data.rows import RowDataset
    from finetune_trainer.hub.client import resolve_revisions

    if request.task not in (None, task.spec.task) and {request.task, task.spec.task} != _LANGUAGE_TASKS:
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR, f"FILE: spec.task is {request.task}, and the model in DIR is for {task.spec.task}"
        )
    spec = _with_data(task, request)
    revisions = resolve_revisions(spec, None).dataset_revisions or []
    with tempfile.TemporaryDirectory(prefix="finetune-") as scratch:
        config = RunConfig(
            name="evaluation",
            namespace="default",
            spec=spec,
            nodes=1,
            processes_per_node=1,
            claims=request.claims,
            output=scratch,
        )
        prepared = prepare(config, revisions, task.tokenizer, task.config, type(task))
        task = _as_trained(task, spec, prepared.info)
        rows = RowDataset(prepared.open()[1], task, spec.training.seed, augmented=False)
        scores = _score(task, rows)
        metrics, _ = task.compute_metrics(scores)
        return metrics, _in_order(task, rows, task.predictions(scores))


def _as_trained(task: "Task", spec: FineTuneJobSpec, info: "DataInfo") -> "Task":
    """Return a task with the same model and the options of the job."""
    rebuilt = type(task)(spec, task.tokenizer, task.config, info)
    rebuilt.model = task.model
    rebuilt.prepare_model()
    return rebuilt


def _with_data(task: "Task", request: _Request) -> FineTuneJobSpec:
    """Return the task's spec with the data. The classes are those of the model, even if the data lacks some."""
    spec = {**task.spec.to_wire(), "datasets": list(request.datasets)}
    if request.task == task.spec.task:
        spec |= request.options
    elif request.task is not None:
        spec["training"] = request.options["training"]
    if task.info.classes and len(task.info.classes) > 1:
        spec["classification"] = {"labels": list(task.info.classes)}
    if task.info.problem:
        spec["classification"] = {**spec.get("classification", {}), "problemType": task.info.problem}
    return parse_spec(spec)


def _score(task: "Task", rows: "RowDataset") -> "Scores":
    import numpy as np
    import torch

    from finetune_trainer.data.batches import evaluation_batches

    parts = []
    with torch.no_grad():
        for keys in evaluation_batches(rows.lengths, _BATCH_SIZE, rank=0, world_size=1):
            batch = task.collate(rows.__getitems__(keys))
            parts.append(task.score(task.model, {name: tensor.to(task.model.device) for name, tensor in batch.items()}))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _in_order(task: "Task", rows: "RowDataset", predictions: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Return each prediction with its row number, from 0, and the beginning of the text that the model saw."""
    from finetune_trainer.data.batches import evaluation_order

    if predictions is None:
        return None
    order = evaluation_order(rows.lengths, _BATCH_SIZE, world_size=1).tolist()
    by_row = dict(zip(order, predictions, strict=True))
    seen = (rows[0, row]["input_ids"] for row in range(len(rows)))
    texts = [task.tokenizer.decode(ids, skip_special_tokens=True)[:_MAX_SHOWN_CHARACTERS] for ids in seen]
    return [{"row": row, "text": texts[row], **by_row[row]} for row in range(len(rows))]
