"""How large a forward pass is to be, where the job leaves it open: what the GPU has room for, or a CPU is fast with."""

import copy
import logging
from typing import Any

import torch
import transformers

from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.plan.model import describe_model
from finetune_trainer.plan.passes import Device, choose_pass, cpu_rows
from finetune_trainer.plan.tensors import Tensor
from finetune_trainer.runtime import device
from finetune_trainer.tasks.base import Task

log = logging.getLogger(__name__)

# The rest is for what the estimate does not know: fragments, the communication's buffers, kernels.
_SHARE_OF_MEMORY = 0.9


def fit_pass(task: Task, spec: FineTuneJobSpec, world: int, micro: int, longest: int, half: bool) -> tuple[int, bool]:
    """Rows of a forward pass, at most ``micro``, and whether activations are to be computed again.

    longest: tokens of the longest row. half: whether it computes in half precision.
    """
    asked = spec.training.activation_checkpointing
    if not device.has_gpu():
        return cpu_rows(spec, longest, micro), asked is True
    if asked is not None and spec.training.per_device_batch_size is not None:
        return micro, asked
    try:
        with torch.device("meta"):
            model = getattr(transformers, task.auto_model).from_config(_with_head(task), **_code_of(task, spec))
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return micro, asked is True  # a model that is not for this task: who loads it says so
    tensors = [Tensor(name, "F32", tuple(weight.shape)) for name, weight in model.named_parameters()]
    facts = describe_model(task.config.to_dict(), tensors, "spec.model", spec.task)
    room = int(device.total_gpu_memory() * _SHARE_OF_MEMORY)
    gpu = Device(gpu=True, half=half, bf16=device.computes_bf16(), room=room)
    rows, again = choose_pass(spec, facts, gpu, world, micro)
    if again and asked is None and not model.supports_gradient_checkpointing:
        again = False
    if rows < micro or again:
        log.info("forward passes of %d rows%s, to fit the GPU", rows, ", activations computed again" if again else "")
    return rows, again


def _code_of(task: Task, spec: FineTuneJobSpec) -> dict[str, Any]:
    """The program of the same commit as the configuration: from_config would take that of the newest."""
    if not spec.model.trust_remote_code:
        return {}
    if "--" in str(getattr(task.config, "auto_map", None) or {}):
        raise ValueError("a program of another repository, of which the commit is not known")
    return {"trust_remote_code": True, "code_revision": getattr(task.config, "_commit_hash", None)}


def _with_head(task: Task) -> Any:
    """The configuration with as many outputs as the task needs: from_config, unlike from_pretrained, takes no word on them."""
    config = copy.deepcopy(task.config)
    outputs = task.model_arguments().get("num_labels")
    if outputs is not None:
        config.num_labels = outputs
    return config
