"""Rows of a model's embeddings for tokens that it did not have."""

from typing import Any


def grow(model: Any, tokens: int) -> int:
    """Give input and output embeddings rows for so many tokens, where they have fewer; how many are new.

    New rows are the mean of the old: the same on every rank, and again when the model is loaded anew.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if tokens <= rows:
        return 0
    model.resize_token_embeddings(tokens, mean_resizing=False)
    layers = [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
    for weight in {id(layer.weight): layer.weight for layer in layers}.values():  # perhaps one and the same
        weight.data[rows:] = weight.data[:rows].float().mean(dim=0).to(weight.dtype)
    return tokens - rows
