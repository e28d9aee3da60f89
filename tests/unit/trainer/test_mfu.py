"""Model FLOPs utilisation: the formula by hand, on models whose size is known, and peaks by the names that drivers give."""

import numpy as np
import pytest
import torch
import transformers

from finetune_trainer.monitoring.device_stats import measure
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
        ("AMD Instinct MI300X", 1307.4),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce GTX 1080", None),
        ("NVIDIA RTX 4000 Ada Generation", None),
    ],
)
def test_the_peak_follows_from_the_name_and_of_others_nothing_is_said(name: str, teraflops: float | None) -> None:
    assert peak_flops(name) == (pytest.approx(teraflops * 1e12) if teraflops else None)


def test_palm_s_formula() -> None:
    size = ModelSize(weights=1000, trained=1000, attention=6 * 384)
    assert size.flops_per_token(128) == 6 * 1000 + 12 * 6 * 384 * 128


def test_a_frozen_weight_costs_four_and_a_trained_one_six() -> None:
    assert ModelSize(weights=1000, trained=10, attention=0).flops_per_token(128) == 4 * 990 + 6 * 10


def test_tables_of_embeddings_do_not_count_and_a_tied_head_counts_once() -> None:
    free, tied = (build_model("llama", 300, tie_word_embeddings=tie) for tie in (False, True))
    table = free.get_input_embeddings().weight.numel()
    everything = sum(parameter.numel() for parameter in free.parameters())
    assert measure(free, free.config).weights == everything - table
    assert measure(tied, tied.config).weights == sum(parameter.numel() for parameter in tied.parameters())
    assert measure(free, free.config).weights == measure(tied, tied.config).weights


def test_a_classifier_has_no_head_over_its_vocabulary() -> None:
    config = transformers.BertConfig(
        vocab_size=500, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    model = transformers.BertForSequenceClassification(config)
    tables = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Embedding))
    size = measure(model, config)
    assert size.weights == sum(parameter.numel() for parameter in model.parameters()) - tables
    assert (size.trained, size.attention) == (size.weights, 2 * 32)


def test_the_width_of_the_heads_may_be_another_than_the_model_s() -> None:
    model = build_model("qwen2", 300, head_dim=16)
    assert measure(model, model.config).attention == 2 * 4 * 16


def test_a_model_of_another_make_does_not_stop_the_training() -> None:
    class Strange(torch.nn.Linear):
        def get_output_embeddings(self) -> None:
            raise NotImplementedError

    config = transformers.PretrainedConfig(num_hidden_layers=[1, 2], num_attention_heads=None)
    assert measure(Strange(4, 4), config) == ModelSize(weights=20, trained=20, attention=0)
    assert measure(torch.nn.Linear(4, 4), config).weights == 20


def test_what_is_frozen_is_not_trained() -> None:
    model = build_model("gpt2", 300)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    size = measure(model, model.config)
    assert (size.trained, size.attention) == (model.lm_head.weight.numel(), 2 * 32)
    assert size.weights > size.trained


def test_the_typical_length_is_that_of_the_row_in_which_a_token_is() -> None:
    assert typical_length(np.array([10, 10, 10])) == 10
    assert typical_length(np.array([1, 99])) == pytest.approx((1 + 99 * 99) / 100)
    assert typical_length(np.array([], dtype=np.int64)) == 0
