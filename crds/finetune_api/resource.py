"""The FineTuneJob as a whole, for files that users write."""

import re
from collections.abc import Mapping
from typing import Any, Literal

import pydantic
from pydantic import Field

from finetune_api import names
from finetune_api.model import Model
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec


class Metadata(Model):
    """The part of ObjectMeta that matters here; other fields pass."""

    model_config = pydantic.ConfigDict(extra="ignore")

    name: str
    namespace: str = "default"


class FineTuneJob(Model):
    """A FineTuneJob in a file: metadata and spec; a status that somebody exported along is ignored."""

    model_config = pydantic.ConfigDict(extra="forbid")

    api_version: Literal["finetune.dev/v1alpha1"]
    kind: Literal["FineTuneJob"]
    metadata: Metadata
    spec: FineTuneJobSpec
    status: Mapping[str, Any] | None = Field(default=None, exclude=True)


def describe_errors(error: pydantic.ValidationError, prefix: str = "") -> str:
    """One sentence per wrong field, with its path as it stands in the file, joined by '; '. Values are not repeated."""
    sentences = []
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        path = prefix
        for part in item["loc"]:
            path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
        message = {
            "extra_forbidden": "unknown field; correct its name or remove it",
            "missing": "required field is missing",
        }.get(item["type"], item["msg"].removeprefix("Value error, "))
        sentences.append(f"{path}: {message}" if path else message)
    return "; ".join(dict.fromkeys(sentences))


def validate_name(name: str) -> None:
    """Raise InvalidSpec unless every child of a FineTuneJob of that name gets a valid name of its own."""
    if len(name) > names.MAX_NAME_LENGTH or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        raise FineTuneError(
            Reason.INVALID_SPEC,
            f"metadata.name: write at most {names.MAX_NAME_LENGTH} characters, lower-case letters, digits and '-' only, "
            "beginning with a letter and without dots, as the names of pods and of their DNS entries follow from it",
        )


def parse_job(manifest: Any) -> FineTuneJob:
    """Parse a FineTuneJob; raise FineTuneError(InvalidSpec) with a sentence that names the fields."""
    if not isinstance(manifest, Mapping) or manifest.get("kind") != names.KIND or manifest.get("apiVersion") != names.API_VERSION:
        raise FineTuneError(Reason.INVALID_SPEC, f"not a FineTuneJob: write apiVersion: {names.API_VERSION}, kind: {names.KIND}")
    try:
        job = FineTuneJob.model_validate(manifest, by_alias=True, by_name=False)
    except pydantic.ValidationError as error:
        raise FineTuneError(Reason.INVALID_SPEC, describe_errors(error)) from None
    validate_name(job.metadata.name)
    return job


def parse_spec(spec: Any) -> FineTuneJobSpec:
    """Parse the ``spec`` of an object of the API server; raise FineTuneError(InvalidSpec)."""
    try:
        return FineTuneJobSpec.model_validate(spec, by_alias=True, by_name=False)
    except pydantic.ValidationError as error:
        raise FineTuneError(Reason.INVALID_SPEC, describe_errors(error, "spec")) from None
