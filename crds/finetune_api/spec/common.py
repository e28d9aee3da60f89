"""Types of names and paths, and helpers, that several parts of the spec share."""

from collections.abc import Sequence
from typing import Annotated

import pydantic
from pydantic import Field
from pydantic.alias_generators import to_camel

from finetune_api.model import Model, cel

Name = Annotated[str, Field(min_length=1, max_length=253)]
# Name of a Kubernetes object.
ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
# Name of a container, a volume or another part of a pod.
Label = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
# Size of a volume.
Size = Annotated[str, Field(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$")]
# The grammar of image references: [host[:port]/]path[:tag][@digest]. Without "..", no prefix of a path leads out of it.
_COMPONENT = "[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*"
IMAGE = (
    f"^(([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\\[[0-9A-Fa-f:]+\\])(:[0-9]{{1,5}})?/)?{_COMPONENT}(/{_COMPONENT})*"
    "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@[a-z0-9]+:[0-9a-f]{32,128})?$"
)
# Path relative to the claim's root. The pattern rejects a path that leaves the claim.
ClaimPath = Annotated[str, Field(max_length=1024, pattern=r"^([^/.][^/]*|\.[^/.][^/]*)(/([^/.][^/]*|\.[^/.][^/]*))*$")]
HubName = Annotated[str, Field(min_length=1, max_length=193, pattern=r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?$")]
Revision = Annotated[str, Field(min_length=1, max_length=255)]


def require_exactly_one(model: pydantic.BaseModel, *names: str) -> None:
    """Raise ValueError unless exactly one of the fields is set. The message names the fields as they are written in a file."""
    given = [name for name in names if getattr(model, name) is not None]
    if len(given) != 1:
        raise ValueError(_exactly_one_message(names))


def exactly_one_of(*names: str) -> dict[str, str]:
    """Return the CEL rule for ``require_exactly_one``."""
    fields = ", ".join(f"has(self.{to_camel(name)})" for name in names)
    return cel(f"[{fields}].exists_one(given, given)", _exactly_one_message(names))


def _exactly_one_message(names: Sequence[str]) -> str:
    return f"write exactly one of {join_words([to_camel(name) for name in names])}"


def join_words(words: Sequence[str], last: str = "and") -> str:
    """Join words as in a sentence: a, b and c."""
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else words[0]


class Claim(Model):
    """A directory of a PersistentVolumeClaim. With `finetune run`, --claim NAME=DIR replaces the claim by a local directory."""

    claim_name: ObjectName = Field(description="PersistentVolumeClaim in the namespace of the job.", examples=["datasets"])
    path: ClaimPath | None = Field(
        default=None, description="Directory below the claim's root, for example models/bert. If left out: the root."
    )


class LocalObjectReference(Model):
    """The name of an object in the namespace of the job."""

    name: ObjectName = Field(description="Name of the object.", examples=["registry"])


HUB_OR_CLAIM = cel("has(self.hub) != has(self.claim)", "write exactly one of hub and claim")
