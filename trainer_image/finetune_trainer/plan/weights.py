"""How a model's weights are held: all of them trained, or frozen, perhaps quantized, beside adapters. Pure arithmetic."""

from collections.abc import Sequence

from finetune_api.spec import FineTuneJobSpec, LoRA
from finetune_trainer.plan.memory import Weights
from finetune_trainer.plan.model import ModelFacts
from finetune_trainer.plan.tensors import Tensor

# Bytes per number of a quantized matrix, with the scales of its blocks (for nf4 quantized themselves).
_QUANTIZED = {"nf4": 0.52, "int8": 1.0}
# The layers before the logits get no adapters by all-linear, and are not quantized.
_OUTPUTS = ("lm_head", "embed_out", "cls", "classifier", "score")


def weigh(model: ModelFacts, spec: FineTuneJobSpec, half: bool) -> Weights:
    """What is held of a model in one process. half: whether the device computes in bf16: weights under adapters follow it."""
    source = spec.model
    if source.lora is None:
        size = 2 if source.dtype == "bfloat16" else 4
        reference = size * model.parameters if spec.task == "dpo" else 0
        return Weights(reference, model.parameters, size, model.linear_parameters if size == 4 else 0)
    size = 2 if source.dtype == "bfloat16" or (source.dtype == "auto" and half) else 4
    adapted = _adapted(model.tensors, source.lora)
    trained = source.lora.rank * sum(sum(tensor.shape) for tensor in adapted)
    trained += sum(tensor.numbers for tensor in _named(model.tensors, source.lora.modules_to_save or ()))
    inputs = sum(tensor.shape[1] for tensor in adapted) if source.lora.dropout else 0
    if source.quantization == "none":
        return Weights(size * model.parameters, trained, 4, model.linear_parameters if size == 4 else 0, inputs)
    quantized = sum(tensor.numbers for tensor in model.tensors if tensor.linear and not _is_output(tensor))
    # The rest is held in fp32 beside quantized weights, which are widened one layer at a time.
    frozen = int(quantized * _QUANTIZED[source.quantization]) + 4 * (model.parameters - quantized)
    return Weights(frozen, trained, 4, 0, inputs)


def _adapted(tensors: Sequence[Tensor], lora: LoRA) -> list[Tensor]:
    """The matrices that get adapters."""
    if "all-linear" in lora.target_modules:
        return [tensor for tensor in tensors if tensor.linear and not _is_output(tensor)]
    return [tensor for tensor in _named(tensors, lora.target_modules) if len(tensor.shape) == 2]


def _named(tensors: Sequence[Tensor], modules: Sequence[str]) -> list[Tensor]:
    """Tensors of the modules whose name ends in one of those."""
    return [tensor for tensor in tensors if any(f".{module}." in f".{tensor.name}" for module in modules)]


def _is_output(tensor: Tensor) -> bool:
    return tensor.name.startswith(_OUTPUTS)
