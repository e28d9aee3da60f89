"""`finetune evaluate`."""

import json
import pathlib
import tempfile
from typing import TYPE_CHECKING, Any

import click

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.resource import parse_spec
from finetune_api.spec import FineTuneJobSpec
from finetune_api.wire import RunConfig
from finetune_trainer.commands.arguments import CLAIM, parse_claims
from finetune_trainer.commands.evaluation_request import Request, parse_request
from finetune_trainer.commands.locate import MODEL, find_model
from finetune_trainer.commands.predict import BASE, TRUST
from finetune_trainer.runtime.command_line import DEBUG, short_errors

if TYPE_CHECKING:
    from finetune_trainer.data.rows import RowDataset
    from finetune_trainer.tasks.base import DataInfo, Scores, Task

_LANGUAGE_TASKS = {"causal-lm", "sft"}  # both use the same kind of model
_BATCH_SIZE = 32
_MAX_SHOWN_CHARACTERS = 200


@click.command(epilog="Example:  finetune evaluate runs/news more-news.csv --column text=article --column label=section")
@MODEL
@click.argument("data", metavar="FILE", type=click.Path(path_type=pathlib.Path))
@click.option("--column", "columns", multiple=True, metavar="NAME=COLUMN", help="Column of FILE, as in spec.datasets.columns.")
@CLAIM
@click.option(
    "--output", type=click.Path(path_type=pathlib.Path), default="predictions.jsonl", show_default=True,
    help="File for the prediction of every row.",
)  # fmt: skip
@BASE
@TRUST
@DEBUG
def evaluate(
    model: pathlib.Path,
    data: pathlib.Path,
    columns: tuple[str, ...],
    claims: tuple[str, ...],
    output: pathlib.Path,
    base: str | None,
    trust_remote_code: bool,
    debug: bool,
) -> None:
    """Evaluate a finished model on all rows of FILE. If FILE is a job (.yaml), use the job's evaluation data.

    MODEL is an output directory, the directory of a model, or a repository on the Hub. In an output directory, the job is known
    that trained the model: its columns are those of FILE, unless --column names others, and its claims have the same
    directories. The predictions are written to a file, one JSON object per row.
    """
    with short_errors(debug):
        given, directory = parse_claims(claims), find_model(model)
        request = parse_request(data, directory, given, columns)
        # Imported late: torch takes seconds, and --help and wrong arguments must not wait for it.
        from finetune_trainer.commands.finished import load_finished

        task = load_finished(directory, base, given, trust_remote_code)
        metrics, predictions = _evaluate(task, request)
        for name, value in metrics.items():
            click.echo(f"{name}  {value:.4f}")
        if predictions is None:
            click.echo(f"({task.spec.task} makes no predictions per row: no file was written)", err=True)
            return
        output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions))
        click.echo(f"{len(predictions)} predictions in {output}")


def _evaluate(task: "Task", request: Request) -> tuple[dict[str, float], list[dict[str, Any]] | None]:
    """Return the metrics, and the predictions in the order of the rows."""
    from finetune_trainer.data.prepare import prepare
    from finetune_trainer.data.rows import RowDataset
    from finetune_trainer.hub.client import resolve_revisions
    from finetune_trainer.tasks import task_class

    if request.task not in (None, task.spec.task) and {request.task, task.spec.task} != _LANGUAGE_TASKS:
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR, f"{request.source}: spec.task is {request.task}, and the model is for {task.spec.task}"
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
        prepared = prepare(config, revisions, task.tokenizer, task.config, task_class(spec.task))
        task = _as_trained(task, spec, prepared.info)
        rows = RowDataset(prepared.open()[1], task, spec.training.seed, augmented=False)
        scores = _score(task, rows)
        metrics, _ = task.compute_metrics(scores)
        return metrics, _in_order(task, rows, task.predictions(scores))


def _as_trained(task: "Task", spec: FineTuneJobSpec, info: "DataInfo") -> "Task":
    """Return a task with the same model, and with kind and options of the job."""
    from finetune_trainer.tasks import task_class

    rebuilt = task_class(spec.task)(spec, task.tokenizer, task.config, info)
    rebuilt.model = task.model
    rebuilt.prepare_model()
    return rebuilt


def _with_data(task: "Task", request: Request) -> FineTuneJobSpec:
    """Return the task's spec with the data. The classes are those of the model, even if the data lacks some."""
    spec = {**task.spec.to_wire(), "datasets": list(request.datasets)}
    if request.task is not None:
        spec |= {"task": request.task, **request.options}
    if task.info.classes and len(task.info.classes) > 1:
        spec["classification"] = {"labels": list(task.info.classes)}
    if task.info.problem:
        spec["classification"] = {**spec.get("classification", {}), "problemType": task.info.problem}
    return parse_spec(spec)


def _score(task: "Task", rows: "RowDataset") -> "Scores":
    import numpy as np

    from finetune_trainer.data.batches import evaluation_batches
    from finetune_trainer.data.scoring import score_rows

    parts = score_rows(task, rows, evaluation_batches(rows.lengths, _BATCH_SIZE, rank=0, world_size=1))
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
