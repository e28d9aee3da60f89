"""Trainings that go wrong say so, each with its own findings, and a training that learns has none."""

import json
import pathlib
import random
import shutil
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from finetune_api.findings import FindingType
from finetune_api.wire import Report
from trainer import small_jobs
from trainer.torchrun import run_script

HELD_OUT = 80
Row = dict[str, Any]


def _learnable(draw: random.Random) -> Row:
    """Return a text whose label is in one of its words."""
    word, label = draw.choice([("basa", "good"), ("kite", "bad")])
    words = [*draw.choices(small_jobs.WORDS[20:], k=draw.randint(2, 12)), word]
    draw.shuffle(words)
    return {"text": " ".join(words), "label": label}


def _random(draw: random.Random) -> Row:
    return _learnable(draw) | {"label": draw.choice(["good", "bad"])}


def _preference(draw: random.Random) -> Row:
    """Return a pair whose chosen answer repeats one word, and whose rejected answer another one."""
    words = {"chosen": "basa", "rejected": "kite"}
    return {"prompt": "devi "} | {name: " ".join([word] * draw.randint(2, 6)) for name, word in words.items()}


def _swapped(draw: random.Random) -> Row:
    row = _preference(draw)
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]}


def _rated(draw: random.Random, noise: float = 0.0) -> Row:
    """Return a text with a score that is in one of its words. noise: standard deviation of what is added to the score."""
    row = _learnable(draw)
    return {"text": row["text"], "label": (3.0 if row["label"] == "good" else 1.0) + draw.gauss(0.0, noise)}


def _mostly_right(draw: random.Random) -> Row:
    row = _learnable(draw)
    return row | {"label": draw.choice(["good", "bad"])} if draw.random() < 0.06 else row


def _messy(rows: list[Row]) -> list[Row]:
    """Return rows of which some are empty, some contradict others, and two have a rare class."""
    contradictions = [row | {"label": "bad" if row["label"] == "good" else "good"} for row in rows[:10]]
    return [*rows, *contradictions, *[{"text": "", "label": "good"}] * 40, *[{"text": "ruvi lola", "label": "rare"}] * 2]


