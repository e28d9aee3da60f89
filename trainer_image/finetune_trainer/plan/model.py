"""Describes a model without loading it, from config.json and the headers of its safetensors files."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec, Task
from finetune_trainer.commands.arguments import find_model
from finetune_trainer.plan.memory import Architecture
from finetune_trainer.plan.tensors import Tensor, observe_tensors

_CLASSIFIERS: tuple[Task, ...] = ("text-classification", "token-classification")
# Heads from the model's earlier training. A classifier does not load them, and its own head is small.
_PRETRAINING_HEADS = re.compile(
    r"^(cls|lm_head|classifier|score|pre_classifier|qa_outputs|vocab_transform|vocab_layer_norm|vocab_projector|generator_\w+"
    r"|discriminator_predictions|lm_predictions|mask_predictions|decoder|head)\."
)
_GATE = re.compile(r"gate_proj|\.Wi\.weight$|gate_up_proj")


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """The facts about a model that determine memory and checkpoint sizes.

    parameters: number of parameters that the task loads. linear_parameters: those of matrix multiplications. architecture: None
    if config.json lacks a size; ``reason`` names it. tensors: all tensors that the task loads.
    """

    parameters: int
    linear_parameters: int
    architecture: Architecture | None
    reason: str | None = None
    tensors: tuple[Tensor, ...] = ()


def observe_model(spec: FineTuneJobSpec, claims: Mapping[str, str]) -> ModelFacts | None:
    """Describe the model of a job; return None if its claim is not given. Raise FineTuneError that names the field."""
    source = spec.model
    if source.hub is not None:
        from finetune_trainer.plan.remote import observe_hub_model  # the Hub's client is slow to import

        return describe_model(*observe_hub_model(source.hub), "spec.model.hub", spec.task)
    assert source.claim is not None
    if source.claim.claim_name not in claims:
        return None
    directory = find_model(source.claim, claims)
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR, f"spec.model.claim: {directory / 'config.json'} can't be read: {error}"
        ) from None
    return describe_model(config, list(observe_tensors(directory)), "spec.model.claim", spec.task)


def describe_model(config: Any, tensors: Sequence[Tensor], field: str, task: Task = "text-classification") -> ModelFacts:
    """Count the parameters and read the architecture. Raise FineTuneError if config.json is not an object."""
    if not isinstance(config, Mapping):
        raise FineTuneError(Reason.CONFIGURATION_ERROR, f"{field}: config.json does not describe a model")
    trained = [tensor for tensor in tensors if tensor.dtype[:1] in "BF" and tensor.dtype != "BOOL"]
    if task in _CLASSIFIERS:
        trained = [tensor for tensor in trained if not _PRETRAINING_HEADS.match(tensor.name)]
    parameters = sum(tensor.numel for tensor in trained)
    linear_parameters = sum(tensor.numel for tensor in trained if tensor.is_linear)
    try:
        gated = any(_GATE.search(tensor.name) for tensor in trained)
        return ModelFacts(parameters, linear_parameters, Architecture.from_config(config, gated), tensors=tuple(trained))
    except ValueError as error:
        return ModelFacts(parameters, linear_parameters, None, str(error), tuple(trained))
