"""Prints what the operator would create for a file, as YAML. This needs no cluster."""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import click
import yaml

from finetune_api import __version__, names
from finetune_api.cli import refuse
from finetune_api.files import read_jobs
from finetune_api.reasons import FineTuneError
from finetune_operator.defaults import OperatorDefaults, read_defaults
from finetune_operator.manifests import Plan, QueuePlace, build_children, build_queue_job
from finetune_operator.manifests.plan import UID_OF_JOB
from finetune_operator.observed import Manifest
from finetune_operator.parsing import select_kueue_keys

# The uid in owner references. In a cluster the API server generates it.
PLACEHOLDER_UID = "00000000-0000-0000-0000-000000000000"
ENV_TRAINER_IMAGE = "FINETUNE_TRAINER_IMAGE"
DEFAULT_TRAINER_IMAGE = f"finetune-trainer:{__version__}"


class _Dumper(yaml.SafeDumper):
    """Writes no anchors, and writes texts of several lines as blocks."""

    def ignore_aliases(self, _: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def render_objects(path: pathlib.Path, defaults: OperatorDefaults) -> list[Manifest]:
    """Return the objects of the first attempt of each FineTuneJob in a file. Raise FineTuneError if a job is invalid.

    Documents of other kinds are ignored.
    """
    objects: list[Manifest] = []
    for job in read_jobs(path):
        metadata, image = job.metadata, job.spec.pod.image or defaults.trainer_image or DEFAULT_TRAINER_IMAGE
        nodes, restarts = job.spec.distributed.nodes, job.spec.recovery.max_restarts
        plan = Plan(metadata.namespace, metadata.name, PLACEHOLDER_UID, 1, job.spec, nodes, image, restarts, defaults=defaults)
        labels, annotations = select_kueue_keys(metadata.labels), select_kueue_keys(metadata.annotations)
        plan = dataclasses.replace(plan, kueue_labels=labels, kueue_annotations=annotations)
        if names.LABEL_KUEUE_QUEUE in labels:
            objects.append(build_queue_job(plan))
            plan = dataclasses.replace(plan, queue=QueuePlace(UID_OF_JOB))
        objects += build_children(plan)
    return objects


def dump_objects(objects: Sequence[Manifest]) -> str:
    """Return a stream of YAML documents."""
    return str(yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=130))


@click.command("render", epilog="Example:  finetune render job.yaml | kubectl diff -f -")
@click.argument("file", metavar="FILE", type=click.Path(path_type=pathlib.Path))
@click.option(
    "--trainer-image",
    envvar=ENV_TRAINER_IMAGE,
    default=DEFAULT_TRAINER_IMAGE,
    show_default=True,
    show_envvar=True,
    help="Image of jobs that name none in spec.pod.image.",
)
@click.option(
    "--site-file", type=click.Path(path_type=pathlib.Path), help="Operator defaults for all jobs, as the chart writes them."
)
def command(file: pathlib.Path, trainer_image: str, site_file: pathlib.Path | None) -> None:
    """Print the objects that the operator would create for the first attempt of FILE (- for standard input)."""
    try:
        defaults = read_defaults(site_file, trainer_image)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--site-file") from None
    try:
        click.echo(dump_objects(render_objects(file, defaults)), nl=False)
    except FineTuneError as error:
        sys.exit(refuse(error))
