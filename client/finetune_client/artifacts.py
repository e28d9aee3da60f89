"""The parts of a job's output that can be downloaded."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A part of a job's output that can be downloaded.

    folder: its folder in the output. files: the file names; if empty, all files in the folder. too_early: the message while the
    job is unfinished. missing: the message if the volume has no such file.
    """

    folder: str
    files: tuple[str, ...]
    too_early: str
    missing: str


MODEL = Artifact(
    folder="model",
    files=(),
    too_early="it has no finished model yet",
    missing="no finished model: the job ended before it was written",
)
# The files that `finetune report` reads, and the report that a finished training has written.
TRAINING_RECORD = Artifact(
    folder="",
    files=("run.json", "history.jsonl", "starts.jsonl", "evaluation.json", "report.json", "report.html"),
    too_early="its training record can be fetched once it has ended",
    missing="no training record: the job ended before it began to train",
)


def kept_log(name: str) -> Artifact:
    """Return the artifact of what a deleted pod has left of its log."""
    missing = f"no log {name}: the pod wrote none, it was killed in its first half minute, or its trainer image keeps none"
    return Artifact(folder="logs", files=(name,), too_early="", missing=missing)
