"""Which data `finetune evaluate` reads, and with which options: those of a given job, or of the job that trained the model."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetune_api import names
from finetune_api.files import read_job
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.resource import parse_spec, read_spec
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.commands.arguments import missing_claims
from finetune_trainer.runtime.command_line import read_run_field

_JOB = re.compile(r"\.ya?ml$")
_DATA_CLAIM = "data"
_BLOCKS = ("maskedLM", "sft")  # fields of a job that determine its rows


@dataclasses.dataclass(frozen=True)
class Request:
    """The data to evaluate on.

    source: the file, for errors. datasets: ``datasets`` of a spec, with only one training row each. task: task of the job whose
    options are used, if there is one. options: other fields of that job that affect its rows. For example, the seed selects the
    held-out rows, and maxTokens cuts them.
    """

    source: str
    datasets: Sequence[Mapping[str, Any]]
    claims: Mapping[str, str]
    task: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def parse_request(data: pathlib.Path, model: pathlib.Path, claims: Mapping[str, str], columns: Sequence[str]) -> Request:
    """Return the request for a file. Raise FineTuneError.

    data: a job's file, or a file with rows. model: directory of the model, whose run is remembered. claims: from the command
    line; they replace the remembered directories. columns: NAME=COLUMN; they replace the job's columns.
    """
    if not data.exists():
        raise FineTuneError(Reason.CONFIGURATION_ERROR, f"{data}: there is no such file")
    if not _JOB.search(data.name):
        return _of_file(data, model, _parse_columns(columns))
    spec = read_job(data).spec
    given = {**remembered_claims(model), **claims}
    missing = missing_claims([dataset.claim.claim_name for dataset in spec.datasets if dataset.claim], given)
    if missing:
        raise FineTuneError(Reason.CONFIGURATION_ERROR, f"{data}: it reads from claims that are not given: add {missing}")
    if spec.hub.endpoint:
        os.environ[names.ENV_HUB_ENDPOINT] = spec.hub.endpoint  # the Hub's client reads it once, when it is imported
    datasets = [{**dataset.to_wire(), "maxTrainSamples": 1} for dataset in spec.datasets]
    return Request(str(data), datasets, given, spec.task, _options(spec))


def remembered_claims(model: pathlib.Path) -> dict[str, str]:
    """Return claim name → directory, as given to the run that trained the model, as far as the directories still exist."""
    remembered: Mapping[str, str] = read_run_field(model, "claims") or {}
    return {name: directory for name, directory in remembered.items() if pathlib.Path(directory).is_dir()}


def _options(spec: FineTuneJobSpec) -> dict[str, Any]:
    training = {"seed": spec.training.seed, "maxTokens": spec.training.max_tokens, "maxSteps": 1}  # streaming requires maxSteps
    return {name: block for name, block in spec.to_wire().items() if name in _BLOCKS} | {"training": training}


def _parse_columns(columns: Sequence[str]) -> dict[str, str]:
    pairs = [column.partition("=") for column in columns]
    wrong = next(("".join(pair) for pair in pairs if not (pair[0] and pair[2])), None)
    if wrong is not None:
        raise FineTuneError(Reason.CONFIGURATION_ERROR, f"--column {wrong}: write NAME=COLUMN, for example --column text=review")
    return {name: column for name, _, column in pairs}


def _of_file(data: pathlib.Path, model: pathlib.Path, columns: Mapping[str, str]) -> Request:
    """Return a request for all rows of a file. Its columns and options are those of the job that trained the model, if known."""
    claims, wire = {_DATA_CLAIM: str(data.resolve().parent)}, read_run_field(model, "spec")
    if not wire or wire.get("task") == "dpo":  # a model trained by dpo is evaluated on texts or chats, as any language model
        return Request(str(data), [_dataset(data, columns)], claims)
    trained = read_spec(wire)
    kept = next(_fitting_columns(trained, data, claims), {})
    return Request(str(data), [_dataset(data, {**kept, **columns})], claims, trained.task, _options(trained))


def _dataset(data: pathlib.Path, columns: Mapping[str, str]) -> dict[str, Any]:
    """Return a data set of a spec that evaluates on the file. Its training data is one row of the same file."""
    name = data.resolve().name
    return {
        "claim": {"claimName": _DATA_CLAIM, "path": name, "evalPath": name},
        "columns": dict(columns),
        "maxTrainSamples": 1,
    }


def _fitting_columns(trained: FineTuneJobSpec, data: pathlib.Path, claims: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Yield the columns of each of the job's data sets whose columns the file has."""
    from finetune_trainer.data.sources import open_source  # imported late: pyarrow takes a moment, and --help must not wait

    spec = parse_spec({**trained.to_wire(), "datasets": [_dataset(data, {})]})
    present = open_source(spec, 0, claims, "").head.columns
    for dataset in trained.datasets:
        named: dict[str, str] = dataset.columns.to_wire()
        if set(named.values()) <= set(present):
            yield named
