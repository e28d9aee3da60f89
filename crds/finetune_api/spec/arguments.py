"""Which of transformers' TrainingArguments ``spec.training.arguments`` may not contain, and what to write instead.

The API server can't reject them, because a rule of a CRD can't see the keys of an object without a schema. `finetune validate`,
the operator and the trainer reject them.
"""

import fnmatch
from collections.abc import Mapping
from typing import Any

# Name of an argument, or a pattern with * → the field of the spec that replaces it.
_REPLACED_BY = {
    "learning_rate": "training.learningRate",
    "lr_scheduler_type": "training.scheduler",
    "warmup_steps": "training.warmupSteps",
    "num_train_epochs": "training.epochs",
    "max_steps": "training.maxSteps",
    "per_device_train_batch_size": "training.perDeviceBatchSize",
    "gradient_accumulation_steps": "training.globalBatchSize",
    "auto_find_batch_size": "training.perDeviceBatchSize",
    "seed": "training.seed",
    "data_seed": "training.seed",
    "bf16*": "training.precision",
    "fp16*": "training.precision",
    "activation_checkpointing": "training.activationCheckpointing",
    "gradient_checkpointing": "training.activationCheckpointing",
    "load_best_model_at_end": "evaluation.best",
    "metric_for_best_model": "evaluation.best",
    "greater_is_better": "evaluation.best",
    "eval_*": "evaluation",
    "save_*": "checkpoint",
    "push_to_hub": "publish",
    "hub_*": "publish",
    "use_cpu": "distributed.gpusPerNode",
    "report_to": "logging.reportTo",
}
# Arguments that the trainer sets. Another value would lose checkpoints, make the model depend on the number of processes, or have
# no effect.
_SET_BY_TRAINER = (
    "output_dir", "do_*", "local_rank", "resume_from_checkpoint", "ignore_data_skip", "restore_callback_states_from_checkpoint",
    "enable_jit_checkpoint", "full_determinism", "train_sampling_strategy", "length_column_name", "remove_unused_columns",
    "label_names", "dataloader_drop_last", "average_tokens_across_devices", "include_num_input_tokens_seen",
    "label_smoothing_factor", "prediction_loss_only", "include_for_metrics", "batch_eval_metrics", "per_device_eval_batch_size",
    "ddp_*", "deepspeed", "fsdp*", "accelerator_config", "parallelism_config",
    "log_*", "logging_*", "disable_tqdm", "run_name", "project", "trackio_*",
)  # fmt: skip


def reject_reserved_arguments(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments unchanged; raise ValueError that names each argument that a user may not set."""
    if problems := list(filter(None, map(_problem, arguments))):
        raise ValueError("; ".join(problems))
    return arguments


def _problem(name: str) -> str | None:
    if field := next((field for pattern, field in _REPLACED_BY.items() if fnmatch.fnmatchcase(name, pattern)), None):
        return f"{name}: write spec.{field} instead"
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in _SET_BY_TRAINER):
        return f"{name} is set by the trainer itself: remove it"
    return None
