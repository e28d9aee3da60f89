"""What a model is made of, without loading it: config.json, and the headers of its safetensors files."""

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
# Heads of what a model was trained on before: a classifier does not load them, and its own head is small.
_OTHER_HEADS = re.compile(
    r"^(cls|lm_head|classifier|score|pre_classifier|qa_outputs|vocab_transform|vocab_layer_norm|vocab_projector|generator_\w+"
    r"|discriminator_predictions|lm_predictions|mask_predictions|decoder|head)\."
)
_GATE = re.compile(r"gate_proj|\.Wi\.weight$|gate_up_proj")


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """What memory and checkpoints follow from.

    parameters: numbers that the task loads. linear_parameters: those of matrix multiplications. architecture: None where
    config.json does not say its sizes, for the given reason. tensors: all that is loaded.
    """

    parameters: int
    linear_parameters: int
    architecture: Architecture | None
    reason: str | None = None
    tensors: tuple[Tensor, ...] = ()


def observe_model(spec: FineTuneJobSpec, claims: Mapping[str, str]) -> ModelFacts | None:
    """Look at the model of a job; None where its claim is not given. Raises FineTuneError that names the field."""
    source = spec.model
    if source.hub is not None:
        from finetune_trainer.plan.remote import observe_hub_model  # the Hub's client takes its time to import

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
    """Count the parameters and read the architecture; raise FineTuneError where config.json is none."""
    if not isinstance(config, Mapping):
        raise FineTuneError(Reason.CONFIGURATION_ERROR, f"{field}: config.json does not describe a model")
    trained = [tensor for tensor in tensors if tensor.dtype[:1] in "BF" and tensor.dtype != "BOOL"]
    if task in _CLASSIFIERS:
        trained = [tensor for tensor in trained if not _OTHER_HEADS.match(tensor.name)]
    parameters = sum(tensor.numbers for tensor in trained)
    linear_parameters = sum(tensor.numbers for tensor in trained if tensor.linear)
    try:
        gated = any(_GATE.search(tensor.name) for tensor in trained)
        return ModelFacts(parameters, linear_parameters, Architecture.from_config(config, gated), tensors=tuple(trained))
    except ValueError as error:
        return ModelFacts(parameters, linear_parameters, None, str(error), tuple(trained))
