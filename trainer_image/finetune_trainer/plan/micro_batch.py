"""Chooses the micro-batch if the job does not set it: one that fits the GPU, or one that is fast on a CPU."""

import copy
import logging
from typing import Any

import torch
import transformers

from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.plan.forward_pass import Device, choose_micro_batch, cpu_micro_batch
from finetune_trainer.plan.model import describe_model
from finetune_trainer.plan.tensors import Tensor
from finetune_trainer.runtime import device
from finetune_trainer.tasks.base import Task

log = logging.getLogger(__name__)

# The rest is for memory that the estimate does not include: fragmentation, communication buffers, kernels.
_USABLE_MEMORY_SHARE = 0.9


def fit_micro_batch(task: Task, spec: FineTuneJobSpec, world_size: int, micro: int, longest: int, half: bool) -> tuple[int, bool]:
    """Return the rows of a forward pass, at most ``micro``, and whether to recompute activations.

    longest: tokens of the longest row. half: whether the process computes in half precision.
    """
    requested = spec.training.activation_checkpointing
    if not device.has_gpu():
        return cpu_micro_batch(spec, longest, micro), requested is True
    if requested is not None and spec.training.per_device_batch_size is not None:
        return micro, requested
    try:
        with torch.device("meta"):
            model = getattr(transformers, task.auto_model).from_config(_config_with_head(task), **_remote_code_kwargs(task, spec))
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return micro, requested is True  # the model does not fit the task: load_model() raises the error
    tensors = [Tensor(name, "F32", tuple(weight.shape)) for name, weight in model.named_parameters()]
    facts = describe_model(task.config.to_dict(), tensors, "spec.model", spec.task)
    available_bytes = int(device.total_gpu_memory() * _USABLE_MEMORY_SHARE)
    gpu = Device(gpu=True, half=half, bf16=device.supports_bf16(), available_bytes=available_bytes)
    rows, checkpointing = choose_micro_batch(spec, facts, gpu, world_size, micro)
    if checkpointing and requested is None and not model.supports_gradient_checkpointing:
        checkpointing = False
    if rows < micro or checkpointing:
        log.info("forward passes of %d rows%s, to fit the GPU", rows, ", with activation checkpointing" if checkpointing else "")
    return rows, checkpointing


def _remote_code_kwargs(task: Task, spec: FineTuneJobSpec) -> dict[str, Any]:
    """Return arguments that load the model's code from the configuration's commit. By default, from_config loads the newest."""
    if not spec.model.trust_remote_code:
        return {}
    if "--" in str(getattr(task.config, "auto_map", None) or {}):
        raise ValueError("the code is in another repository, and its commit is not known")
    return {"trust_remote_code": True, "code_revision": getattr(task.config, "_commit_hash", None)}


def _config_with_head(task: Task) -> Any:
    """Return the configuration with the task's number of outputs: from_config, unlike from_pretrained, has no argument for it."""
    config = copy.deepcopy(task.config)
    outputs = task.model_kwargs().get("num_labels")
    if outputs is not None:
        config.num_labels = outputs
    return config
