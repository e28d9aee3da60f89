"""`finetune plan`."""

import dataclasses
import os
import pathlib
import sys
from typing import TYPE_CHECKING

import click

from finetune_api import names
from finetune_api.cli import refuse
from finetune_api.files import missing_push_token, read_job
from finetune_api.quantities import parse_quantity
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.commands.arguments import CLAIM, missing_claims, parse_claims
from finetune_trainer.plan.gpus import Gpu, requested_gpu

if TYPE_CHECKING:
    from finetune_trainer.plan.build import Facts


def _gpu_memory(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else parse_quantity(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(epilog="Example:  finetune plan examples/news.yaml --claim minilm=./models/minilm --claim news=./data/news")
@click.argument("file", metavar="FILE", type=click.Path(path_type=pathlib.Path))
@CLAIM
@click.option("--gpu-memory", metavar="SIZE", callback=_gpu_memory, help="Memory of each GPU, for example 80Gi.")
def plan(file: pathlib.Path, claims: tuple[str, ...], gpu_memory: int | None) -> None:
    """Show what the job in FILE (- for standard input) will need and do: processes, steps, memory, checkpoints, publishing.

    The command trains nothing and downloads no weights. For a model on the Hub it reads config.json and the headers of the
    weight files; for a data set on the Hub it reads the card. It uses HF_TOKEN to access the Hub.
    """
    try:
        job = read_job(file)
        given = parse_claims(claims)
    except FineTuneError as error:
        sys.exit(refuse(error))
    if job.spec.hub.endpoint:
        os.environ[names.ENV_HUB_ENDPOINT] = job.spec.hub.endpoint  # the Hub's client reads it once, when it is imported
    sys.exit(_show(job.metadata.name, job.spec, given, gpu_memory))


def _show(name: str, spec: FineTuneJobSpec, claims: dict[str, str], gpu_memory: int | None) -> int:
    """Observe, plan and print. Return the exit code."""
    from rich.console import Console

    from finetune_trainer.plan.build import build_plan
    from finetune_trainer.plan.view import show_plan

    gpu, reason = requested_gpu(spec.pod.node_selector or {}, spec.pod.affinity)
    if gpu_memory is not None:
        gpu, reason = Gpu("a GPU", gpu_memory, gpu.bf16 if gpu else None), None
    facts = dataclasses.replace(_observe(spec, claims), gpu=gpu, gpu_reason=reason)
    made = build_plan(spec, facts)
    show_plan(Console(highlight=False), name, made)
    return names.EXIT_REFUSED if made.refused else 0


def _observe(spec: FineTuneJobSpec, claims: dict[str, str]) -> "Facts":
    """Read the model and the data. Errors that the trainer would raise become part of the plan."""
    from finetune_trainer.plan.build import Facts
    from finetune_trainer.plan.model import observe_model
    from finetune_trainer.plan.rows import RowCounts, observe_rows

    model, model_reason = None, "it is in a claim that is not given"
    rows = RowCounts(reason="the data could not be read")
    token_problem = None if os.environ.get(names.ENV_HUB_TOKEN) else missing_push_token(spec)
    refused = [token_problem] if token_problem else []
    not_observed: list[str] = []
    try:
        model = observe_model(spec, claims)
    except FineTuneError as error:
        model_reason = "the model could not be read"
        (not_observed if _may_work_in_cluster(error, spec) else refused).append(error.message)
    try:
        rows = observe_rows(spec, claims)
    except FineTuneError as error:
        (not_observed if _may_work_in_cluster(error, spec) else refused).append(error.message)
    return Facts(
        rows=rows,
        model=model,
        model_reason=model_reason,
        missing_claims=missing_claims(spec.claim_names(), claims),
        refused=tuple(refused),
        not_observed=tuple(not_observed),
    )


def _may_work_in_cluster(error: FineTuneError, spec: FineTuneJobSpec) -> bool:
    """Whether the pods may have what this machine lacks: network access, or the token in the Secret."""
    if error.reason is Reason.HUB_UNAVAILABLE:
        return True
    no_token = spec.hub.token_secret_ref is not None and not os.environ.get(names.ENV_HUB_TOKEN)
    return no_token and error.reason in (Reason.MODEL_NOT_FOUND, Reason.DATASET_NOT_FOUND, Reason.HUB_AUTHENTICATION)
