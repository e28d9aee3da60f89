"""Loading a finished model: by its own configuration, and merged if the merge is requested only after the training."""

import json
import pathlib
from typing import Any

import pytest
import torch
import transformers

from finetune_api.status import Evaluation, Published
from finetune_api.wire import Report, RunConfig
from finetune_trainer.commands import finished
from finetune_trainer.models import load
from finetune_trainer.models.load import ModelLocation
from finetune_trainer.output.directory import OutputDirectory
from finetune_trainer.pod.launch import Launcher
from finetune_trainer.pod.processes import PodRank
from finetune_trainer.runtime.state import RunState, write_atomically
from finetune_trainer.tasks.base import DataInfo
from finetune_trainer.tasks.causal_lm import CausalLanguageModeling
from unit.trainer.tiny_models import TEXTS, build_model, build_spec, build_tokenizer, save


def train_adapters(tmp_path: pathlib.Path, publishing: dict[str, Any]) -> tuple[RunConfig, Any]:
    """Write an output with adapters only, as a training without ``publish`` does; return its run and its task."""
    tokenizer = build_tokenizer()
    base = save(tmp_path / "claim" / "base", build_model("llama", len(tokenizer)), tokenizer)
    model = {"claim": {"claimName": "m", "path": "base"}, "hub": None, "lora": {}}
    spec, location = build_spec("causal-lm", model=model, publish=publishing), ModelLocation(str(base), None, "spec.model.claim")
    tokenizer = load.load_tokenizer(location)
    task = CausalLanguageModeling(spec, tokenizer, load.load_config(location), DataInfo())
    task.model = load.load_model(task, location, spec).eval()
    with torch.no_grad():
        for name, weight in task.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.2)
    output = OutputDirectory(tmp_path / "out")
    load.save_model(task.model, tokenizer, output.model)
    output.evaluation.write_text(json.dumps({"step": 2, "metrics": {"loss": 1.0}}))
    report = Report(attempt=1, phase="Succeeded", step=2, evaluation=Evaluation(step=2, metrics={"loss": 1.0}))
    write_atomically(output.report, report.model_dump_json(by_alias=True, exclude_none=True))
    config = RunConfig(
        name="job", namespace="team", spec=spec, nodes=1, processes_per_node=1, claims={"m": str(tmp_path / "claim")},
        output=str(output.directory),
    )  # fmt: skip
    return config, task


def test_adapters_are_merged_before_the_push_if_the_merge_is_requested_after_the_training(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, task = train_adapters(tmp_path, {"repository": "team/news", "mergeAdapter": True})
    pushed: list[pathlib.Path] = []

    def push(directory: pathlib.Path, *_: object, **__: object) -> Published:
        pushed.append(directory)
        return Published(url="https://hub.example.com/team/news", commit="c0ffee")

    monkeypatch.setattr("finetune_trainer.publish.push.push", push)
    state = RunState(tmp_path / "state")
    state.create()
    report = Launcher(config, PodRank(), state).run()
    assert (report.phase, report.failure) == ("Succeeded", None)
    [directory] = pushed
    assert not (directory / "adapter_config.json").exists()
    assert "A model with a merged LoRA adapter" in (directory / "README.md").read_text()
    whole = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    tokens = torch.tensor([task.tokenizer(TEXTS[0])["input_ids"]])
    with torch.no_grad():
        assert torch.allclose(whole(tokens).logits, task.model(tokens).logits, atol=1e-4)


def test_adapters_are_added_to_the_commit_that_they_were_trained_on(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = train_adapters(tmp_path, {"repository": "team/news"})
    model = OutputDirectory(pathlib.Path(config.output)).model
    named = json.loads((model / "adapter_config.json").read_text())
    (model / "adapter_config.json").write_text(
        json.dumps({**named, "base_model_name_or_path": "tiny/base", "revision": "c0ffee"})
    )
    locations: list[ModelLocation] = []

    def load_model(_: object, location: ModelLocation, __: object) -> Any:
        locations.append(location)
        raise KeyboardInterrupt  # the test needs only the location

    monkeypatch.setattr(finished, "load_model", load_model)
    for base in (None, "/elsewhere"):
        with pytest.raises(KeyboardInterrupt):
            finished.load_finished(model, base)
    assert [(location.name_or_path, location.revision) for location in locations] == [
        ("tiny/base", "c0ffee"),
        ("/elsewhere", None),
    ]
