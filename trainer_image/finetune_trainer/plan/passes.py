"""What one forward pass of a job is, and how it is made to fit a GPU: for the plan, and for the trainer. Arithmetic."""

import dataclasses
from collections.abc import Iterator

from finetune_api.spec import FineTuneJobSpec, MaskedLM
from finetune_trainer.plan.memory import Estimate, Pass, estimate
from finetune_trainer.plan.model import ModelFacts
from finetune_trainer.plan.weights import weigh
from finetune_trainer.tasks.lengths import longest_input

# Of one forward pass on a CPU: more of them fall out of its caches. MiniLM on two cores, rows of 512 tokens: 2.5 samples/s with
# passes of 4 rows, 1.1 with 32; of 128 tokens: 15.3 with 16, 14.7 with 32; of 32 tokens: the more the better.
_CPU_TOKENS = 2048


@dataclasses.dataclass(frozen=True)
class Device:
    """What a process computes on. half: whether in half precision. bf16: whether it can in bf16; frozen weights are then held so.

    room: bytes for the process; None where that is not known, or not limited.
    """

    gpu: bool
    half: bool
    bf16: bool
    room: int | None


def longest_row(spec: FineTuneJobSpec, model: ModelFacts | None) -> int:
    """Tokens of a row at most."""
    if model is None or model.architecture is None:
        return spec.training.max_tokens
    known = model.architecture
    return min(spec.training.max_tokens, longest_input(known.model_type, known.positions, known.pad_token_id))


def estimate_pass(
    spec: FineTuneJobSpec, model: ModelFacts, device: Device, world: int, micro: int, checkpointing: bool
) -> Estimate | None:
    """Memory of one process with forward passes of so many rows; None for a model whose sizes are not known."""
    if model.architecture is None:
        return None
    shape = Pass(
        rows=micro * _texts_per_row(spec),
        tokens=longest_row(spec, model),
        half=device.half,
        gpu=device.gpu,
        world=world,
        predicted=_predicted(spec),
        checkpointing=checkpointing,
    )
    return estimate(model.architecture, weigh(model, spec, device.bf16), shape)


def choose_pass(spec: FineTuneJobSpec, model: ModelFacts, device: Device, world: int, micro: int) -> tuple[int, bool]:
    """Rows of a forward pass, and whether activations are computed again, of what the spec leaves open.

    micro: the largest that there may be; it is halved until it fits, and activations are computed again where not even one row
    does. Where nothing fits, or nothing is known of the GPU, it stays as it is: the training itself will show.
    """
    asked = spec.training.activation_checkpointing
    if not device.gpu:
        return cpu_rows(spec, longest_row(spec, model), micro), asked is True
    if device.room is None:
        return micro, asked is True
    sizes = [micro] if spec.training.per_device_batch_size is not None else list(_halves(micro))
    for checkpointing in (False, True) if asked is None else (asked,):
        for size in sizes:
            needed = estimate_pass(spec, model, device, world, size, checkpointing)
            if needed is None or needed.total <= device.room:
                return size, checkpointing
    return micro, asked is not False


def cpu_rows(spec: FineTuneJobSpec, longest: int, micro: int) -> int:
    """Rows of a forward pass on a CPU, at most ``micro``: as many as are fast where the spec leaves it open.

    longest: tokens of the longest row.
    """
    if spec.training.per_device_batch_size is not None:
        return micro
    return max(1, min(micro, _CPU_TOKENS // (_texts_per_row(spec) * longest)))


def fitting_rows(
    spec: FineTuneJobSpec, model: ModelFacts, device: Device, world: int, micro: int, checkpointing: bool
) -> int | None:
    """The largest half, quarter, … of a micro-batch that fits; None where none does."""
    for size in list(_halves(micro))[1:]:
        needed = estimate_pass(spec, model, device, world, size, checkpointing)
        if needed is not None and device.room is not None and needed.total <= device.room:
            return size
    return None


def _texts_per_row(spec: FineTuneJobSpec) -> int:
    return 2 if spec.task == "dpo" else 1  # both answers


def _halves(micro: int) -> Iterator[int]:
    while micro:
        yield micro
        micro //= 2


def _predicted(spec: FineTuneJobSpec) -> float:
    """Share of the positions whose tokens are predicted, at most."""
    if spec.task == "masked-lm":
        return (spec.masked_lm or MaskedLM()).probability
    return 0.0 if spec.task in ("text-classification", "token-classification") else 1.0
