"""Loads saved weights back into the same model."""

import pathlib
from typing import Any

import safetensors.torch


def load_weights(model: Any, directory: pathlib.Path) -> None:
    """Load the weights that ``save_model`` wrote: all weights, or only the trained weights of a model with adapters."""
    if hasattr(model, "peft_config"):
        import peft

        peft.set_peft_model_state_dict(model, peft.load_peft_weights(str(directory), device="cpu"))
        return
    shards = sorted(directory.glob("*.safetensors"))
    assert shards, f"no weights in {directory}"
    saved = {name for shard in shards for name in _names(shard)}
    missing, unexpected = model.state_dict().keys() - saved, saved - model.state_dict().keys()
    tied = set(getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or ())
    if unexpected or missing - tied:
        # Some models have other names or tensors on disk than in memory. For example, experts are separate tensors on disk.
        reloaded = type(model).from_pretrained(directory, dtype=model.dtype, use_safetensors=True)
        model.load_state_dict(reloaded.state_dict())
        return
    for shard in shards:  # one at a time: each process of a node does this, and a whole model may be large
        model.load_state_dict(safetensors.torch.load_file(shard), strict=False)


def _names(shard: pathlib.Path) -> list[str]:
    with safetensors.safe_open(shard, framework="pt") as file:
        return list(file.keys())
