"""Saved weights are loaded into a model again, even if their names on disk differ."""

import pathlib
from typing import Any

import pytest
import torch
import transformers

from finetune_trainer.models.weights import load_weights

SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2,
}  # fmt: skip
CONFIGS = {
    "tied": transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "sharded": transformers.LlamaConfig(**SIZES),
    "experts": transformers.MixtralConfig(**SIZES, num_local_experts=2),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_saved_weights_are_restored(kind: str, tmp_path: pathlib.Path) -> None:
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind])
    model.save_pretrained(tmp_path, max_shard_size="5KB" if kind == "sharded" else "5GB")
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) is (kind == "sharded")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    load_weights(model, tmp_path)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_directory_without_weights_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(AssertionError, match="no weights"):
        load_weights(transformers.AutoModelForCausalLM.from_config(CONFIGS["tied"]), tmp_path)
