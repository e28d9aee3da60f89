"""Loading a model for training, and saving it. A model that can't be used is refused with one sentence."""

import errno
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import httpx2
import pytest
import torch
import transformers
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RemoteEntryNotFoundError

from finetune_api.reasons import FineTuneError, Reason
from finetune_trainer.models.load import ModelLocation, load_config, load_model, load_tokenizer, save_model
from finetune_trainer.runtime.errors import describe
from finetune_trainer.tasks import chat
from finetune_trainer.tasks.base import DataInfo
from finetune_trainer.tasks.causal_lm import CausalLanguageModeling
from finetune_trainer.tasks.sft import SupervisedFineTuning
from unit.trainer.tiny_models import (
    TEXTS,
    build_model,
    build_spec,
    build_tokenizer,
    loss_and_gradient,
    rows_of,
    save,
)


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> pathlib.Path:
    tokenizer = build_tokenizer()
    return save(tmp_path / "start", build_model("llama", len(tokenizer)), tokenizer)


def locate(directory: pathlib.Path, **fields: Any) -> ModelLocation:
    return ModelLocation(str(directory), None, "spec.model.claim", **fields)


def load(directory: pathlib.Path, kind: Any = CausalLanguageModeling, name: str = "causal-lm", **fields: Any) -> Any:
    """Return a task with the model of the directory, prepared as in a training."""
    location, spec = locate(directory), build_spec(name, **fields)
    tokenizer = load_tokenizer(location)
    task = kind(spec, tokenizer, load_config(location), DataInfo(format="messages"))
    task.model = load_model(task, location, spec)
    task.prepare_model()
    return task


def test_neither_peft_nor_trl_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, finetune_trainer.models.load, finetune_trainer.tasks.causal_lm, finetune_trainer.tasks.sft, "
        "finetune_trainer.tasks.dpo; sys.exit(bool({'peft', 'trl'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0


@pytest.mark.parametrize(("tokens", "pad"), [({"pad_token": None}, "</s>"), ({"pad_token": "<s>"}, "<s>")])
def test_a_tokenizer_pads_on_the_right_with_eos_if_it_has_no_pad_token(
    tokens: dict[str, Any], pad: str, tmp_path: pathlib.Path
) -> None:
    build_tokenizer(padding_side="left", **tokens).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    tokenizer = load_tokenizer(locate(tmp_path))
    assert (tokenizer.pad_token, tokenizer.padding_side) == (pad, "right")


def test_a_tokenizer_that_can_not_pad_is_refused(tmp_path: pathlib.Path) -> None:
    build_tokenizer(pad_token=None, eos_token=None).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(FineTuneError, match=r"spec\.model\.claim: its tokenizer has no token to pad with: write pad_token"):
        load_tokenizer(locate(tmp_path))


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_or_broken_file_gives_a_sentence_that_names_the_field(directory: pathlib.Path, missing: str) -> None:
    for damage in (lambda path: path.write_bytes(b"{"), lambda path: path.unlink()):
        damage(directory / missing)
        with pytest.raises(FineTuneError, match=r"^spec\.model\.claim: .*needed\)$"):
            load(directory)


def library_error(cause: Exception) -> OSError:
    """Return the error that transformers raises for any failure of a download."""
    error = OSError("There was a specific connection error when trying to load tiny/model")
    error.__cause__ = cause
    return error


def answer(status: int, kind: Any = HfHubHTTPError) -> Exception:
    return kind("no", response=httpx2.Response(status, request=httpx2.Request("GET", "https://hub.example.com/tiny/model")))


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (answer(503), Reason.HUB_UNAVAILABLE),
        (httpx2.ConnectError("no route"), Reason.HUB_UNAVAILABLE),
        (answer(403, GatedRepoError), Reason.HUB_AUTHENTICATION),
        (answer(404, RemoteEntryNotFoundError), Reason.CONFIGURATION_ERROR),  # a file that the repository lacks
    ],
)
def test_an_unreachable_hub_is_not_reported_as_a_wrong_model(
    cause: Exception, reason: Reason, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)

    def fail(*_: Any, **__: Any) -> None:
        raise library_error(cause)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
    with pytest.raises(FineTuneError) as raised:
        load_config(ModelLocation("tiny/model", "c0ffee", "spec.model.hub"))
    assert raised.value.reason is reason
    assert "spec.model.hub" in raised.value.message


def test_a_full_disk_is_not_reported_as_a_wrong_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise library_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
    with pytest.raises(OSError, match="specific connection error") as raised:
        load_config(ModelLocation("tiny/model", "c0ffee", "spec.model.hub"))
    assert describe(raised.value, 0, None)[0].reason == Reason.DISK_FULL


def test_pickled_weights_are_not_loaded(directory: pathlib.Path) -> None:
    (directory / "model.safetensors").unlink()
    torch.save(build_model("llama", 320).state_dict(), directory / "pytorch_model.bin")
    with pytest.raises(FineTuneError, match=r"spec\.model\.claim: no model for causal-lm can be made of it"):
        load(directory)


