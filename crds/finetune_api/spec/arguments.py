"""What ``spec.training.arguments`` may contain. Each field of TrainingArguments is passed on, replaced, or set by the trainer.

The API server can't reject a name, because a rule of a CRD can't see the keys of an object without a schema. `finetune validate`,
the operator and the trainer reject names that are not passed on. A test compares the names with the installed transformers, and
with the table in docs/from-hugging-face.md.
"""

import difflib
import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

# Name of an argument, or a pattern with * → the field of the spec that replaces it. The first match counts.
REPLACED_BY = {
    "learning_rate": "training.learningRate",
    "lr_scheduler_type": "training.scheduler",
    "warmup_steps": "training.warmupSteps",
    "num_train_epochs": "training.epochs",
    "max_steps": "training.maxSteps",
    "per_device_train_batch_size": "training.perDeviceBatchSize",
    "gradient_accumulation_steps": "training.globalBatchSize",
    "auto_find_batch_size": "training.perDeviceBatchSize",
    "label_smoothing_factor": "training.labelSmoothing",
    "seed": "training.seed",
    "data_seed": "training.seed",
    "bf16*": "training.precision",
    "fp16*": "training.precision",
    "activation_checkpointing*": "training.activationCheckpointing",
    "gradient_checkpointing*": "training.activationCheckpointing",
    "load_best_model_at_end": "evaluation.best",
    "metric_for_best_model": "evaluation.best.metric",
    "greater_is_better": "evaluation.best.mode",
    "eval_strategy": "evaluation.everyEpochs",
    "eval_steps": "evaluation.everySteps",
    "eval_*": "evaluation",
    "save_steps": "checkpoint.everySteps",
    "save_total_limit": "checkpoint.keep",
    "save_*": "checkpoint",
    "push_to_hub": "publish",
    "hub_token": "hub.tokenSecretRef",
    "hub_private_repo": "publish.visibility",
    "hub_model_id": "publish.repository",
    "hub_strategy": "publish.when",
    "hub_*": "publish",
    "use_cpu": "distributed.gpusPerNode",
    "report_to": "logging.reportTo",
    "log_level*": "logging.format",
    "run_name": "metadata.name",
}
# Arguments that the trainer sets. Another value would lose checkpoints, make the model depend on the number of processes, or have
# no effect.
SET_BY_TRAINER = (
    "output_dir", "do_*", "local_rank", "resume_from_checkpoint", "ignore_data_skip", "restore_callback_states_from_checkpoint",
    "enable_jit_checkpoint", "full_determinism", "train_sampling_strategy", "length_column_name", "remove_unused_columns",
    "label_names", "dataloader_drop_last", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context", "dataloader_in_order", "average_tokens_across_devices", "include_num_input_tokens_seen",
    "prediction_loss_only", "include_for_metrics", "batch_eval_metrics", "per_device_eval_batch_size", "ddp_*", "deepspeed",
    "fsdp*", "accelerator_config", "parallelism_config", "log_*", "logging_*", "disable_tqdm", "skip_memory_metrics",
    "project", "trackio_*",
)  # fmt: skip
# The other arguments of the transformers version that this version was tested with. The trainer passes them on, and those of a
# later version, too.
PASSED_ON = (
    "weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon", "optim", "optim_args", "optim_target_modules",
    "lr_scheduler_kwargs", "tf32", "torch_compile", "torch_compile_backend", "torch_compile_mode", "use_liger_kernel",
    "liger_kernel_config", "use_cache", "neftune_noise_alpha", "torch_empty_cache_steps", "dataloader_num_workers", "debug",
)  # fmt: skip
_SIMILAR = 0.8  # from this similarity on, an unknown name is a typo and not an argument of a later version


def reject_reserved_arguments(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments unchanged; raise ValueError that names each argument that a user may not set."""
    if problems := list(filter(None, map(_problem, arguments))):
        raise ValueError("; ".join(problems))
    return arguments


def replaced_by(name: str) -> str | None:
    """Return the field of the spec that replaces an argument; None if there is none."""
    return next((field for pattern, field in REPLACED_BY.items() if fnmatch.fnmatchcase(name, pattern)), None)


def is_set_by_trainer(name: str) -> bool:
    """Return whether the trainer sets the argument itself."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in SET_BY_TRAINER)


def _problem(name: str) -> str | None:
    if field := replaced_by(name):
        return f"{name}: write {_path(field)} instead"
    if is_set_by_trainer(name):
        return f"{name} is set by the trainer itself: remove it"
    return None


def misspelt_arguments(names: Iterable[str]) -> dict[str, str]:
    """Return name → the name that was probably meant, for each unknown name that resembles a known one.

    If a field of the spec replaces the known name, the text names the field, too.
    """
    patterns = (*PASSED_ON, *REPLACED_BY, *SET_BY_TRAINER)
    known = [name.removesuffix("*") for name in patterns if not name.endswith("_*")]
    unknown = [name for name in names if name not in PASSED_ON and _problem(name) is None]
    near = {name: difflib.get_close_matches(name, known, n=1, cutoff=_SIMILAR) for name in unknown}
    return {name: _with_field(found[0]) for name, found in near.items() if found}


def _with_field(name: str) -> str:
    field = replaced_by(name)
    return f"{name}, which is {_path(field)} here" if field else name


def _path(field: str) -> str:
    return field if field.startswith("metadata") else f"spec.{field}"
