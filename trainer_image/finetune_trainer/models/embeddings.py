"""Adds rows to a model's embeddings for new tokens."""

from typing import Any


def grow(model: Any, tokens: int) -> int:
    """Extend input and output embeddings to at least ``tokens`` rows. Return the number of new rows.

    A new row is the mean of the old rows, which is the same on every rank and each time the model is loaded.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if tokens <= rows:
        return 0
    model.resize_token_embeddings(tokens, mean_resizing=False)
    layers = [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
    for weight in {id(layer.weight): layer.weight for layer in layers}.values():  # both may share one weight
        weight.data[rows:] = weight.data[:rows].float().mean(dim=0).to(weight.dtype)
    return tokens - rows
