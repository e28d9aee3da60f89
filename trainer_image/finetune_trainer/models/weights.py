"""Weights of a saved model, put back into the model that they were saved from."""

import pathlib
from typing import Any

import safetensors.torch


def load_weights(model: Any, directory: pathlib.Path) -> None:
    """Replace the weights by those that ``save_model`` wrote: all of them, or of a model with adapters what is trained."""
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
        # Some models have other names, or other tensors, on disk than in memory: experts, for one, which lie there one by one.
        anew = type(model).from_pretrained(directory, dtype=model.dtype, use_safetensors=True)
        model.load_state_dict(anew.state_dict())
        return
    for shard in shards:  # one at a time: each process of a machine does this, and all of a model may be large
        model.load_state_dict(safetensors.torch.load_file(shard), strict=False)


def _names(shard: pathlib.Path) -> list[str]:
    with safetensors.safe_open(shard, framework="pt") as file:
        return list(file.keys())
