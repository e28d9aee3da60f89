"""Builds the TrainingArguments from the spec, for both loops. Checks the user's ``spec.training.arguments``."""

import contextlib
import dataclasses
import difflib
import functools
import pathlib
import typing
from collections.abc import Iterator
from typing import Any

import pydantic
import transformers

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec, Training
from finetune_trainer.data.batches import BatchPlan
from finetune_trainer.runtime import device
from finetune_trainer.runtime.precision import Requested

_MAX_GRADIENT_NORM = 1.0
_WEIGHT_DECAY = 0.01
COLLECTIVE_TIMEOUT_SECONDS = 600
_FIELD = "spec.training.arguments"
# The arguments that the native loop uses.
NATIVE_ARGUMENTS = (
    "weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon", "lr_scheduler_kwargs", "dataloader_num_workers",
)  # fmt: skip


def precision_flags(requested: Requested) -> dict[str, bool]:
    """Return the TrainingArguments for ``spec.training.precision``. Raises FineTuneError if the device lacks the precision."""
    try:
        precision = device.resolve_precision(requested)
    except ValueError as error:
        raise FineTuneError(Reason.CONFIGURATION_ERROR, str(error)) from None
    return {"bf16": precision == "bf16", "fp16": precision == "fp16"}


def check_arguments(training: Training) -> dict[str, Any]:
    """Return the arguments that users add, each value converted to its field's type. Called before a model is loaded.

    Raises one FineTuneError for all names that TrainingArguments lacks or the loop does not support, and values of another type.
    """
    checked: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in (training.arguments or {}).items():
        if problem := _name_problem(name, training.loop):
            problems.append(f"{_FIELD}.{name}: {problem}")
            continue
        try:
            adapter = pydantic.TypeAdapter(_argument_types()[name], config=pydantic.ConfigDict(arbitrary_types_allowed=True))
            checked[name] = adapter.validate_python(value)
        except pydantic.ValidationError as error:
            problems.append(f"{_FIELD}.{name}: {value!r} is wrong: {error.errors()[0]['msg']}")
    if problems:
        raise FineTuneError(Reason.CONFIGURATION_ERROR, "; ".join(problems))
    return checked


def _name_problem(name: str, loop: str) -> str | None:
    if name not in _argument_types():
        near = difflib.get_close_matches(name, _argument_types(), n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        return f"transformers {transformers.__version__} has no TrainingArguments field of this name{meant}"
    if loop == "Native" and name not in NATIVE_ARGUMENTS:
        return f"loop: Native does not support it; write loop: Trainer, or one of: {', '.join(NATIVE_ARGUMENTS)}"
    return None


@contextlib.contextmanager
def explain_argument_errors(training: Training) -> Iterator[None]:
    """Convert the Trainer's errors about arguments (a conflict, a missing package) to a FineTuneError of one sentence."""
    try:
        yield
    except (ValueError, TypeError, ImportError) as error:
        if not training.arguments:
            raise
        reason = str(error).strip().splitlines()[0][:300]
        given = ", ".join(training.arguments)
        raise FineTuneError(Reason.CONFIGURATION_ERROR, f"{_FIELD} ({given}): the Trainer refuses them: {reason}") from error


@functools.cache
def _argument_types() -> dict[str, Any]:
    hints = typing.get_type_hints(transformers.TrainingArguments)
    return {field.name: hints[field.name] for field in dataclasses.fields(transformers.TrainingArguments) if field.init}


def training_arguments(
    spec: FineTuneJobSpec, plan: BatchPlan, total_steps: int, output: pathlib.Path
) -> transformers.TrainingArguments:
    """Return our arguments, overridden by those that users add. Features of the Trainer that our code replaces are off."""
    training = spec.training
    on_gpu = device.has_gpu()
    defaults: dict[str, Any] = {
        "output_dir": str(output),
        "per_device_train_batch_size": plan.micro,
        "gradient_accumulation_steps": plan.accumulation,
        "max_steps": total_steps,
        "learning_rate": training.learning_rate,
        "weight_decay": _WEIGHT_DECAY,
        "max_grad_norm": _MAX_GRADIENT_NORM,
        "seed": training.seed,
        **precision_flags(training.precision),
        "use_cpu": not on_gpu,
        # Where the device lacks tf32, any value but None is an error. With bf16 or fp16, some products remain in fp32.
        "tf32": device.resolve_precision(training.precision) != "fp32" if device.supports_tf32() else None,
        "dataloader_num_workers": 2 if on_gpu else 0,
        "logging_steps": min(10, max(1, total_steps // 200)),
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # it syncs the GPU on every micro-batch, and hides NaN and infinite losses
        "save_strategy": "no",  # our checkpointer saves
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,
        "ddp_timeout": COLLECTIVE_TIMEOUT_SECONDS,
    }
    with explain_argument_errors(training):
        return transformers.TrainingArguments(**defaults | check_arguments(training))
