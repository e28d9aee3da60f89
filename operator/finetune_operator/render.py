"""What the operator would create for a file, as YAML for people: also for those who have no cluster at hand."""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import click
import yaml

from finetune_api import __version__
from finetune_api.cli import refuse
from finetune_api.files import read_jobs
from finetune_api.reasons import FineTuneError
from finetune_operator.manifests import Plan, build_children
from finetune_operator.observed import Manifest
from finetune_operator.parsing import of_kueue
from finetune_operator.site import Site, read_site

# The uid of owner references: the API server gives the real one.
NO_UID = "00000000-0000-0000-0000-000000000000"
ENV_TRAINER_IMAGE = "FINETUNE_TRAINER_IMAGE"
DEFAULT_TRAINER_IMAGE = f"finetune-trainer:{__version__}"


class _Dumper(yaml.SafeDumper):
    """Without anchors, and with texts of several lines as such."""

    def ignore_aliases(self, _: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def render_objects(path: pathlib.Path, site: Site) -> list[Manifest]:
    """The objects of the first attempt at each FineTuneJob of a file; raise FineTuneError if one is wrong.

    Documents of other kinds are left out: they are no business of the operator's.
    """
    objects: list[Manifest] = []
    for job in read_jobs(path):
        metadata, image = job.metadata, job.spec.pod.image or site.trainer_image or DEFAULT_TRAINER_IMAGE
        nodes, restarts = job.spec.distributed.nodes, job.spec.recovery.max_restarts
        plan = Plan(metadata.namespace, metadata.name, NO_UID, 1, job.spec, nodes, image, restarts, site=site)
        labels, annotations = of_kueue(metadata.labels), of_kueue(metadata.annotations)
        objects += build_children(dataclasses.replace(plan, kueue_labels=labels, kueue_annotations=annotations))
    return objects


def dump_objects(objects: Sequence[Manifest]) -> str:
    """A stream of YAML documents."""
    return str(yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=130))


@click.command("render", epilog="Example:  finetune render job.yaml | kubectl diff -f -")
@click.argument("file", metavar="FILE", type=click.Path(path_type=pathlib.Path))
@click.option(
    "--trainer-image",
    envvar=ENV_TRAINER_IMAGE,
    default=DEFAULT_TRAINER_IMAGE,
    show_default=True,
    show_envvar=True,
    help="Image of the jobs that name none in spec.pod.image.",
)
@click.option(
    "--site-file", type=click.Path(path_type=pathlib.Path), help="What the site sets for all jobs, as the chart writes it."
)
def command(file: pathlib.Path, trainer_image: str, site_file: pathlib.Path | None) -> None:
    """Print the very objects that the operator would create for the first attempt at FILE (- for standard input)."""
    try:
        site = read_site(site_file, trainer_image)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--site-file") from None
    try:
        click.echo(dump_objects(render_objects(file, site)), nl=False)
    except FineTuneError as error:
        sys.exit(refuse(error))
