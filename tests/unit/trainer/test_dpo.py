"""DPO: the loss equals TRL's for every split, and the reference model never changes."""

import pathlib
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers

from finetune_api.reasons import FineTuneError
from finetune_api.spec.tasks import TASK_METRICS
from finetune_trainer.models import adapters
from finetune_trainer.models.load import ModelLocation, load_config, load_model, load_tokenizer, save_model
from finetune_trainer.tasks.base import IGNORE_INDEX, DataInfo
from finetune_trainer.tasks.dpo import DirectPreference
from unit.trainer.tiny_models import (
    TEXTS,
    assert_same_step,
    build_model,
    build_spec,
    build_task,
    build_tokenizer,
    loss_and_gradient,
    rows_of,
    save,
    splits_with_padding,
)

PAIRS = {
    "prompt": ["What is the capital of France?", "Hello!", "The film was"],
    "chosen": [" Paris.", " How are you?", " a delight from its first minute to the last."],
    "rejected": [" Nothing happens in this film.", " A bad film.", " bad."],
}
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def build(kind: str = "llama", lora: bool = False, max_tokens: int = 128, template: str | None = None, **options: Any) -> Any:
    """Return a task at the start of its training."""
    tokenizer = build_tokenizer(chat_template=template)
    spec = build_spec("dpo", training={"maxTokens": max_tokens}, dpo=options, model={"lora": {"dropout": 0.0}} if lora else {})
    model = build_model(kind, len(tokenizer))
    task = DirectPreference(spec, tokenizer, model.config, DataInfo())
    task.model = adapters.apply_lora(model, task, spec.model.lora) if lora else model
    task.prepare_model()
    return task


@torch.no_grad()
def change_weights(task: Any) -> Any:
    """Change the weights as some steps do: at the start the model equals the reference, and every reward is 0."""
    torch.manual_seed(1)
    for name, weight in task.model.named_parameters():
        if weight.requires_grad and "lora_A" not in name:
            weight.add_(torch.randn_like(weight), alpha=0.05)
    return task


def test_only_the_answers_and_eos_are_learned() -> None:
    task = build()
    batch = task.collate(rows_of(task, **PAIRS))
    learned = [task.tokenizer.decode([label for label in row if label != IGNORE_INDEX]) for row in batch["labels"].tolist()]
    assert learned == [answer + "</s>" for answer in PAIRS["chosen"] + PAIRS["rejected"]]
    assert task.count_loss_labels(batch) == 3


def test_chats_are_rendered_with_the_template_of_the_model_and_refused_without_one() -> None:
    columns = {
        "prompt": [[{"role": "user", "content": "Hello!"}]],
        "chosen": [[{"role": "assistant", "content": "How are you?"}]],
        "rejected": [[{"role": "assistant", "content": "Four."}]],
    }
    task = build(template=TEMPLATE)
    [row] = rows_of(task, **columns)
    assert task.tokenizer.decode(row["chosen_ids"]) == "<user>Hello!</s><assistant>How are you?</s>"
    assert task.tokenizer.decode(row["rejected_ids"][row["answer_start"] :]) == "Four.</s>"
    with pytest.raises(FineTuneError, match=r"spec\.model: the data holds chats, and the model has no chat template"):
        rows_of(build(), **columns)


def test_a_pair_without_room_for_an_answer_is_left_out_and_long_answers_are_truncated() -> None:
    task = build(max_tokens=12)
    rows = rows_of(task, prompt=[TEXTS[3], "A"], chosen=[" Four.", " delight."], rejected=[" bad.", TEXTS[3]])
    assert len(rows) == 1
    assert task.length(rows[0]) == 12


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "hinge"])
def test_loss_and_gradient_do_not_depend_on_how_pairs_are_split(loss_type: str, lora: bool) -> None:
    task = change_weights(build(lora=lora, lossType=loss_type))
    whole, *others = splits_with_padding(task, rows_of(task, **PAIRS))
    for other in others:
        assert_same_step(task, whole, other)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_reference_is_the_model_at_the_start_and_never_changes(lora: bool) -> None:
    task = change_weights(build(lora=lora, beta=0.5))
    rows = rows_of(task, **PAIRS)
    batch = task.collate(rows)

    def reference() -> torch.Tensor:
        with torch.no_grad(), task._reference_model(batch["input_ids"].device) as model:
            return model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    start = reference()
    original = build_model("llama", len(task.tokenizer))(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert torch.equal(start, original)
    optimizer = torch.optim.AdamW([weight for weight in task.model.parameters() if weight.requires_grad], lr=1e-2)
    losses = []
    for _ in range(10):
        losses.append(loss_and_gradient(task, [rows])[0])
        optimizer.step()
    assert losses[-1] < losses[0]
    assert torch.equal(reference(), start)


def test_all_rewards_are_zero_at_the_start_of_the_training() -> None:
    tokenizer = build_tokenizer()
    spec = build_spec("dpo", model={"lora": {}})
    model = build_model("gpt2", len(tokenizer))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    task = build_task(DirectPreference, spec, tokenizer, model)
    task.model.train()
    batch = task.collate(rows_of(task, **PAIRS))
    metrics, details = task.compute_metrics(task.score(task.model, batch))
    assert metrics["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert metrics["rewardMargin"] == pytest.approx(0, abs=1e-6)
    assert details == {"pairs": 3}
    assert metrics.keys() == set(TASK_METRICS["dpo"])


def test_the_reference_copy_computes_in_the_precision_of_the_trained_model() -> None:
    """accelerate wraps the model but not the copy: a copy in fp32 would differ by the rounding of bf16."""
    tokenizer = build_tokenizer()
    spec = build_spec("dpo", training={"precision": "bf16"})
    task = build_task(DirectPreference, spec, tokenizer, build_model("llama", len(tokenizer)))
    forward = task.model.forward
    task.model.forward = torch.autocast("cpu", torch.bfloat16)(forward)
    batch = task.collate(rows_of(task, **PAIRS))
    metrics, _ = task.compute_metrics(task.score(task.model, batch))
    assert metrics["rewardMargin"] == 0
    assert metrics["loss"] == pytest.approx(np.log(2), abs=1e-7)


def test_non_finite_metrics_of_a_diverged_model_are_left_out() -> None:
    task = build()
    rows = rows_of(task, **PAIRS)
    with torch.no_grad():
        next(task.model.parameters()).fill_(float("nan"))
    assert "loss" not in task.compute_metrics(task.score(task.model, task.collate(rows)))[0]


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}
DROPOUTS = [
    transformers.OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, dropout=0.3, attention_dropout=0.3),
    transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, hidden_dropout=0.3),
    transformers.FalconConfig(**SIZES, hidden_dropout=0.3),
    transformers.BioGptConfig(**SIZES, intermediate_size=48, layerdrop=0.5),
]


