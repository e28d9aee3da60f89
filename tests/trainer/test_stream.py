"""Streamed data: a run that resumes from a checkpoint ends with exactly the weights of an uninterrupted run."""

import json
import pathlib
import shutil
from typing import Any

import pytest
import torch

from finetune_trainer.checkpoints.directory import checkpoint_step, list_checkpoints
from trainer import small_jobs
from trainer.test_tasks import config, history, train_together, weights

# Rows that change in each epoch, rows that are empty after tokenising, and texts that become several rows.
JOBS = {
    "masked-lm-streaming": small_jobs.job("masked-lm", "encoder", "texts", dataset=small_jobs.STREAMED),
    **{name: small_jobs.JOBS[name] for name in ("sft-prompts-streaming", "causal-lm-streaming")},
}
RUNS = [("Trainer", name) for name in JOBS] + [("Native", "masked-lm-streaming")]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_run_ends_with_exactly_the_same_weights(
    tmp_path: pathlib.Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_jobs, "JOBS", JOBS)
    small_jobs.write_all(tmp_path / "small")
    add_dropout(tmp_path / "small" / "models")
    uninterrupted, interrupted = (_configs(tmp_path, split, processes) for split in ("uninterrupted", "interrupted"))
    train_together(uninterrupted, tmp_path / "uninterrupted.json", processes)
    for one, other in zip(uninterrupted, interrupted, strict=True):
        _rewind(pathlib.Path(one["output"]), pathlib.Path(other["output"]), step=14)
    train_together(interrupted, tmp_path / "interrupted.json", processes)
    for one, other in zip(uninterrupted, interrupted, strict=True):
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


def _rewind(finished: pathlib.Path, output: pathlib.Path, step: int) -> None:
    """Write an output as it was right after a step's checkpoint, with tokenised data and all later steps in the history."""
    shutil.copytree(finished, output, ignore=shutil.ignore_patterns("model", "report.json", "evaluation.json"))
    for directory in list_checkpoints(output / "checkpoints"):
        if checkpoint_step(directory) > step:
            shutil.rmtree(directory)
    assert checkpoint_step(list_checkpoints(output / "checkpoints")[-1]) == step
