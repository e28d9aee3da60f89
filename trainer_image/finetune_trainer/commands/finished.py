"""Loads a finished model for use. Its own configuration determines task, classes and problem type."""

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import transformers

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.resource import parse_spec
from finetune_api.spec import FineTuneJobSpec, ProblemType
from finetune_api.spec import Task as TaskName
from finetune_api.wire import RunConfig
from finetune_trainer.commands.base_model import find_base_model
from finetune_trainer.models.adapters import attach, merge_adapters
from finetune_trainer.models.load import ModelLocation, load_config, load_model, load_tokenizer, save_model
from finetune_trainer.output.directory import OutputDirectory
from finetune_trainer.publish.card import write_model_card
from finetune_trainer.runtime.device import current_device
from finetune_trainer.tasks import task_class
from finetune_trainer.tasks.base import DataInfo, Task

# End of a class name → its task. A causal-lm model with a chat template gets the task sft.
_TASKS: Mapping[str, TaskName] = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "masked-lm",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
}
_TASKS_OF_ADAPTERS: Mapping[str, TaskName] = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "CAUSAL_LM": "causal-lm",
}
_PROBLEMS: Mapping[str, ProblemType] = {
    "single_label_classification": "SingleLabel",
    "multi_label_classification": "MultiLabel",
    "regression": "Regression",
}
_NO_CLAIMS: Mapping[str, str] = {}
_MAX_TOKENS = 1_048_576  # maximum of the field; the model's own limit applies


def load_finished(
    directory: pathlib.Path, base: str | None = None, claims: Mapping[str, str] = _NO_CLAIMS, trust_remote_code: bool = False
) -> Task:
    """Load a task with its model, in evaluation mode, on the GPU if there is one. Raise FineTuneError.

    base: repository or directory of the base model, if it is not the one that the adapter names. claims: claim name → directory,
    for a base model in a claim.
    """
    transformers.logging.set_verbosity_error()  # hides the warning that the base model's head is new
    location = ModelLocation(str(directory), None, str(directory), trust_remote_code)
    tokenizer, config, adapter = load_tokenizer(location), load_config(location), _adapter(directory)
    spec = finished_spec(directory, config, adapter, chat=bool(tokenizer.chat_template))
    task = task_class(spec.task)(spec, tokenizer, config, finished_info(spec.task, config, bool(tokenizer.chat_template)))
    if adapter is None:
        task.model = load_model(task, location, spec)
    else:
        # The base model gets a new head, and the adapter replaces it. The adapter is added to the commit that it was trained on.
        found = find_base_model(directory, adapter, base, claims)
        model = load_model(task, ModelLocation(found.name_or_path, found.revision, found.field, trust_remote_code), spec)
        task.model = attach(model, str(directory))
    task.model.to(current_device()).eval()
    task.prepare_model()
    return task


def merge_finished(config: RunConfig, output: OutputDirectory) -> None:
    """Replace the adapters in the output by the merged model, if the training did not merge them. Raise FineTuneError."""
    task = load_finished(output.model, claims=config.claims, trust_remote_code=config.spec.model.trust_remote_code)
    written = output.directory / ".model"
    shutil.rmtree(written, ignore_errors=True)
    save_model(merge_adapters(task.model), task.tokenizer, written)
    report = output.finished_report()
    assert report is not None, "the training is not finished"
    write_model_card(written, config, report, json.loads(output.evaluation.read_text()))
    output.commit_model(written)


def finished_spec(directory: pathlib.Path, config: Any, adapter: Mapping[str, Any] | None, chat: bool) -> FineTuneJobSpec:
    """Return a spec with only the task of the model in a directory.

    config: configuration of the model. adapter: content of adapter_config.json.
    """
    architecture = str((getattr(config, "architectures", None) or [""])[0])
    task = _TASKS_OF_ADAPTERS.get((adapter or {}).get("task_type") or "") or next(
        (task for ending, task in _TASKS.items() if architecture.endswith(ending)), None
    )
    if task is None:
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"{directory}: {architecture or 'a model without a named class'} was not made for any of the "
            "tasks; write the directory of a fine-tuned model",
        )
    return parse_spec(
        {
            "task": "sft" if chat and task == "causal-lm" else task,
            "model": {"claim": {"claimName": "model"}},
            "datasets": [{"claim": {"claimName": "data"}}],
            "training": {"maxTokens": _MAX_TOKENS},
        }
    )


def finished_info(task: TaskName, config: Any, chat: bool) -> DataInfo:
    """Return the facts about the training data that the model's configuration contains."""
    if task == "sft":
        return DataInfo(format="messages" if chat else "text")
    if task not in ("text-classification", "token-classification"):
        return DataInfo()
    classes = [config.id2label[number] for number in sorted(config.id2label)]
    if task == "token-classification":
        return DataInfo(classes=classes, counts=[1] * len(classes))
    problem = _PROBLEMS.get(config.problem_type or "") or ("Regression" if len(classes) == 1 else "SingleLabel")
    if problem == "Regression":
        return DataInfo(problem=problem)
    return DataInfo(classes=classes, counts=[1] * len(classes), problem=problem)


def _adapter(directory: pathlib.Path) -> dict[str, Any] | None:
    try:
        loaded: dict[str, Any] = json.loads((directory / "adapter_config.json").read_text())
    except FileNotFoundError:
        return None
    return loaded
