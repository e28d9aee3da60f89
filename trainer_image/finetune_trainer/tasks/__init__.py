"""The tasks, one module each. ``spec.task`` selects one.

base.py defines their interface. padded.py and generation.py contain base classes. The tasks share metrics, chat templates,
problem types, class weights and lengths.
"""

import importlib
from typing import TYPE_CHECKING

from finetune_api.spec import Task as TaskName

if TYPE_CHECKING:  # not imported at run time: the plan imports tasks.lengths, and must not import torch
    from finetune_trainer.tasks.base import Task

# Imported late, because some tasks need libraries that others do not need.
_TASKS: dict[TaskName, tuple[str, str]] = {
    "text-classification": ("text_classification", "TextClassification"),
    "token-classification": ("token_classification", "TokenClassification"),
    "masked-lm": ("masked_lm", "MaskedLanguageModeling"),
    "causal-lm": ("causal_lm", "CausalLanguageModeling"),
    "sft": ("sft", "SupervisedFineTuning"),
    "dpo": ("dpo", "DirectPreference"),
}


def task_class(name: TaskName) -> "type[Task]":
    """Return the class of a task."""
    module, attribute = _TASKS[name]
    found: type[Task] = getattr(importlib.import_module(f"finetune_trainer.tasks.{module}"), attribute)
    return found
