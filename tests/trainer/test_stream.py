"""Data that is streamed: a run that goes on from a checkpoint ends with the very weights of one that was never interrupted."""

import json
import pathlib
import shutil
from typing import Any

import pytest
import torch

from finetune_trainer.checkpoints import store
from trainer import small
from trainer.test_tasks import config, history, train_together, weights

# Rows that change from pass to pass, rows that tokenising leaves nothing of, texts that become several rows.
JOBS = {
    "masked-lm-streaming": small.job("masked-lm", "encoder", "texts", dataset=small.STREAMED),
    **{name: small.JOBS[name] for name in ("sft-prompts-streaming", "causal-lm-streaming")},
}
RUNS = [("trainer", name) for name in JOBS] + [("native", "masked-lm-streaming")]


@pytest.mark.parametrize("processes", [1, 2])
def test_going_on_ends_with_the_very_same_weights(
    tmp_path: pathlib.Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small, "JOBS", JOBS)
    small.write_all(tmp_path / "small")
    add_dropout(tmp_path / "small" / "models")
    whole, parts = (_configs(tmp_path, split, processes) for split in ("whole", "parts"))
    train_together(whole, tmp_path / "whole.json", processes)
    for one, other in zip(whole, parts, strict=True):
        _take_back(pathlib.Path(one["output"]), pathlib.Path(other["output"]), step=14)
    train_together(parts, tmp_path / "parts.json", processes)
    for one, other in zip(whole, parts, strict=True):
        outputs = pathlib.Path(one["output"]), pathlib.Path(other["output"])
        assert history(outputs[0]) == history(outputs[1]), one["output"]
        expected, found = map(weights, outputs)
        assert all(torch.equal(expected[name], found[name]) for name in expected), one["output"]


def _configs(directory: pathlib.Path, split: str, processes: int) -> list[dict[str, Any]]:
    found = [config(directory, split, loop, name, processes, micro=3) for loop, name in RUNS]
    for entry in found:
        entry["spec"]["checkpoint"] = {"everySteps": 7, "keep": 9}
    return found


def add_dropout(models: pathlib.Path) -> None:
    for file in models.glob("*/config.json"):
        more = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "attention_dropout": 0.1}
        file.write_text(json.dumps(json.loads(file.read_text()) | more))


def _take_back(finished: pathlib.Path, output: pathlib.Path, step: int) -> None:
    """An output as it was right after the checkpoint of a step, tokenised data and all later steps in the history included."""
    shutil.copytree(finished, output, ignore=shutil.ignore_patterns("model", "report.json", "evaluation.json"))
    for directory in store.complete_checkpoints(output / "checkpoints"):
        if store.step_of(directory) > step:
            shutil.rmtree(directory)
    assert store.step_of(store.complete_checkpoints(output / "checkpoints")[-1]) == step