def _write(directory: pathlib.Path, name: str, train: list[Row], held_out: list[Row]) -> None:
    for split, rows in (("train", train), ("eval", held_out)):
        (directory / f"{name}-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_data(directory: pathlib.Path) -> None:
    def rows(make: Any, name: str, count: int) -> list[Row]:
        draw = random.Random(name)
        return [make(draw) for _ in range(count)]

    learnable, held_out = rows(_learnable, "learnable", 160), rows(_learnable, "held out", HELD_OUT)
    _write(directory, "learnable", learnable, held_out)
    _write(directory, "same", learnable, learnable[:40])
    _write(directory, "messy", _messy(learnable), held_out)
    _write(directory, "noise", rows(_random, "noise", 32), rows(_random, "other noise", HELD_OUT))
    noisy = rows(lambda draw: _rated(draw, noise=1.5), "noisy scores", 48)
    _write(directory, "noisy-scores", noisy, rows(_rated, "scores", HELD_OUT))
    _write(directory, "mostly-right", rows(_mostly_right, "mostly right", 320), held_out)
    _write(directory, "swapped", rows(_preference, "preferences", 80), rows(_swapped, "swapped", HELD_OUT))
    _write(
        directory, "random-answers", *(rows(small_jobs._preference, name, count) for name, count in (("train", 80), ("eval", 40)))
    )


def _write_model_without_head(models: pathlib.Path) -> None:
    shutil.copytree(models / "encoder", models / "headless")
    file = models / "headless/model.safetensors"
    weights = {name: value for name, value in load_file(file).items() if not name.startswith("cls.predictions.transform")}
    save_file(weights, file, metadata={"format": "pt"})


def _classify(data: str, **training: Any) -> dict[str, Any]:
    options = {"globalBatchSize": 16, "learningRate": 3e-3} | training
    return small_jobs.job("text-classification", "encoder", data, steps=60, training=options, evaluation={"everySteps": 20})


def _prefer(data: str, learning_rate: float, beta: float) -> dict[str, Any]:
    training = {"globalBatchSize": 16, "learningRate": learning_rate}
    return small_jobs.job("dpo", "decoder", data, steps=60, training=training, dpo={"beta": beta}, evaluation={"everySteps": 20})


JOBS: dict[str, dict[str, Any]] = {
    "clean": _classify("learnable"),
    "learning rate of 1": _classify("learnable", learningRate=1.0),
    "held-out rows trained on": _classify("same"),
    "messy data": _classify("messy"),
    "noise": _classify("noise", maxSteps=120),
    "tiny clipping": _classify("learnable", arguments={"max_grad_norm": 1e-3}),
    "memorised noise": _classify("noisy-scores", maxSteps=200) | {"classification": {"problemType": "Regression"}},
    "no learning rate left": _classify(
        "learnable",
        scheduler="warmup_stable_decay",
        arguments={"lr_scheduler_kwargs": {"num_stable_steps": 10, "num_decay_steps": 10, "min_lr_ratio": 0.0}},
    ),
    "some wrong labels": _classify("mostly-right", globalBatchSize=8, maxSteps=250),
    "without a head": small_jobs.job("masked-lm", "headless", "learnable", steps=5),
    "swapped answers": _prefer("swapped", 1e-3, beta=0.1),
    "random answers": _prefer("random-answers", 1e-2, beta=0.01),
    "short rows": small_jobs.job("sft", "decoder", "prompts", steps=5, training={"maxTokens": 10}),
}
# Job → findings that it must have, and may have others beside them. A training that learns has none at all.
EXPECTED: dict[str, set[FindingType]] = {
    "learning rate of 1": {FindingType.ONE_CLASS_PREDICTED},
    "held-out rows trained on": {FindingType.HELD_OUT_ROWS_TRAINED_ON},
    "messy data": {FindingType.ROWS_LEFT_OUT, FindingType.LABELS_DISAGREE, FindingType.RARE_CLASS},
    "noise": {FindingType.NO_BETTER_THAN_CONSTANT, FindingType.HELD_OUT_LOSS_ROSE},
    "tiny clipping": {FindingType.GRADIENTS_CLIPPED},
    "memorised noise": {FindingType.OVERFITTING},
    "no learning rate left": {FindingType.LEARNING_RATE_ZERO},
    "without a head": {FindingType.MISSING_WEIGHTS},
    "swapped answers": {FindingType.REWARD_MARGIN_FELL},
    "random answers": {FindingType.CHOSEN_ANSWERS_LESS_LIKELY},
    "short rows": {FindingType.NOTHING_TO_LEARN, FindingType.ROWS_CUT},
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Train all jobs in one process. Return the directory of their outputs."""
    directory = tmp_path_factory.mktemp("findings")
    small = directory / "small"
    small_jobs.write_all(small)
    _write_data(small / "data")
    _write_model_without_head(small / "models")
    configs = [
        {
            "name": "job", "namespace": "default", "spec": spec, "nodes": 1, "processesPerNode": 1,
            "claims": {"small": str(small)}, "output": str(directory / name),
        }
        for name, spec in JOBS.items()
    ]  # fmt: skip
    file = directory / "jobs.json"
    file.write_text(json.dumps(configs))
    ended = run_script("train_jobs", file, 1)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-6000:]
    return directory


def read_report(output: pathlib.Path) -> Report:
    report = Report.read((output / "report.json").read_text())
    assert report is not None
    return report


@pytest.mark.parametrize("name", EXPECTED)
def test_a_training_that_went_wrong_says_so(outputs: pathlib.Path, name: str) -> None:
    report = read_report(outputs / name)
    found = {finding.type: finding.message for finding in report.findings or ()}
    assert EXPECTED[name] <= found.keys()
    card = (outputs / name / "model" / "README.md").read_text()
    assert all(f"- **{kind}**: " in card for kind in found)


def test_batches_with_a_wrong_label_are_no_finding(outputs: pathlib.Path) -> None:
    report = read_report(outputs / "some wrong labels")
    history = [json.loads(line) for line in (outputs / "some wrong labels/history.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in history if "learningRate" in entry]
    assert sum(loss > losses[0] for loss in losses[50:]) >= 3, "their losses are high"
    assert report.findings == []


def test_a_training_that_learns_has_no_finding(outputs: pathlib.Path) -> None:
    report = read_report(outputs / "clean")
    assert report.findings == []
    assert report.evaluation is not None
    assert report.evaluation.metrics["accuracy"] > 0.9
    assert report.evaluation.baseline is not None
    assert report.evaluation.baseline["accuracy"] == pytest.approx(0.4875), "39 of the 80 held-out rows"
    assert json.loads((outputs / "clean" / "evaluation.json").read_text())["baseline"].keys() == {"loss", "accuracy", "macroF1"}
    assert "## Findings" not in (outputs / "clean" / "model" / "README.md").read_text()
