"""Size of one forward pass, and how it is reduced to fit a GPU: pure arithmetic, for the plan and for the trainer."""

import dataclasses
from collections.abc import Iterator

from finetune_api.spec import FineTuneJobSpec, MaskedLM
from finetune_trainer.plan.memory import Estimate, ForwardPass, estimate
from finetune_trainer.plan.model import ModelFacts
from finetune_trainer.plan.weights import weight_layout
from finetune_trainer.tasks.lengths import max_input_length

# Tokens of one forward pass on a CPU: the activations of more tokens do not fit its caches. Measured with MiniLM on two cores.
# Rows of 512 tokens: 2.5 samples/s with passes of 4 rows, 1.1 with 32. Rows of 128 tokens: 15.3 with 16, 14.7 with 32. Rows of
# 32 tokens: the more rows, the faster.
_CPU_TOKENS = 2048


@dataclasses.dataclass(frozen=True)
class Device:
    """The device of one process.

    half: whether the process computes in half precision. bf16: whether the device supports bf16; if so, frozen weights are held
    in bf16. available_bytes: for the process; None if not known or not limited.
    """

    gpu: bool
    half: bool
    bf16: bool
    available_bytes: int | None


def max_row_tokens(spec: FineTuneJobSpec, model: ModelFacts | None) -> int:
    """Return the maximum number of tokens of a row."""
    if model is None or model.architecture is None:
        return spec.training.max_tokens
    known = model.architecture
    return min(spec.training.max_tokens, max_input_length(known.model_type, known.positions, known.pad_token_id))


def estimate_memory(
    spec: FineTuneJobSpec, model: ModelFacts, device: Device, world_size: int, micro: int, checkpointing: bool
) -> Estimate | None:
    """Return the memory of one process with forward passes of ``micro`` rows; None if the model's sizes are not known."""
    if model.architecture is None:
        return None
    shape = ForwardPass(
        rows=micro * _sequences_per_row(spec),
        tokens=max_row_tokens(spec, model),
        half=device.half,
        gpu=device.gpu,
        world_size=world_size,
        logit_share=_logit_share(spec),
        checkpointing=checkpointing,
    )
    return estimate(model.architecture, weight_layout(model, spec, device.bf16), shape)


def choose_micro_batch(spec: FineTuneJobSpec, model: ModelFacts, device: Device, world_size: int, micro: int) -> tuple[int, bool]:
    """Return the rows of a forward pass and whether to recompute activations. Values that the spec sets are not changed.

    micro: the maximum number of rows. It is halved until the forward pass fits. If not even one row fits, the same sizes are
    tried with activation recomputation. If nothing fits, or the GPU is not known, ``micro`` is returned.
    """
    requested = spec.training.activation_checkpointing
    if not device.gpu:
        return cpu_micro_batch(spec, max_row_tokens(spec, model), micro), requested is True
    if device.available_bytes is None:
        return micro, requested is True
    sizes = [micro] if spec.training.per_device_batch_size is not None else list(_halves(micro))
    for checkpointing in (False, True) if requested is None else (requested,):
        for size in sizes:
            needed = estimate_memory(spec, model, device, world_size, size, checkpointing)
            if needed is None or needed.total <= device.available_bytes:
                return size, checkpointing
    return micro, requested is not False


def cpu_micro_batch(spec: FineTuneJobSpec, longest: int, micro: int) -> int:
    """Return the rows of a forward pass on a CPU, at most ``micro``. If the spec does not set it, return a fast number.

    longest: tokens of the longest row.
    """
    if spec.training.per_device_batch_size is not None:
        return micro
    return max(1, min(micro, _CPU_TOKENS // (_sequences_per_row(spec) * longest)))


def largest_fitting_micro_batch(
    spec: FineTuneJobSpec, model: ModelFacts, device: Device, world_size: int, micro: int, checkpointing: bool
) -> int | None:
    """Return the largest of half, a quarter, … of the micro-batch that fits; None if none fits."""
    for size in list(_halves(micro))[1:]:
        needed = estimate_memory(spec, model, device, world_size, size, checkpointing)
        if needed is not None and device.available_bytes is not None and needed.total <= device.available_bytes:
            return size
    return None


def _sequences_per_row(spec: FineTuneJobSpec) -> int:
    return 2 if spec.task == "dpo" else 1  # a pair has two answers


def _halves(micro: int) -> Iterator[int]:
    while micro:
        yield micro
        micro //= 2


def _logit_share(spec: FineTuneJobSpec) -> float:
    """Return the maximum share of positions that the model predicts."""
    if spec.task == "masked-lm":
        return (spec.masked_lm or MaskedLM()).probability
    return 0.0 if spec.task in ("text-classification", "token-classification") else 1.0
