"""The plan of each task: adapters, quantized weights, logits over a vocabulary, and rows that only a tokenizer can count."""

import json
import pathlib
from typing import Any

import pytest

from finetune_api import resource
from finetune_trainer.plan.build import Facts, Plan, build_plan
from finetune_trainer.plan.gpus import Gpu
from finetune_trainer.plan.memory import Architecture, ForwardPass, WeightLayout, activation_bytes, estimate
from finetune_trainer.plan.model import ModelFacts, describe_model
from finetune_trainer.plan.rows import RowCounts, observe_rows
from finetune_trainer.plan.tensors import Tensor
from finetune_trainer.plan.weights import weight_layout

CONFIG = {
    "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "vocab_size": 100, "max_position_embeddings": 64,
}  # fmt: skip
TENSORS = [
    Tensor("model.embed_tokens.weight", "BF16", (100, 8)),
    Tensor("model.layers.0.self_attn.q_proj.weight", "BF16", (8, 8)),
    Tensor("model.layers.0.mlp.gate_proj.weight", "BF16", (16, 8)),
    Tensor("model.norm.weight", "BF16", (8,)),
    Tensor("lm_head.weight", "BF16", (100, 8)),
]
EMBEDDINGS, MATRICES, NORM, HEAD = 800, 64 + 128, 8, 800
ALL = EMBEDDINGS + MATRICES + NORM + HEAD
FACTS = describe_model(CONFIG, TENSORS, "spec.model.claim", "sft")


def spec(task: str = "sft", **model: Any) -> dict[str, Any]:
    return {"task": task, "model": {"claim": {"claimName": "m"}, **model}, "datasets": [{"claim": {"claimName": "d"}}]}


def weights(half: bool = False, task: str = "sft", **model: Any) -> WeightLayout:
    return weight_layout(FACTS, resource.parse_spec(spec(task, **model)), half)


def plan(task: str = "sft", model: ModelFacts = FACTS, gpu: Gpu | None = None, more: Any = None, **source: Any) -> Plan:
    return build_plan(resource.parse_spec(spec(task, **source) | (more or {})), Facts(RowCounts(100, 10), model, gpu=gpu))


def test_a_language_model_is_loaded_with_its_head_and_a_classifier_without() -> None:
    assert FACTS.parameters == ALL
    assert describe_model(CONFIG, TENSORS, "spec.model.claim", "text-classification").parameters == ALL - HEAD


def test_with_adapters_the_weights_are_frozen_and_only_the_adapters_are_trained() -> None:
    # Rank 4 on matrices of 8 × 8 and 16 × 8: 4 × (8 + 8 + 16 + 8).
    held = weights(lora={"rank": 4})
    assert (held.frozen_bytes, held.trainable, held.adapter_input_width) == (4 * ALL, 160, 16)
    assert weights(lora={"rank": 4, "targetModules": ["q_proj"]}).trainable == 64
    assert weights(lora={"rank": 4, "modulesToSave": ["lm_head"]}).trainable == 160 + HEAD
    assert weights(lora={"dropout": 0}).adapter_input_width == 0


def test_frozen_weights_have_the_smallest_dtype_that_device_and_spec_allow() -> None:
    assert weights(half=True, lora={}).frozen_bytes == 2 * ALL
    assert weights(half=True, lora={}, dtype="float32").frozen_bytes == 4 * ALL
    # The matrices are quantized, and the rest is fp32.
    assert weights(half=True, lora={}, quantization="int8").frozen_bytes == MATRICES + 4 * (ALL - MATRICES)
    assert weights(half=True, lora={}, quantization="nf4").frozen_bytes == int(0.52 * MATRICES) + 4 * (ALL - MATRICES)


def test_without_adapters_all_weights_are_trained_in_fp32_on_every_device() -> None:
    assert weights(half=True) == WeightLayout(0, ALL, 4, MATRICES + HEAD)
    assert weights(dtype="bfloat16") == WeightLayout(0, ALL, 2, 0)


def test_dpo_holds_a_copy_of_the_model_unless_it_trains_adapters() -> None:
    assert weights(task="dpo").frozen_bytes == 4 * ALL
    assert weights(task="dpo", lora={}).frozen_bytes == 4 * ALL == weights(lora={}).frozen_bytes


