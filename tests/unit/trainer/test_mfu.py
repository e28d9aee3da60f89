"""Model FLOPs utilisation: the formula on models of known size, and peak FLOPS by the GPU names that drivers report."""

import numpy as np
import pytest
import torch
import transformers

from finetune_trainer.monitoring.device_stats import model_size
from finetune_trainer.monitoring.mfu import ModelSize, peak_flops, typical_length
from unit.trainer.tiny_models import build_model


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H200", 989.5),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA L4", 121),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("Tesla T4", 65),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla V100-PCIE-16GB", 112),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA B300 SXM6 AC", 2250),
        ("NVIDIA H800", 989.5),
        ("NVIDIA H20", 148),
        ("NVIDIA L20", 119.5),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 503.8),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", None),
        ("NVIDIA GeForce RTX 5090", 209.5),
        ("NVIDIA GeForce RTX 5090 Laptop GPU", None),
        ("AMD Instinct MI355X", 2516.6),
        ("AMD Instinct MI300X", 1307.4),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce GTX 1080", None),
        ("NVIDIA RTX 4000 Ada Generation", None),
    ],
)
def test_the_peak_follows_from_the_name_of_the_gpu_and_is_none_for_unknown_gpus(name: str, teraflops: float | None) -> None:
    assert peak_flops(name) == (pytest.approx(teraflops * 1e12) if teraflops else None)


def test_flops_follow_the_formula_of_palm() -> None:
    size = ModelSize(parameters=1000, trainable=1000, attention=6 * 384)
    assert size.flops_per_token(128) == 6 * 1000 + 12 * 6 * 384 * 128


def test_a_frozen_weight_costs_four_flops_per_token_and_a_trained_one_six() -> None:
    assert ModelSize(parameters=1000, trainable=10, attention=0).flops_per_token(128) == 4 * 990 + 6 * 10


def test_embedding_tables_do_not_count_and_a_tied_head_counts_once() -> None:
    free, tied = (build_model("llama", 300, tie_word_embeddings=tie) for tie in (False, True))
    table = free.get_input_embeddings().weight.numel()
    everything = sum(parameter.numel() for parameter in free.parameters())
    assert model_size(free, free.config).parameters == everything - table
    assert model_size(tied, tied.config).parameters == sum(parameter.numel() for parameter in tied.parameters())
    assert model_size(free, free.config).parameters == model_size(tied, tied.config).parameters


def test_a_classifier_has_no_head_over_its_vocabulary() -> None:
    config = transformers.BertConfig(
        vocab_size=500, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    model = transformers.BertForSequenceClassification(config)
    tables = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Embedding))
    size = model_size(model, config)
    assert size.parameters == sum(parameter.numel() for parameter in model.parameters()) - tables
    assert (size.trainable, size.attention) == (size.parameters, 2 * 32)


def test_the_width_of_the_heads_may_differ_from_that_of_the_model() -> None:
    model = build_model("qwen2", 300, head_dim=16)
    assert model_size(model, model.config).attention == 2 * 4 * 16


def test_a_model_with_an_unusual_interface_does_not_stop_the_training() -> None:
    class Strange(torch.nn.Linear):
        def get_output_embeddings(self) -> None:
            raise NotImplementedError

    config = transformers.PretrainedConfig(num_hidden_layers=[1, 2], num_attention_heads=None)
    assert model_size(Strange(4, 4), config) == ModelSize(parameters=20, trainable=20, attention=0)
    assert model_size(torch.nn.Linear(4, 4), config).parameters == 20


def test_frozen_weights_do_not_count_as_trainable() -> None:
    model = build_model("gpt2", 300)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    size = model_size(model, model.config)
    assert (size.trainable, size.attention) == (model.lm_head.weight.numel(), 2 * 32)
    assert size.parameters > size.trainable


def test_the_typical_length_is_the_mean_row_length_weighted_by_tokens() -> None:
    assert typical_length(np.array([10, 10, 10])) == 10
    assert typical_length(np.array([1, 99])) == pytest.approx((1 + 99 * 99) / 100)
    assert typical_length(np.array([], dtype=np.int64)) == 0
