"""Adapters: which weights are trained and saved, and that a saved adapter loads as the same model."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers

from finetune_api.reasons import FineTuneError
from finetune_trainer.models import adapters
from finetune_trainer.models.load import ModelLocation, load_config, load_model, load_tokenizer, save_model
from finetune_trainer.tasks.base import DataInfo
from finetune_trainer.tasks.causal_lm import CausalLanguageModeling
from finetune_trainer.tasks.dpo import DirectPreference
from finetune_trainer.tasks.sft import SupervisedFineTuning
from unit.trainer.tiny_models import TEXTS, build_model, build_spec, build_tokenizer, loss_and_gradient, rows_of, save

CHATS = [[{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "How are you?"}]]


class TwoClasses(CausalLanguageModeling):
    """A task that the loader treats like a classification: the model gets a new head."""

    auto_model = "AutoModelForSequenceClassification"

    def peft_task_type(self) -> str | None:
        return "SEQ_CLS"

    def model_kwargs(self) -> dict[str, Any]:
        return {"num_labels": 2, "ignore_mismatched_sizes": True}


def locate(directory: pathlib.Path) -> ModelLocation:
    return ModelLocation(str(directory), None, "spec.model.claim")


def load(location: ModelLocation, kind: Any = CausalLanguageModeling, name: str = "causal-lm", **fields: Any) -> Any:
    spec, tokenizer = build_spec(name, **fields), load_tokenizer(location)
    task = kind(spec, tokenizer, load_config(location), DataInfo(format="messages"))
    torch.manual_seed(0)
    task.model = load_model(task, location, spec)
    task.prepare_model()
    return task


def start(tmp_path: pathlib.Path, kind: str = "llama", **arguments: Any) -> ModelLocation:
    tokenizer = build_tokenizer()
    return locate(save(tmp_path / "start", build_model(kind, len(tokenizer), **arguments), tokenizer))


def train(task: Any, rows: Sequence[dict[str, Any]], steps: int = 5) -> list[float]:
    optimizer = torch.optim.AdamW([weight for weight in task.model.parameters() if weight.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        losses.append(loss_and_gradient(task, [list(rows)])[0])
        optimizer.step()
    task.model.eval()
    return losses


def logits(model: Any, task: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([task.tokenizer(TEXTS[0])["input_ids"] + [len(task.tokenizer) - 1]])).logits


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_only_adapters_of_all_linear_layers_except_the_head_are_trained(kind: str, tmp_path: pathlib.Path) -> None:
    location = start(tmp_path, kind)
    task = load(location, model={"lora": {"rank": 4}})
    trained = {name for name, weight in task.model.named_parameters() if weight.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert not any("lm_head" in name for name in trained)
    linear = [name for name in adapters._linear_names(build_model(kind, 320)) if name != "lm_head"]
    assert len(trained) == 2 * len(linear)
    losses = train(task, rows_of(task, text=TEXTS))
    assert losses[-1] < losses[0]


def test_rank_alpha_and_modules_are_those_of_the_spec(tmp_path: pathlib.Path) -> None:
    lora = {"rank": 3, "alpha": 7, "dropout": 0.25, "targetModules": ["q_proj", "v_proj"], "modulesToSave": ["lm_head"]}
    model = load(start(tmp_path), model={"lora": lora}).model
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 7, 0.25)
    trained = [name.split(".") for name, weight in model.named_parameters() if weight.requires_grad]
    assert {parts[parts.index("lora_A") - 1] for parts in trained if "lora_A" in parts} == {"q_proj", "v_proj"}
    assert [parts for parts in trained if "modules_to_save" in parts and "lm_head" in parts]


@pytest.mark.parametrize(("field", "wording"), [("targetModules", "all-linear"), ("modulesToSave", "one of its modules")])
def test_an_unknown_module_is_refused_with_the_names_of_the_model_s_modules(
    field: str, wording: str, tmp_path: pathlib.Path
) -> None:
    expected = rf"spec\.model\.lora\.{field}: the model has no module named 'query'; write {wording}.*: down_proj, .*v_proj"
    with pytest.raises(FineTuneError, match=expected):
        load(start(tmp_path), model={"lora": {field: ["query"]}})


@pytest.mark.parametrize("kind", ["llama", "distilbert", "roberta", "bert"])
def test_new_modules_of_a_model_are_trained_and_saved_in_full(kind: str, tmp_path: pathlib.Path) -> None:
    tokenizer = build_tokenizer()
    if kind == "llama":
        base = build_model(kind, len(tokenizer))
    else:
        small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "pad_token_id": 1}
        if kind == "distilbert":
            small = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "pad_token_id": 1}
        config = transformers.AutoConfig.for_model(kind, vocab_size=len(tokenizer), **small)
        base = transformers.AutoModelForMaskedLM.from_config(config)
    location = locate(save(tmp_path / "start", base, tokenizer))
    spec = build_spec("text-classification", model={"lora": {}})
    config = load_config(location)
    task = TwoClasses.__new__(TwoClasses)  # the constructor refuses an encoder
    task.spec, task.tokenizer, task.config, task.info = spec, load_tokenizer(location), config, DataInfo()
    torch.manual_seed(0)
    task.model = load_model(task, location, spec)

    whole = {name for name, weight in task.model.named_parameters() if weight.requires_grad and "lora_" not in name}
    new_modules = {
        "llama": {"score"},
        "distilbert": {"pre_classifier", "classifier"},
        "roberta": {"classifier.dense", "classifier.out_proj"},
        "bert": {"bert.pooler.dense", "classifier"},
    }[kind]
    parts = {name.removeprefix("base_model.model.").replace(".modules_to_save.default", "").rpartition(".")[0] for name in whole}
    assert parts == new_modules
    inputs = torch.tensor([task.tokenizer(TEXTS[0])["input_ids"]])
    task.model.eval()
    with torch.no_grad():
        before = task.model(inputs).logits
        save_model(task.model, task.tokenizer, tmp_path / "written")
        task.spec = build_spec("text-classification")
        again = load_model(task, locate(tmp_path / "written"), task.spec)
        assert torch.allclose(again.eval()(inputs).logits, before, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True], ids=["untied embeddings", "tied embeddings"])
def test_only_the_embedding_rows_of_new_special_tokens_are_trained_and_saved(tied: bool, tmp_path: pathlib.Path) -> None:
    location = start(tmp_path, tie_word_embeddings=tied)
    task = load(location, SupervisedFineTuning, "sft", model={"lora": {"rank": 4}})
    before = task.model.get_base_model().get_input_embeddings().weight.detach().clone()
    train(task, rows_of(task, messages=CHATS))
    expected = logits(task.model, task)

    save_model(task.model, task.tokenizer, tmp_path / "written")
    assert (tmp_path / "written" / "adapter_model.safetensors").stat().st_size < 200_000
    again = load(locate(tmp_path / "written"))
    assert torch.allclose(logits(again.model, task), expected, atol=1e-4)
    after = again.model.get_input_embeddings().weight
    assert torch.equal(after[:320], before[:320])
    assert not torch.allclose(after[320:], before[320:])
    assert not torch.allclose(again.model.get_output_embeddings().weight[320:], before[320:])


def test_a_saved_adapter_is_small_and_names_its_base_model_in_one_file_only(tmp_path: pathlib.Path) -> None:
    task = load(start(tmp_path), model={"lora": {}})
    save_model(task.model, task.tokenizer, tmp_path / "written")
    files = {path.name for path in (tmp_path / "written").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "config.json", "tokenizer.json"} <= files
    assert "README.md" not in files
    naming = [path.name for path in (tmp_path / "written").iterdir() if str(tmp_path).encode() in path.read_bytes()]
    assert naming == ["adapter_config.json"], "a push removes the path from this file"
    config = json.loads((tmp_path / "written" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "start")


def test_a_merged_model_is_a_full_model_with_the_same_logits(tmp_path: pathlib.Path) -> None:
    task = load(start(tmp_path), model={"lora": {}})
    train(task, rows_of(task, text=TEXTS))
    expected = logits(task.model, task)
    full = adapters.merge_adapters(task.model)
    assert not adapters.is_adapter(full)
    save_model(full, task.tokenizer, tmp_path / "full")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    assert torch.allclose(logits(again, task), expected, atol=1e-4)
    assert adapters.merge_adapters(again) is again


def test_merging_into_a_reloaded_base_as_for_a_quantized_model_gives_the_same_logits(tmp_path: pathlib.Path) -> None:
    task = load(start(tmp_path), SupervisedFineTuning, "sft", model={"lora": {"rank": 4}})  # 4-bit loading needs a GPU
    train(task, rows_of(task, messages=CHATS))
    full = adapters.merge_into_reloaded_base(task.model, torch.float32)
    assert torch.allclose(logits(full.eval(), task), logits(task.model, task), atol=1e-4)
    assert full.generation_config.eos_token_id == task.model.generation_config.eos_token_id


def test_adapters_of_an_earlier_job_are_merged_before_new_adapters_are_added(tmp_path: pathlib.Path) -> None:
    first = load(start(tmp_path), SupervisedFineTuning, "sft", model={"lora": {}})
    train(first, rows_of(first, messages=CHATS))
    save_model(first.model, first.tokenizer, tmp_path / "sft")
    second = load(locate(tmp_path / "sft"), DirectPreference, "dpo", model={"lora": {}})
    assert adapters.is_adapter(second.model)
    assert torch.allclose(logits(second.model.eval(), first), logits(first.model, first), atol=1e-4)
    [config] = second.model.peft_config.values()
    assert config.base_model_name_or_path == str(tmp_path / "sft"), (
        "the base of the new adapters is the merged model, not the model below it"
    )


def test_adapters_without_their_base_model_are_refused(tmp_path: pathlib.Path) -> None:
    task = load(start(tmp_path), model={"lora": {}})
    save_model(task.model, task.tokenizer, tmp_path / "written")
    (tmp_path / "start").rename(tmp_path / "moved")
    with pytest.raises(FineTuneError, match=r"spec\.model\.claim: it holds adapters alone, .* there is no directory .*/start;"):
        load(locate(tmp_path / "written"))


def test_fully_trained_modules_are_fp32_on_a_16_bit_model(tmp_path: pathlib.Path) -> None:
    model = load(start(tmp_path), model={"dtype": "bfloat16", "lora": {"modulesToSave": ["lm_head"]}}).model
    types = {weight.requires_grad: weight.dtype for weight in model.parameters()}
    assert types == {True: torch.float32, False: torch.bfloat16}
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_adapters_are_not_added_to_quantized_weights(tmp_path: pathlib.Path) -> None:
    task = load(start(tmp_path), model={"lora": {}})
    save_model(task.model, task.tokenizer, tmp_path / "written")
    with pytest.raises(FineTuneError, match=r"spec\.model\.quantization: spec\.model\.claim holds adapters, .*; write None"):
        load(locate(tmp_path / "written"), model={"lora": {}, "quantization": "nf4"})
