"""The FineTuneJob as a whole, for files that users write."""

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
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
    labels: Mapping[str, str] = Field(default_factory=dict)
    annotations: Mapping[str, str] = Field(default_factory=dict)


class FineTuneJob(Model):
    """A FineTuneJob in a file: metadata and spec; a status that somebody exported along is ignored."""

    model_config = pydantic.ConfigDict(extra="forbid")

    api_version: Literal["finetune.dev/v1alpha1"]
    kind: Literal["FineTuneJob"]
    metadata: Metadata
    spec: FineTuneJobSpec
    status: Mapping[str, Any] | None = Field(default=None, exclude=True)


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is wrong with one field. location: keys and indices from the document's root. sentence: begins with the path."""

    location: tuple[str | int, ...]
    sentence: str


class InvalidManifestError(FineTuneError):
    """A file that is refused: each wrong field with its own sentence; the message joins them."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(Reason.INVALID_SPEC, "; ".join(dict.fromkeys(problem.sentence for problem in problems)))
        self.problems = tuple(problems)


def find_problems(error: pydantic.ValidationError, prefix: tuple[str, ...] = ()) -> list[Problem]:
    """One problem per wrong field, with its path as it stands in the file. Values are not repeated."""
    problems: dict[str, Problem] = {}
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        location = prefix + item["loc"]
        path = ""
        for part in location:
            path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
        message = {
            "extra_forbidden": "unknown field; correct its name or remove it",
            "missing": "required field is missing",
        }.get(item["type"], item["msg"].removeprefix("Value error, "))
        sentence = f"{path}: {message}" if path else message
        problems.setdefault(sentence, Problem(location, sentence))
    return list(problems.values())


def describe_errors(error: pydantic.ValidationError, prefix: str = "") -> str:
    """One sentence per wrong field, joined by '; '. Values are not repeated."""
    return "; ".join(problem.sentence for problem in find_problems(error, (prefix,) if prefix else ()))


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
        sentence = f"not a FineTuneJob: write apiVersion: {names.API_VERSION}, kind: {names.KIND}"
        raise InvalidManifestError([Problem((), sentence)])
    problems = _name_problems(manifest.get("metadata"))
    try:
        job = FineTuneJob.model_validate(manifest, by_alias=True, by_name=False)
    except pydantic.ValidationError as error:
        raise InvalidManifestError(problems + find_problems(error)) from None
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
    """Parse the ``spec`` of an object of the API server; raise FineTuneError(InvalidSpec)."""
    try:
        return FineTuneJobSpec.model_validate(spec, by_alias=True, by_name=False)
    except pydantic.ValidationError as error:
        raise FineTuneError(Reason.INVALID_SPEC, describe_errors(error, "spec")) from None


def read_spec(spec: Any) -> FineTuneJobSpec:
    """Parse the ``spec`` of an object that the API server has accepted; raise FineTuneError(InvalidSpec).

    The server refuses what nobody knows. So a field that is unknown here is one of a later version, as while an upgrade is on
    its way or after one was taken back, and is left out.
    """
    try:
        return FineTuneJobSpec.model_validate(spec, by_alias=True, by_name=False)
    except pydantic.ValidationError as error:
        unknown = [
            item["loc"] for item in error.errors(include_url=False, include_input=False) if item["type"] == "extra_forbidden"
        ]
    known = copy.deepcopy(spec)
    for *parents, name in unknown:
        node = known
        for part in parents:
            node = node[part]
        del node[name]
    return parse_spec(known)
