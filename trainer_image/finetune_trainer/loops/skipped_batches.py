"""Batches that are left out, because the loss was no number on them: a file of the output directory, as later attempts need it.

A batch is named by its step. It may be left out only so often: a training that diverges is not healed by it.
"""

import json
import pathlib
from typing import TypedDict

from finetune_trainer.runtime.state import write_atomically

MOST_SKIPPED = 5
_NAME = "skipped.json"


class _Content(TypedDict):
    """steps: whose batch is left out. exhausted: one more was asked for, and not granted."""

    steps: list[int]
    exhausted: bool


def load(output: pathlib.Path) -> frozenset[int]:
    """Steps whose batch is left out. output: the output directory."""
    return frozenset(_read(output)["steps"])


def may_skip(output: pathlib.Path) -> bool:
    """Whether the training may go on after a loss that was no number: what was asked for last was still granted."""
    return not _read(output)["exhausted"]


def record(output: pathlib.Path, step: int) -> bool:
    """Leave out the batch of a step from now on; False where too many are left out already, or this one, in vain."""
    content = _read(output)
    granted = step not in content["steps"] and len(content["steps"]) < MOST_SKIPPED
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
