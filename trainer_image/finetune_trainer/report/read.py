"""Reads the record of a training from an output directory, also of a running or interrupted training."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.wire import Report

Entry = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Training:
    """The record of a training.

    steps, evaluations: lines of the history, in order. starts: lines of starts.jsonl. evaluation: evaluation.json, of the
    finished model. report: final report; None until the training is finished.
    """

    directory: pathlib.Path
    name: str
    spec: Mapping[str, Any]
    resolved: Mapping[str, Any]
    steps: Sequence[Entry]
    evaluations: Sequence[Entry]
    starts: Sequence[Entry]
    evaluation: Mapping[str, Any]
    report: Report | None

    @property
    def last_step(self) -> int:
        """Last recorded step."""
        return max((int(entry["step"]) for entry in (*self.steps, *self.evaluations)), default=0)

    @property
    def total_steps(self) -> int | None:
        """Planned number of steps; None if not recorded."""
        return next((start["totalSteps"] for start in reversed(self.starts) if start.get("totalSteps")), None)


def read_training(directory: pathlib.Path) -> Training:
    """Read an output directory, or model/ in it. Raise FineTuneError if it holds no training."""
    for output in (directory, directory.resolve().parent):
        if (output / "run.json").is_file():
            break
    else:
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"{directory}: holds no training; write the output directory of a job, which has run.json in it; for a job on a "
            "cluster: kubectl finetune pull NAME DIR --report"
            if directory.exists()
            else f"{directory}: there is no such directory; for a job on a cluster, fetch its record first: kubectl finetune "
            f"pull {directory} DIR --report, then finetune report DIR",
        )
    run = _json(output / "run.json")
    history = _lines(output / "history.jsonl")
    return Training(
        directory=output,
        name=str(run.get("name", output.name)),
        spec=run.get("spec") or {},
        resolved=run.get("resolved") or {},
        steps=[entry for entry in history if "loss" in entry],
        evaluations=[entry for entry in history if isinstance(entry.get("evaluation"), dict)],
        starts=_lines(output / "starts.jsonl"),
        evaluation=_json(output / "evaluation.json"),
        report=_report(output / "report.json"),
    )


def _json(path: pathlib.Path) -> dict[str, Any]:
    """Read a JSON file. Return an empty dict if it can't be read: an incomplete report is better than none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:  # a line that is being written, or was cut off
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step", 0), int):
            entries.append(entry)
    return entries


def _report(path: pathlib.Path) -> Report | None:
    try:
        return Report.read(path.read_text())
    except OSError:
        return None
