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
    state = {}
    for shard in sorted(directory.glob("*.safetensors")):
        state |= safetensors.torch.load_file(shard)
    assert state, f"no weights in {directory}"
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = set(getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or ())
    assert not unexpected, unexpected
    assert not set(missing) - tied, missing
