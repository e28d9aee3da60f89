"""Reads FineTuneJobs from files and checks them as the API server does. Each problem names its line."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_api import names
from finetune_api.manifest import STANDARD_INPUT, Document, parse_documents, read_text
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.resource import FineTuneJob, InvalidManifestError, Metadata, parse_job
from finetune_api.spec import FineTuneJobSpec
from finetune_api.spec.arguments import misspelt_arguments

SUFFIXES = (".yaml", ".yml", ".json")
_ARGUMENTS = ("spec", "training", "arguments")


@dataclasses.dataclass(frozen=True)
class FileProblem:
    """A problem in a file. line: from 1; None if the problem concerns the whole file."""

    file: str
    line: int | None
    message: str

    @property
    def location(self) -> str:
        """File and line, as compilers write them."""
        return printable(f"{self.file}:{self.line}" if self.line else self.file)

    def __str__(self) -> str:
        return f"{self.location}: {printable(self.message)}"


def printable(text: str) -> str:
    """Escape characters that are not printable.

    Messages contain names of files and keys. A name must not break the line or control the terminal.
    """
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text)


@dataclasses.dataclass
class CheckResult:
    """The result of a check of one or more files.

    jobs: valid FineTuneJobs. found: number of FineTuneJobs, valid or not. skipped: number of documents of other kinds.
    locations: (namespace, name) → file and line of the first FineTuneJob of that name.
    """

    jobs: list[FineTuneJob] = dataclasses.field(default_factory=list)
    problems: list[FileProblem] = dataclasses.field(default_factory=list)
    found: int = 0
    skipped: int = 0
    locations: dict[tuple[str, str], str] = dataclasses.field(default_factory=dict)


def check_files(paths: Sequence[pathlib.Path], secrets_only: bool = False) -> CheckResult:
    """Check all files together. If a name occurs twice, the second FineTuneJob has a problem.

    secrets_only: a job gets the Hub's token only from a Secret, as on a cluster. One that pushes without a Secret has a problem.
    """
    result = CheckResult()
    for path in paths:
        try:
            text = read_text(path)
        except FineTuneError as error:
            file = _display_name(path)
            result.problems.append(FileProblem(file, None, error.message.removeprefix(f"{path}: ")))
            continue
        _check_text(text, _display_name(path), result, secrets_only)
    return result


def _display_name(path: pathlib.Path) -> str:
    return "<stdin>" if path == STANDARD_INPUT else str(path)


def _check_text(text: str, file: str, result: CheckResult, secrets_only: bool) -> None:
    for document in parse_documents(text):
        if not isinstance(document, Document):
            result.problems.append(FileProblem(file, document.line, document.message))
            continue
        for item in document.items():
            _check_document(item, file, result, secrets_only)


def _check_document(document: Document, file: str, result: CheckResult, secrets_only: bool) -> None:
    if not _is_finetune_job(document.value):
        result.skipped += 1
        return
    result.found += 1
    try:
        job = parse_job(document.value)
        result.jobs.append(job)
        if secrets_only and (problem := missing_push_token(job.spec)):
            result.problems.append(FileProblem(file, document.line(("spec", "publish")), problem))
    except InvalidManifestError as error:
        found = [FileProblem(file, document.line(problem.location), problem.message) for problem in error.problems]
        result.problems += sorted(found, key=lambda problem: problem.line or 0)
    _check_arguments(document, file, result)
    _check_duplicate(document, file, result)


def missing_push_token(spec: FineTuneJobSpec) -> str | None:
    """Say that a push has no token from a Secret; None if it has one, or if the job does not push."""
    if spec.publish is None or spec.hub.token_secret_ref is not None:
        return None
    return (
        f"spec.publish: a push to {spec.publish.repository!r} needs a token, and there is none; name a Secret in "
        f"spec.hub.tokenSecretRef, or for `finetune run` set {names.ENV_HUB_TOKEN}"
    )


def _check_arguments(document: Document, file: str, result: CheckResult) -> None:
    """Report training arguments that are misspelt. A cluster would find them when the training starts."""
    given: Any = document.value
    for field in _ARGUMENTS:
        given = given.get(field) if isinstance(given, Mapping) else None
    if not isinstance(given, Mapping):
        return
    for name, meant in misspelt_arguments(name for name in given if isinstance(name, str)).items():
        message = f"{'.'.join(_ARGUMENTS)}: transformers has no TrainingArguments field {name}; did you mean {meant}?"
        result.problems.append(FileProblem(file, document.line((*_ARGUMENTS, name)), message))


def _is_finetune_job(value: Any) -> bool:
    """Return whether the kind or the API group is that of a FineTuneJob.

    If only one of them is, the other probably has a typo, and the check reports it as a problem of the file.
    """
    if not isinstance(value, Mapping):
        return False
    return value.get("kind") == names.KIND or str(value.get("apiVersion")).startswith(f"{names.GROUP}/")


def _check_duplicate(document: Document, file: str, result: CheckResult) -> None:
    """Report a second FineTuneJob of the same name.

    On a cluster it would replace the first. If the first has started, the API server would reject the second.
    """
    metadata = document.value.get("metadata")
    if not isinstance(metadata, Mapping) or not isinstance(metadata.get("name"), str):
        return
    key = str(metadata.get("namespace", Metadata.model_fields["namespace"].default)), metadata["name"]
    line = document.line(("metadata", "name"))
    if key in result.locations:
        message = f"metadata.name: FineTuneJob {'/'.join(key)} is in {result.locations[key]} already; give one another name"
        result.problems.append(FileProblem(file, line, message))
    result.locations.setdefault(key, f"{file}:{line}")


def read_jobs(path: pathlib.Path) -> list[FineTuneJob]:
    """Return the FineTuneJobs of a file, at least one; raise FineTuneError(InvalidSpec) with one line for each problem."""
    result = check_files([path])
    if not result.problems and not result.jobs:
        result.problems.append(
            FileProblem(_display_name(path), None, f"holds no FineTuneJob; write one, with kind: {names.KIND}")
        )
    if result.problems:
        raise FineTuneError(Reason.INVALID_SPEC, "\n".join(map(str, result.problems)))
    return result.jobs


def read_job(path: pathlib.Path) -> FineTuneJob:
    """Return the only FineTuneJob of a file; raise FineTuneError(InvalidSpec) with one line for each problem."""
    jobs = read_jobs(path)
    if len(jobs) != 1:
        raise FineTuneError(
            Reason.INVALID_SPEC, f"{_display_name(path)}: contains {len(jobs)} FineTuneJobs, but exactly one is required"
        )
    return jobs[0]
