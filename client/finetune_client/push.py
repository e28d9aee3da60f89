"""`kubectl finetune push`: creates a job that pushes the finished model of another job. It trains nothing."""

import copy
from typing import Any

import click

from finetune_api import names
from finetune_api.reasons import Reason
from finetune_client.client import FineTune
from finetune_client.errors import RefusedError
from finetune_client.formatting import format_state
from finetune_client.options import Command, cluster_options
from finetune_client.records import JobRecord


@click.command(cls=Command, epilog="Example:  kubectl finetune push news --to my-team/news")
@click.argument("name")
@click.option("--to", "repository", metavar="OWNER/NAME", help="Repository on the Hub; by default spec.publish.repository.")
@click.option("--name", "new_name", metavar="NAME", help="Name of the new job; by default NAME-push.")
@cluster_options
def push(cluster: FineTune, name: str, repository: str | None, new_name: str | None) -> None:
    """Push the finished model of a job to the Hub, for example after its push failed. Nothing is trained again.

    The command creates a job on the output of the first one, with the token of its spec.hub. It runs in one pod without a GPU.
    """
    job = cluster.submit(build_push_job(cluster.job(name).refresh(), repository, new_name))
    click.echo(f"{click.style('created', fg='green')} finetunejob {job.name} in namespace {job.namespace}")
    click.echo(f"  kubectl finetune watch {job.name}{job.flags}")


def build_push_job(job: JobRecord, repository: str | None, name: str | None) -> dict[str, Any]:
    """Return the manifest of a job on the output of ``job``, which finds the finished model there and only pushes it.

    repository: None for that of the job's spec. name: of the new job; None for NAME-push. Raises RefusedError if the job has no
    finished model: the new job would train.
    """
    failure = job.status.failure
    if job.phase != "Succeeded" and not (failure is not None and failure.reason == Reason.HUB_PUSH_FAILED):
        raise RefusedError(f"{job.name} has no finished model to push: it is {format_state(job)}")
    spec = copy.deepcopy(dict(job.manifest["spec"]))
    publish = dict(spec.get("publish") or {})
    if repository is not None:
        publish["repository"] = repository
    if "repository" not in publish:
        raise RefusedError(f"the spec of {job.name} names no repository: write --to OWNER/NAME")
    spec["publish"] = publish
    if not (spec.get("output") or {}).get("claim"):
        spec["output"] = {"claim": {"claimName": names.output_claim_name(job.name)}}
    spec.pop("distributed", None)  # one pod, without a GPU, is enough
    spec.pop("suspend", None)
    metadata = {"name": name or f"{job.name}-push", "namespace": job.namespace}
    return {"apiVersion": job.manifest["apiVersion"], "kind": job.manifest["kind"], "metadata": metadata, "spec": spec}
