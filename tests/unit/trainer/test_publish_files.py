"""What is published: an allow-list of files, without private strings."""

import json
import pathlib
from typing import Any

import pytest

from finetune_api import names
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.resource import parse_spec
from finetune_trainer.publish.push import push
from finetune_trainer.publish.upload_filter import is_weights, private_strings, redact, shareable_files

SECRET = "hf_0123456789abcdefghij"


@pytest.fixture
def model(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The smallest directory that can be pushed."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    directory = tmp_path / "out" / "model"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text('{"model_type": "bert"}')
    (directory / "model.safetensors").write_bytes(b"weights")
    return directory


def put(directory: pathlib.Path, **files: Any) -> None:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (directory / name.replace("__", ".")).write_text(text)


def shared(directory: pathlib.Path) -> dict[str, str]:
    found = shareable_files(directory, "acme/news")
    return {name: content.decode() if isinstance(content, bytes) else content.read_text() for name, content in found.items()}


@pytest.mark.parametrize(
    "name",
    [
        "training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state_0.pth",
        "trainer_state.json", "pytorch_model.bin", "events.out.tfevents.1", ".env", "run.json", "train.log", "notes.md",
        "setup.py", "model.safetensors.tmp",
    ],
)  # fmt: skip
def test_a_file_that_is_not_on_the_list_is_not_shared(model: pathlib.Path, name: str) -> None:
    (model / name).write_text("x")
    assert set(shared(model)) == {"config.json", "model.safetensors"}


def test_the_files_that_a_model_needs_are_shared(model: pathlib.Path) -> None:
    files = {
        "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "merges.txt",
        "chat_template.jinja", "README.md", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    for name in files:
        (model / name).write_text("{}")
    assert set(shared(model)) == files | {"config.json", "model.safetensors"}


def test_code_is_shared_only_with_a_model_that_needs_it(model: pathlib.Path) -> None:
    put(model, modeling__py="class A: ...")
    assert "modeling.py" not in shared(model)
    put(model, config__json={"auto_map": {"AutoModel": "modeling.A"}})
    assert "modeling.py" in shared(model)


def test_fields_that_name_a_directory_are_emptied_and_hub_names_are_kept(model: pathlib.Path) -> None:
    put(model, config__json={"_name_or_path": "/data/bert", "text_config": {"_name_or_path": "/x"}, "vocab_size": 7})
    put(model, adapter_config__json={"base_model_name_or_path": "acme/bert", "revision": None})
    put(model, tokenizer_config__json={"name_or_path": "/data/bert", "tokenizer_file": "/data/tokenizer.json"})
    found = {name: json.loads(text) for name, text in shared(model).items() if name.endswith(".json")}
    assert found["config.json"] == {"_name_or_path": None, "text_config": {"_name_or_path": None}, "vocab_size": 7}
    assert found["adapter_config.json"] == {"base_model_name_or_path": "acme/bert", "revision": None}
    assert found["tokenizer_config.json"] == {"name_or_path": None, "tokenizer_file": None}


def test_tokens_and_directories_are_removed_from_every_text(model: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "w" * 40)
    text = f"{SECRET} {'w' * 40} {model} {model.parent} /finetune/claims/data owner/name"
    put(model, README__md=text, chat_template__jinja=text, generation_config__json={"note": text})
    for name, content in shared(model).items():
        if name in ("README.md", "chat_template.jinja", "generation_config.json"):
            assert "[removed] [removed] [removed] [removed] [removed]/data" in content
    assert "acme/news" in shared(model)["README.md"]


def test_a_vocabulary_with_a_token_in_it_is_refused(model: pathlib.Path) -> None:
    put(model, tokenizer__json={"vocab": {SECRET: 1}})
    with pytest.raises(FineTuneError, match=r"tokenizer\.json holds a token") as refused:
        shareable_files(model, "acme/news")
    assert SECRET not in refused.value.message


def test_a_specific_host_name_is_private_and_an_ordinary_word_is_not() -> None:
    directory = pathlib.Path("/home/me/runs/news/model")
    assert "gpu-node-17" in private_strings(directory, {}, "gpu-node-17")
    assert "server" not in private_strings(directory, {}, "server")


def test_short_and_ordinary_strings_are_not_private() -> None:
    private = private_strings(
        pathlib.Path("/home/me/model"), {"SSH_KEY": "short", "LANG": "en_GB.UTF-8-and-more", "HF_TOKEN": ""}, "x"
    )
    assert "short" not in private
    assert "en_GB.UTF-8-and-more" not in private
    assert "/home/me" in private
    assert "/home" not in private
    assert "" not in private


def test_a_text_without_private_strings_is_not_changed() -> None:
    text = '{"b": 1,\n "a": "ä"}'
    assert redact("config.json", text, ["/home/me"]) == text


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no weights": ({"model__safetensors": None}, "safetensors is missing"),
    "no config": ({"config__json": None}, "config.json is missing"),
    "a shard is missing": (
        {"model__safetensors__index__json": {"weight_map": {"a": "model-00001-of-00002.safetensors"}}},
        "model-00001-of-00002.safetensors is missing",
    ),
    "broken": ({"config__json": "{"}, "Expecting"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_incomplete_model_is_not_pushed(model: pathlib.Path, name: str) -> None:
    for file, content in WRONG[name][0].items():
        if content is None:
            (model / file.replace("__", ".")).unlink()
        else:
            put(model, **{file: content})
    with pytest.raises(FineTuneError, match=WRONG[name][1]) as refused:
        shareable_files(model, "acme/news")
    assert refused.value.reason is Reason.HUB_PUSH_FAILED


def test_a_missing_directory_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FineTuneError, match="nowhere: No such file or directory"):
        shareable_files(tmp_path / "nowhere", "acme/news")


def test_only_weights_are_replaced_by_those_of_a_new_model() -> None:
    old = {"model.safetensors", "model-00001-of-00003.safetensors", "adapter_config.json", "pytorch_model-1.bin"}
    others = {"README.md", "LICENSE", "onnx/model.safetensors", "tokenizer.json"}
    assert {name for name in old | others if is_weights(name)} == old


@pytest.mark.parametrize(
    ("directory", "command"),
    [
        (f"{names.OUTPUT_DIR}/model", "kubectl finetune push news --namespace team"),
        ("runs/news/model", "finetune push runs/news/model --to team/news-model"),
    ],
)
def test_a_failed_push_names_a_command_that_works_outside_of_the_pod(directory: str, command: str) -> None:
    sources = {"model": {"hub": {"name": "a/b"}}, "datasets": [{"hub": {"name": "c/d"}}]}
    spec = parse_spec({"task": "causal-lm", **sources, "publish": {"repository": "team/news-model"}})
    with pytest.raises(FineTuneError) as failed:
        push(pathlib.Path(directory), spec, "news", namespace="team")
    assert failed.value.message.endswith(f"to push it later, run: {command}")