def test_only_trained_weights_have_gradients_and_moments() -> None:
    architecture = FACTS.architecture
    assert architecture is not None
    made = estimate(architecture, WeightLayout(5000, 100), ForwardPass(1, 8, half=False, gpu=True))
    assert (made.weights, made.gradients, made.optimizer) == (5400, 400, 800)


def test_logits_take_three_times_their_size_for_the_positions_that_are_predicted() -> None:
    def activations(task: str) -> int:
        memory = plan(task, more={"training": {"perDeviceBatchSize": 2, "maxTokens": 64}}).memory
        assert memory is not None
        return memory.activations

    logits = 12 * 2 * 64 * 100
    base = activations("text-classification")
    assert activations("causal-lm") - base == logits
    assert activations("masked-lm") - base == pytest.approx(0.15 * logits, abs=100)
    assert activations("dpo") == 2 * activations("sft"), "both answers are in one forward pass"


def test_checkpoints_and_model_of_adapters_hold_only_the_adapters() -> None:
    small = 16 * 1024**2
    storage = plan(lora={"rank": 4}).storage
    assert storage is not None
    assert (storage.checkpoint, storage.model) == (12 * 160 + small, 4 * 160 + small)


def test_activation_checkpointing_holds_the_activations_of_one_layer_at_a_time() -> None:
    deep = Architecture.from_config(CONFIG | {"num_hidden_layers": 10}, gated=True)
    one = Architecture.from_config(CONFIG, gated=True)
    again = activation_bytes(deep, ForwardPass(2, 16, half=True, gpu=True, checkpointing=True))
    assert again == activation_bytes(one, ForwardPass(2, 16, half=True, gpu=True)) + 10 * 2 * 16 * 8 * 2


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft uses the old name
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [0.0, 0.05])
@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_activations_under_adapters_are_estimated_to_a_quarter(model_type: str, dropout: float, half: bool) -> None:
    import peft
    import torch
    import transformers

    from unit.trainer.test_memory import kept_bytes

    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "num_hidden_layers": 6}
    config = transformers.AutoConfig.for_model(model_type, vocab_size=128, pad_token_id=0, **sizes)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.endswith(("score", "classifier", "pooler.dense"))
    }
    lora = peft.LoraConfig(r=4, lora_dropout=dropout, target_modules=list(linear), task_type="SEQ_CLS")
    adapter_input_width = sum(module.in_features for module in linear.values()) if dropout else 0
    estimated = activation_bytes(
        Architecture.from_config(config.to_dict(), gated=False), ForwardPass(4, 96, half, gpu=False), adapter_input_width
    )
    assert estimated == pytest.approx(kept_bytes(peft.get_peft_model(model, lora), 4, 96, half), rel=0.25)


def write(folder: pathlib.Path, *rows: dict[str, Any]) -> dict[str, str]:
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return {"d": str(folder)}


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("sft", {"prompt": "a", "completion": "b"}),
        ("sft", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
        ("dpo", {"prompt": "a", "chosen": "b", "rejected": "c"}),
        ("masked-lm", {"text": "a b"}),
        ("token-classification", {"tokens": ["a", "b"], "tags": ["O", "B-PER"]}),
    ],
)
def test_rows_of_every_task_are_counted_and_marked_exact_only_if_they_are(
    tmp_path: pathlib.Path, task: str, row: dict[str, Any]
) -> None:
    rows = observe_rows(resource.parse_spec(spec(task)), write(tmp_path, *[row] * 20))
    assert (rows.train, rows.evaluation, rows.exact) == (18, 2, task == "token-classification")


@pytest.mark.parametrize("more", [{"task": "causal-lm"}, {"task": "masked-lm", "maskedLM": {"chunk": True}}])
def test_rows_that_depend_on_a_tokenizer_are_unknown_and_the_data_is_not_read(more: dict[str, Any]) -> None:
    rows = observe_rows(resource.parse_spec(spec() | more), {"d": "/there/is/no/such/folder"})
    assert rows.train is None
    assert rows.reason is not None
    assert "only a tokenizer" in rows.reason
