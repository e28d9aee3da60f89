"""Computes how a model's weights are held: all trained, or frozen (perhaps quantized) below adapters. Pure arithmetic."""

from collections.abc import Sequence

from finetune_api.spec import FineTuneJobSpec, LoRA
from finetune_trainer.plan.memory import WeightLayout
from finetune_trainer.plan.model import ModelFacts
from finetune_trainer.plan.tensors import Tensor

# Bytes per element of a quantized matrix, including the scales of its blocks (which nf4 quantizes too).
_QUANTIZED = {"nf4": 0.52, "int8": 1.0}
# Output layers: all-linear gives them no adapters, and they are not quantized.
_OUTPUTS = ("lm_head", "embed_out", "cls", "classifier", "score")


def weight_layout(model: ModelFacts, spec: FineTuneJobSpec, half: bool) -> WeightLayout:
    """Return how one process holds a model's weights.

    half: whether the device supports bf16. If so, frozen weights with dtype Auto are held in bf16.
    """
    source = spec.model
    if source.lora is None:
        size = 2 if source.dtype == "bfloat16" else 4
        reference = size * model.parameters if spec.task == "dpo" else 0
        return WeightLayout(reference, model.parameters, size, model.linear_parameters if size == 4 else 0)
    size = 2 if source.dtype == "bfloat16" or (source.dtype == "Auto" and half) else 4
    adapted_tensors = _adapted_tensors(model.tensors, source.lora)
    trained = source.lora.rank * sum(sum(tensor.shape) for tensor in adapted_tensors)
    trained += sum(tensor.numel for tensor in _named(model.tensors, source.lora.modules_to_save or ()))
    inputs = sum(tensor.shape[1] for tensor in adapted_tensors) if source.lora.dropout else 0
    if source.quantization == "None":
        return WeightLayout(size * model.parameters, trained, 4, model.linear_parameters if size == 4 else 0, inputs)
    quantized = sum(tensor.numel for tensor in model.tensors if tensor.is_linear and not _is_output(tensor))
    # The other weights are held in fp32. Quantized weights are dequantized one layer at a time.
    frozen = int(quantized * _QUANTIZED[source.quantization]) + 4 * (model.parameters - quantized)
    return WeightLayout(frozen, trained, 4, 0, inputs)


def _adapted_tensors(tensors: Sequence[Tensor], lora: LoRA) -> list[Tensor]:
    """Return the matrices that get adapters."""
    if "all-linear" in lora.target_modules:
        return [tensor for tensor in tensors if tensor.is_linear and not _is_output(tensor)]
    return [tensor for tensor in _named(tensors, lora.target_modules) if len(tensor.shape) == 2]


def _named(tensors: Sequence[Tensor], modules: Sequence[str]) -> list[Tensor]:
    """Return the tensors of the modules whose names end in one of the given names."""
    return [tensor for tensor in tensors if any(f".{module}." in f".{tensor.name}" for module in modules)]


def _is_output(tensor: Tensor) -> bool:
    return tensor.name.startswith(_OUTPUTS)
