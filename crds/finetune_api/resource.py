"""The whole FineTuneJob, as users write it in files."""

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pydantic
from pydantic import Field

from finetune_api import names
from finetune_api.crd import structural_schema
from finetune_api.model import Model
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec


class Metadata(Model):
    """The fields of ObjectMeta that this package reads. Ignores other fields."""

    model_config = pydantic.ConfigDict(extra="ignore")

    name: str
    namespace: str = "default"
    labels: Mapping[str, str] = Field(default_factory=dict)
    annotations: Mapping[str, str] = Field(default_factory=dict)


class FineTuneJob(Model):
    """A FineTuneJob in a file: metadata and spec. A status is accepted and not written back."""

    model_config = pydantic.ConfigDict(extra="forbid")

    api_version: Literal["finetune.dev/v1alpha1"]
    kind: Literal["FineTuneJob"]
    metadata: Metadata
    spec: FineTuneJobSpec
    status: Mapping[str, Any] | None = Field(default=None, exclude=True)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem of one field. location: keys and indices from the document's root. message: begins with the path."""

    location: tuple[str | int, ...]
    message: str


class InvalidManifestError(FineTuneError):
    """An invalid file, with one problem for each wrong field. The error's message joins the messages of the problems."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(Reason.INVALID_SPEC, "; ".join(dict.fromkeys(problem.message for problem in problems)))
        self.problems = tuple(problems)


def find_problems(
    error: pydantic.ValidationError, model: type[pydantic.BaseModel], prefix: tuple[str, ...] = ()
) -> list[Problem]:
    """Return one problem for each wrong field, with the path of the field in the file. A message never contains a value.

    prefix: the path of the model in the file.
    """
    problems: dict[str, Problem] = {}
    for item in error.errors(include_url=False, include_context=False):
        location = prefix + item["loc"]
        path = ""
        for part in location:
            path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
        description = {
            "missing": "required field is missing",
        }.get(item["type"], item["msg"].removeprefix("Value error, "))
        if item["type"] == "extra_forbidden":
            description = f"unknown field; {_advice(model, item['loc'])}"
        if item["type"] in ("float_type", "int_type") and _is_number(item["input"]):
            # YAML 1.1, as PyYAML and Ansible read it, has no numbers such as 1e-4.
            description = "this is text, not a number; write it without quotes, and with a point if it has an exponent: 1.0e-4"
        if item["type"] == "string_type" and "columns" in location and isinstance(item["input"], list):
            description = "write one column: a job learns from one; for several labels of the same texts, train one job for each"
        message = f"{path}: {description}" if path else description
        problems.setdefault(message, Problem(location, message))
    return list(problems.values())


def _advice(model: type[pydantic.BaseModel], location: tuple[str | int, ...]) -> str:
    """Return what to do about an unknown field: the name of a field beside it that is written nearly the same."""
    node = structural_schema(model)
    for part in location[:-1]:
        node = node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, {})
    near = difflib.get_close_matches(str(location[-1]), node.get("properties", ()), n=1)
    return f"did you mean {near[0]}?" if near else "correct its name or remove it"


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


def describe_errors(error: pydantic.ValidationError, model: type[pydantic.BaseModel], prefix: str = "") -> str:
    """Return one message for each wrong field, joined by '; '. A message never contains a value."""
    return "; ".join(problem.message for problem in find_problems(error, model, (prefix,) if prefix else ()))


def validate_name(name: str) -> None:
    """Raise FineTuneError(InvalidSpec) unless the names of all children of a FineTuneJob of that name are valid."""
    if len(name) > names.MAX_NAME_LENGTH or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        raise FineTuneError(
            Reason.INVALID_SPEC,
            f"metadata.name: write at most {names.MAX_NAME_LENGTH} characters, lower-case letters, digits and '-' only, no dots, "
            "and begin with a letter: the names of pods and of their DNS entries are derived from it",
        )


def parse_job(manifest: Any) -> FineTuneJob:
    """Parse a FineTuneJob; raise InvalidManifestError with a message that names the fields."""
    if not isinstance(manifest, Mapping) or manifest.get("kind") != names.KIND or manifest.get("apiVersion") != names.API_VERSION:
        message = f"not a FineTuneJob: write apiVersion: {names.API_VERSION}, kind: {names.KIND}"
        raise InvalidManifestError([Problem((), message)])
    problems = _name_problems(manifest.get("metadata"))
    try:
        job = FineTuneJob.model_validate(manifest, by_alias=True, by_name=False)
    except pydantic.ValidationError as error:
        raise InvalidManifestError(problems + find_problems(error, FineTuneJob)) from None
    if problems:
        raise InvalidManifestError(problems)
    return job


def _name_problems(metadata: Any) -> list[Problem]:
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    try:
        if isinstance(name, str):
            validate_name(name)
    except FineTuneError as error:
        return [Problem(("metadata", "name"), error.message)]
    return []


def parse_spec(spec: Any) -> FineTuneJobSpec:
    """Parse a ``spec``; raise FineTuneError(InvalidSpec)."""
    return _parse_spec(spec, "forbid")


def read_spec(spec: Any) -> FineTuneJobSpec:
    """Parse the ``spec`` of an object that the API server has accepted; raise FineTuneError(InvalidSpec).

    The API server rejects fields that the CRD does not know. So a field that is unknown here belongs to a later version, for
    example during an upgrade or after a rollback. This function ignores such fields.
    """
    return _parse_spec(spec, "ignore")


def _parse_spec(spec: Any, extra: Literal["forbid", "ignore"]) -> FineTuneJobSpec:
    try:
        return FineTuneJobSpec.model_validate(spec, extra=extra, by_alias=True, by_name=False)
    except pydantic.ValidationError as error:
        raise FineTuneError(Reason.INVALID_SPEC, describe_errors(error, FineTuneJobSpec, "spec")) from None
