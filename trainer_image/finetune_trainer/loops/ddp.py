"""Options of DistributedDataParallel for both loops: no second copy of the gradients, and no useless broadcast."""

import accelerate
import torch
from torch.nn.modules.batchnorm import _BatchNorm


def tune_ddp(
    options: accelerate.DistributedDataParallelKwargs, model: torch.nn.Module, broadcast_buffers: bool | None = None
) -> None:
    """Change the options that do not depend on the user, before the model is wrapped.

    Gradients are views of the buckets that are exchanged; a copy would take as much memory as the gradients. Buffers are
    broadcast only if a forward pass changes them, as batch normalisation does. broadcast_buffers: the user's choice, if any.
    """
    options.gradient_as_bucket_view = True
    if broadcast_buffers is None:
        options.broadcast_buffers = any(isinstance(module, _BatchNorm) for module in model.modules())