@pytest.mark.parametrize("config", DROPOUTS, ids=[config.model_type for config in DROPOUTS])
def test_dropout_without_a_layer_of_its_own_is_off_in_the_training_and_kept_in_the_saved_model(
    tmp_path: pathlib.Path, config: Any
) -> None:
    tokenizer = build_tokenizer()
    config.update({"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1})
    location = ModelLocation(str(save(tmp_path, transformers.AutoModelForCausalLM.from_config(config), tokenizer)), None, "")
    task = DirectPreference(build_spec("dpo"), load_tokenizer(location), load_config(location), DataInfo())
    task.model = load_model(task, location, task.spec)
    task.prepare_model()
    task.model.train()
    rows = rows_of(task, **PAIRS)
    assert task.loss(task.model, task.collate(rows)).item() / len(rows) == pytest.approx(np.log(2), abs=1e-6)

    save_model(task.model, task.tokenizer, tmp_path / "saved")
    saved = load_config(ModelLocation(str(tmp_path / "saved"), None, "")).to_dict()
    assert {name: value for name, value in saved.items() if "drop" in name} == {
        name: value for name, value in config.to_dict().items() if "drop" in name
    }


def test_the_reference_copy_of_full_fine_tuning_is_not_saved(tmp_path: pathlib.Path) -> None:
    task = build()
    save_model(task.model, task.tokenizer, tmp_path)
    assert sum(weight.numel() for weight in task.model.state_dict().values()) == sum(
        weight.numel() for weight in build_model("llama", len(task.tokenizer)).state_dict().values()
    )
    assert not any(weight.requires_grad for weight in task._reference_copy.parameters())


def test_metrics_ignore_padding_rows() -> None:
    task = change_weights(build())
    rows = rows_of(task, **PAIRS)
    whole = task.compute_metrics(task.score(task.model, task.collate(rows)))[0]
    padded = task.compute_metrics(task.score(task.model, task.collate([*rows, task.padding_row(rows[0])])))[0]
    assert padded == pytest.approx(whole, rel=1e-5)
    assert 0 <= whole["rewardAccuracy"] <= 1
    assert set(whole) == {"loss", "rewardAccuracy", "rewardMargin", "chosenLogps", "rejectedLogps"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "hinge"])
def test_loss_and_metrics_equal_those_of_trl(loss_type: str, lora: bool, tmp_path: pathlib.Path) -> None:
    from trl import DPOConfig, DPOTrainer

    task = build(lora=lora, lossType=loss_type, beta=0.3)
    data = datasets.Dataset.from_dict(PAIRS)
    args = DPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=128, disable_tqdm=True, beta=0.3,
        loss_type=[loss_type], per_device_eval_batch_size=3, gradient_checkpointing=False,
    )  # fmt: skip
    reference = None if lora else task._reference_copy
    trainer = DPOTrainer(task.model, reference, args, train_dataset=data, eval_dataset=data, processing_class=task.tokenizer)
    change_weights(task)  # after the trainer exists: TRL uses the adapters that it gets as the reference
    theirs = trainer.evaluate()
    ours = task.compute_metrics(task.score(task.model, task.collate(rows_of(task, **PAIRS))))[0]
    assert ours["loss"] == pytest.approx(theirs["eval_loss"], rel=1e-5)
    assert ours["rewardAccuracy"] == pytest.approx(theirs["eval_rewards/accuracies"])
    assert ours["rewardMargin"] == pytest.approx(theirs["eval_rewards/margins"], rel=1e-4)
    assert ours["chosenLogps"] == pytest.approx(theirs["eval_logps/chosen"], rel=1e-5)