def test_code_of_a_repository_is_not_run_without_trust_remote_code(tmp_path: pathlib.Path) -> None:
    config = {"model_type": "never-heard-of", "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(FineTuneError, match=r"Python code of its own, which is not run unless you write spec\.model\.trustRem"):
        load_config(locate(tmp_path))


def test_weights_are_trained_in_fp32_even_if_the_repository_holds_bf16(tmp_path: pathlib.Path) -> None:
    tokenizer = build_tokenizer()
    directory = save(tmp_path, build_model("llama", len(tokenizer)).to(torch.bfloat16), tokenizer)
    assert load(directory).model.dtype == torch.float32
    assert load(directory, model={"dtype": "bfloat16"}).model.dtype == torch.bfloat16


def test_activation_checkpointing_that_the_model_does_not_support_is_refused(
    directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.LlamaPreTrainedModel.supports_gradient_checkpointing", False)
    with pytest.raises(FineTuneError, match=r"spec\.training\.activationCheckpointing: Llama.* leave it out"):
        load(directory, training={"activationCheckpointing": True})


@pytest.mark.skipif(torch.cuda.is_available(), reason="the job is refused only without a GPU")
def test_quantization_without_a_gpu_is_refused(directory: pathlib.Path) -> None:
    with pytest.raises(FineTuneError, match=r"spec\.model\.quantization: nf4 needs a CUDA GPU, and there is none here"):
        load(directory, model={"quantization": "nf4", "lora": {}})


def test_new_tokens_of_a_chat_template_get_the_mean_of_the_other_embeddings(directory: pathlib.Path) -> None:
    task = load(directory, SupervisedFineTuning, "sft")
    before = build_model("llama", 320)
    for layer, old in (
        (task.model.get_input_embeddings(), before.get_input_embeddings()),
        (task.model.get_output_embeddings(), before.get_output_embeddings()),
    ):
        assert layer.weight.shape[0] == len(task.tokenizer) == 322
        assert torch.equal(layer.weight[:320], old.weight)
        assert torch.allclose(layer.weight[320:], old.weight.mean(dim=0), atol=1e-7)
    assert task.tokenizer.eos_token_id in task.model.generation_config.eos_token_id


def test_the_token_that_ends_an_answer_in_the_template_ends_the_generation(tmp_path: pathlib.Path) -> None:
    tokenizer = build_tokenizer(chat_template=chat.CHATML.replace("<|im_", "<|turn_"))
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|turn_start|>", "<|turn_end|>"]})
    directory = save(tmp_path, build_model("llama", len(tokenizer)), tokenizer)
    task = load(directory, SupervisedFineTuning, "sft")
    assert task.tokenizer.eos_token == "</s>"
    assert task.model.generation_config.eos_token_id == task.tokenizer.convert_tokens_to_ids(["</s>", "<|turn_end|>"])


def test_embeddings_with_spare_rows_keep_their_size(tmp_path: pathlib.Path) -> None:
    directory = save(tmp_path, build_model("llama", 384), build_tokenizer())
    assert load(directory, SupervisedFineTuning, "sft").model.get_input_embeddings().weight.shape[0] == 384


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_activation_checkpointing_changes_no_gradient(directory: pathlib.Path, lora: bool) -> None:
    model = {"lora": {"dropout": 0.0}} if lora else {}

    def step(checkpointing: bool) -> tuple[float, int, torch.Tensor]:
        torch.manual_seed(0)
        task = load(directory, model=model, training={"activationCheckpointing": checkpointing})
        task.model.train()
        return loss_and_gradient(task, [rows_of(task, text=TEXTS)])

    kept, recomputed = step(False), step(True)
    assert recomputed[0] == pytest.approx(kept[0], rel=1e-6)
    assert kept[2].norm() > 0
    assert torch.allclose(recomputed[2], kept[2], rtol=1e-5, atol=1e-6)


def test_a_saved_model_has_the_same_logits_and_contains_no_local_path(directory: pathlib.Path, tmp_path: pathlib.Path) -> None:
    task = load(directory, SupervisedFineTuning, "sft")
    written = tmp_path / "written"
    save_model(task.model, task.tokenizer, written)
    assert json.loads((written / "config.json").read_text())["use_cache"] is True
    assert task.model.config.use_cache is False
    assert len({path.stat().st_mode for path in written.iterdir()}) == 1  # all files have the same permissions
    assert not [path for path in written.iterdir() if str(tmp_path).encode() in path.read_bytes()]
    tokenizer = transformers.AutoTokenizer.from_pretrained(written)
    model = transformers.AutoModelForCausalLM.from_pretrained(written)
    inputs = tokenizer.apply_chat_template([{"role": "user", "content": "Hello!"}], return_tensors="pt", return_dict=True)
    assert torch.allclose(model(**inputs).logits, task.model(**inputs).logits, atol=1e-6)
