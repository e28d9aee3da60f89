"""Batches to skip, because their loss was NaN or infinite. A file in the output directory stores them for later attempts.

The step identifies a batch. The number of skipped batches is limited, because skipping does not help a training that diverges.
"""

import json
import pathlib
from typing import TypedDict

from finetune_trainer.runtime.state import write_atomically

MAX_SKIPPED = 5
_NAME = "skipped.json"


class _Content(TypedDict):
    """The content of the file. steps: steps whose batch is skipped. exhausted: a further skip was refused."""

    steps: list[int]
    exhausted: bool


def load(output: pathlib.Path) -> frozenset[int]:
    """Return the steps whose batch is skipped. output: the output directory."""
    return frozenset(_read(output)["steps"])


def may_skip(output: pathlib.Path) -> bool:
    """Return whether the training may continue after a loss that was NaN or infinite: no skip has been refused yet."""
    return not _read(output)["exhausted"]


def record(output: pathlib.Path, step: int) -> bool:
    """Skip the batch of a step from now on. Return False if too many batches are skipped, or if this one is already skipped."""
    content = _read(output)
    granted = step not in content["steps"] and len(content["steps"]) < MAX_SKIPPED
    if granted:
        content["steps"].append(step)
    else:
        content["exhausted"] = True
    write_atomically(output / _NAME, json.dumps(content), durable=True)
    return granted


def _read(output: pathlib.Path) -> _Content:
    try:
        content: _Content = json.loads((output / _NAME).read_text())
    except FileNotFoundError:
        return {"steps": [], "exhausted": False}
    return content
