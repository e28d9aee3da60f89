"""Names, paths and rules that several parts of the spec share."""

from collections.abc import Sequence
from typing import Annotated

import pydantic
from pydantic import Field
from pydantic.alias_generators import to_camel

from finetune_api.model import Model, cel

Name = Annotated[str, Field(min_length=1, max_length=253)]
# Of an object of Kubernetes.
ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
# Relative to the claim's root; a path that climbs out of the claim is refused.
ClaimPath = Annotated[str, Field(max_length=1024, pattern=r"^([^/.][^/]*|\.[^/.][^/]*)(/([^/.][^/]*|\.[^/.][^/]*))*$")]
HubName = Annotated[str, Field(min_length=1, max_length=193, pattern=r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?$")]
Revision = Annotated[str, Field(min_length=1, max_length=255)]


def require_exactly_one(model: pydantic.BaseModel, *names: str) -> None:
    """For validators of unions; raises ValueError naming the fields as a file has them."""
    given = [name for name in names if getattr(model, name) is not None]
    if len(given) != 1:
        raise ValueError(f"write exactly one of {' and '.join(map(to_camel, names))}")


def join_words(words: Sequence[str], last: str = "and") -> str:
    """A list as a sentence has it: a, b and c."""
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else words[0]


class Claim(Model):
    """A directory of a PersistentVolumeClaim; with `finetune run`, of a directory given by --claim NAME=DIR."""

    claim_name: ObjectName = Field(description="PersistentVolumeClaim in the namespace of the job.", examples=["datasets"])
    path: ClaimPath | None = Field(
        default=None, description="Directory below the claim's root, for example models/bert. The root if left out."
    )


class LocalObjectReference(Model):
    """An object of the namespace of the job, by name."""

    name: ObjectName = Field(description="Name of the object.", examples=["registry"])


HUB_OR_CLAIM = cel("has(self.hub) != has(self.claim)", "write exactly one of hub and claim")
