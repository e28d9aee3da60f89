"""What the operator would create for a file, as YAML for people: also for those who have no cluster at hand."""

import pathlib
from collections.abc import Sequence
from typing import Any

import yaml

from finetune_api.manifest import read_manifests
from finetune_api.resource import parse_job
from finetune_operator.manifests import Plan, build_children
from finetune_operator.observed import Manifest

# The uid of owner references: the API server gives the real one.
NO_UID = "00000000-0000-0000-0000-000000000000"


class _Dumper(yaml.SafeDumper):
    """Without anchors, and with texts of several lines as such."""

    def ignore_aliases(self, _: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def render_objects(path: pathlib.Path, trainer_image: str) -> list[Manifest]:
    """The objects of the first attempt at each FineTuneJob of a file; raise FineTuneError if one is wrong."""
    objects: list[Manifest] = []
    for manifest in read_manifests(path):
        job = parse_job(manifest)
        image = job.spec.pod.image or trainer_image
        objects += build_children(Plan(job.metadata.namespace, job.metadata.name, NO_UID, 1, job.spec, image))
    return objects


def dump_objects(objects: Sequence[Manifest]) -> str:
    """A stream of YAML documents."""
    return str(yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=130))
