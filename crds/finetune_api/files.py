"""FineTuneJobs in files: each with the verdict of the API server, each problem with its line."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_api import names
from finetune_api.manifest import STANDARD_INPUT, Document, parse_documents, read_text
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.resource import FineTuneJob, InvalidManifestError, Metadata, parse_job

ENDINGS = (".yaml", ".yml", ".json")


@dataclasses.dataclass(frozen=True)
class FileProblem:
    """What is wrong in a file. line: from 1; None where the file as a whole is meant."""

    file: str
    line: int | None
    sentence: str

    @property
    def place(self) -> str:
        """File and line, as compilers write them."""
        return printable(f"{self.file}:{self.line}" if self.line else self.file)

    def __str__(self) -> str:
        return f"{self.place}: {printable(self.sentence)}"


def printable(text: str) -> str:
    """The text on one line: names of files and keys stand in sentences, and none of them may end a line or steer a terminal."""
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text)


@dataclasses.dataclass
class Verdict:
    """What a file, or several, came to. jobs: those without a problem. found: all of them. skipped: documents of other kinds."""

    jobs: list[FineTuneJob] = dataclasses.field(default_factory=list)
    problems: list[FileProblem] = dataclasses.field(default_factory=list)
    found: int = 0
    skipped: int = 0
    # Where each namespace and name stands first.
    places: dict[tuple[str, str], str] = dataclasses.field(default_factory=dict)


def check_files(paths: Sequence[pathlib.Path]) -> Verdict:
    """The verdict on all files together; a name that is given twice is a problem of the second."""
    verdict = Verdict()
    for path in paths:
        try:
            text = read_text(path)
        except FineTuneError as error:
            file = _shown(path)
            verdict.problems.append(FileProblem(file, None, error.message.removeprefix(f"{path}: ")))
            continue
        _check_text(text, _shown(path), verdict)
    return verdict


def _shown(path: pathlib.Path) -> str:
    return "<stdin>" if path == STANDARD_INPUT else str(path)


def _check_text(text: str, file: str, verdict: Verdict) -> None:
    for document in parse_documents(text):
        if not isinstance(document, Document):
            verdict.problems.append(FileProblem(file, document.line, document.sentence))
            continue
        for item in document.items():
            _check_document(item, file, verdict)


def _check_document(document: Document, file: str, verdict: Verdict) -> None:
    if not _is_ours(document.value):
        verdict.skipped += 1
        return
    verdict.found += 1
    try:
        verdict.jobs.append(parse_job(document.value))
    except InvalidManifestError as error:
        found = [FileProblem(file, document.line(problem.location), problem.sentence) for problem in error.problems]
        verdict.problems += sorted(found, key=lambda problem: problem.line or 0)
    _check_twin(document, file, verdict)


def _is_ours(value: Any) -> bool:
    """Of our kind or of our group: a slip in one of the two is a problem, not another kind of object."""
    if not isinstance(value, Mapping):
        return False
    return value.get("kind") == names.KIND or str(value.get("apiVersion")).startswith(f"{names.GROUP}/")


def _check_twin(document: Document, file: str, verdict: Verdict) -> None:
    """Of two with one name the later would replace the earlier, or be refused because that has started."""
    metadata = document.value.get("metadata")
    if not isinstance(metadata, Mapping) or not isinstance(metadata.get("name"), str):
        return
    key = str(metadata.get("namespace", Metadata.model_fields["namespace"].default)), metadata["name"]
    line = document.line(("metadata", "name"))
    if key in verdict.places:
        sentence = f"metadata.name: FineTuneJob {'/'.join(key)} is in {verdict.places[key]} already; give one another name"
        verdict.problems.append(FileProblem(file, line, sentence))
    verdict.places.setdefault(key, f"{file}:{line}")


def read_jobs(path: pathlib.Path) -> list[FineTuneJob]:
    """The FineTuneJobs of a file, at least one; raise FineTuneError(InvalidSpec) with a line for each problem."""
    verdict = check_files([path])
    if not verdict.problems and not verdict.jobs:
        verdict.problems.append(FileProblem(_shown(path), None, f"holds no FineTuneJob; write one, with kind: {names.KIND}"))
    if verdict.problems:
        raise FineTuneError(Reason.INVALID_SPEC, "\n".join(map(str, verdict.problems)))
    return verdict.jobs


def read_job(path: pathlib.Path) -> FineTuneJob:
    """The one FineTuneJob of a file; raise FineTuneError(InvalidSpec) with a line for each problem."""
    jobs = read_jobs(path)
    if len(jobs) != 1:
        raise FineTuneError(Reason.INVALID_SPEC, f"{_shown(path)}: holds {len(jobs)} FineTuneJobs; one is needed")
    return jobs[0]
