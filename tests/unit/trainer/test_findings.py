"""Findings: each is raised by a record that shows it, and by no record that comes close, or is of a training that learns."""

import dataclasses
from typing import Any

import pytest

from finetune_api.findings import FINDINGS, MAX_FINDINGS, FindingType
from finetune_trainer.data.report import DataReport, Lengths
from finetune_trainer.findings import find, find_in_data
from finetune_trainer.findings.record import Hardware, Record
from finetune_trainer.monitoring.evaluation import EvaluationResult as Result

LENGTHS = Lengths(mean=100, p95=200, longest=256, limit=256, rows=1000, cut=300)
DATA = DataReport(["data"], 1000, 100, 0, 0, {"good": 500, "bad": 500}, LENGTHS, read=1100)
BASELINE = {"loss": 0.7, "accuracy": 0.5, "macroF1": 0.33}


def steps(*losses: float, **more: float) -> list[dict[str, float]]:
    return [{"step": at + 1, "loss": loss, "gradientNorm": 2.0, "learningRate": 1e-4} | more for at, loss in enumerate(losses)]


def falling(first: float, last: float, count: int = 40) -> list[dict[str, float]]:
    return steps(*(first + (last - first) * at / (count - 1) for at in range(count)))


def evaluations(*losses: float, accuracy: float = 0.9) -> list[Result]:
    """Return evaluations before the training, and then after every 20 steps."""
    return [Result(20 * at, {"loss": loss, "accuracy": accuracy}) for at, loss in enumerate(losses)]


MOST = {"class": "good", "predicted": 50, "actual": 50, "all": 100}
CLEAN = Record(
    "text-classification", DATA, 40, falling(0.7, 0.2), evaluations(0.7, 0.4, 0.3),
    details={"mostPredicted": MOST}, baseline=BASELINE, clip_norm=1.0, hardware=Hardware(100.0, 1.0, 0.8, 4),
)  # fmt: skip
REWARDS = [
    Result(20 * at, {"loss": loss, "rewardMargin": margin, "chosenLogps": chosen})
    for at, (loss, margin, chosen) in enumerate([(0.69, 0.0, -50.0), (0.6, 0.4, -60.0), (0.5, 0.5, -70.0)])
]
DPO = dataclasses.replace(CLEAN, task="dpo", evaluations=REWARDS, baseline={}, details={})


def rewards(margin: float, chosen: float) -> list[Result]:
    return [*REWARDS, Result(60, {"loss": 0.6, "rewardMargin": margin, "chosenLogps": chosen})]


def changed(base: Record = CLEAN, data: dict[str, Any] | None = None, **changes: Any) -> Record:
    if "evaluations" in changes:
        changes.setdefault("total_steps", changes["evaluations"][-1].step)
    return dataclasses.replace(base, data=dataclasses.replace(DATA, **(data or {})), **changes)


def cut(count: int, rows: int = 1000) -> dict[str, Any]:
    """Return the lengths of rows of which ``count`` are cut."""
    return {"lengths": dataclasses.replace(LENGTHS, cut=count, rows=rows)}


POOR = evaluations(0.7, 0.6, 0.6, accuracy=0.8)
NO_BETTER = evaluations(0.75, 0.72, 0.71, accuracy=0.52)
JUMPS = steps(*[0.7, *[0.2] * 20, 0.9, 0.8, 0.9, 0.8, *[0.2] * 20])
# Type → (a record with this finding, a record that comes close).
CASES: dict[FindingType, tuple[Record, Record]] = {
    FindingType.HELD_OUT_ROWS_TRAINED_ON: (changed(data={"shared": 10}), changed(data={"shared": 9})),
    FindingType.MISSING_WEIGHTS: (changed(missing=["cls.decoder"]), changed()),
    FindingType.NO_BETTER_THAN_CONSTANT: (
        changed(evaluations=NO_BETTER),
        changed(evaluations=evaluations(0.75, 0.72, 0.71, accuracy=0.6)),
    ),
    FindingType.ONE_CLASS_PREDICTED: (
        changed(details={"mostPredicted": MOST | {"predicted": 96}}),
        changed(details={"mostPredicted": MOST | {"predicted": 95}}),
    ),
    FindingType.HELD_OUT_LOSS_ROSE: (
        changed(evaluations=evaluations(0.7, 0.4, 0.74)),
        changed(evaluations=evaluations(0.7, 0.4, 0.73), keeps_best=True),
    ),
    FindingType.REWARD_MARGIN_FELL: (
        changed(DPO, evaluations=rewards(0.24, -70.0)),
        changed(DPO, evaluations=rewards(0.26, -70.0)),
    ),
    FindingType.CHOSEN_ANSWERS_LESS_LIKELY: (
        changed(DPO, evaluations=rewards(0.5, -75.1)),
        changed(DPO, evaluations=rewards(0.5, -75.0)),
    ),
    FindingType.OVERFITTING: (
        changed(evaluations=evaluations(0.7, 0.4, 0.45)),
        changed(evaluations=evaluations(0.7, 0.4, 0.43)),
    ),
    FindingType.LOSS_DOES_NOT_FALL: (
        changed(steps=falling(0.5, 0.6), evaluations=evaluations(0.5, 0.5, 0.5)),
        changed(steps=falling(0.6, 0.5), evaluations=evaluations(0.5, 0.5, 0.5)),
    ),
    FindingType.LOSS_JUMPS: (changed(steps=JUMPS), changed(steps=JUMPS[:24])),
    FindingType.LEARNING_RATE_ZERO: (
        changed(steps=[*falling(0.7, 0.5, 20), *steps(*[0.5] * 20, learningRate=0.0)]),
        changed(steps=[*falling(0.7, 0.5, 21), *steps(*[0.5] * 19, learningRate=0.0)]),
    ),
    FindingType.GRADIENTS_CLIPPED: (
        changed(steps=[*falling(0.7, 0.5, 19), *steps(*[0.5] * 21, gradientNorm=11.0)]),
        changed(steps=[*falling(0.7, 0.5, 20), *steps(*[0.5] * 20, gradientNorm=11.0)]),
    ),
    FindingType.NOTHING_TO_LEARN: (
        changed(task="sft", data=cut(0, rows=900)),
        changed(task="sft", data=cut(0, rows=901)),
    ),
    FindingType.ROWS_LEFT_OUT: (
        changed(data={"skipped": {"a text is empty": 110}}),
        changed(data={"skipped": {"a text is empty": 109}}),
    ),
    FindingType.LABELS_DISAGREE: (changed(data={"disagreeing": 20}), changed(data={"disagreeing": 19})),
    FindingType.RARE_CLASS: (
        changed(data={"classes": {"good": 996, "bad": 4}}),
        changed(data={"classes": {"good": 995, "bad": 5}}),
    ),
    FindingType.ROWS_CUT: (changed(data=cut(500), evaluations=POOR), changed(data=cut(499), evaluations=POOR)),
    FindingType.WAITING_FOR_DATA: (changed(hardware=Hardware(60.0, 30.0)), changed(hardware=Hardware(60.0, 29.0))),
    FindingType.MEMORY_UNUSED: (
        changed(hardware=Hardware(60.0, 0.0, 0.25, 2)),
        changed(hardware=Hardware(60.0, 0.0, 0.25, 1)),
    ),
}
# Records that some rule must not mistake for a training that went wrong.
FALSE_ALARMS = {
    "it learns": CLEAN,
    "dpo learns, and both answers become less likely": DPO,
    "the first steps of a training": changed(evaluations=evaluations(0.7, 0.9, accuracy=0.5), total_steps=400),
    "few held-out rows": changed(evaluations=NO_BETTER, data={"evaluation_rows": 29}),
    "few log lines": changed(steps=falling(0.5, 0.6, 29)),
    "a classifier that is good with the beginning of its texts": changed(data=cut(1000)),
    "cut rows before a classifier has shown what it can": changed(
        data=cut(1000), steps=[], evaluations=evaluations(0.7), total_steps=40
    ),
    "a long text that becomes several rows": changed(task="causal-lm", data=cut(0, rows=900), baseline={}),
    "the classes are as unequal as the predictions": changed(
        details={"mostPredicted": MOST | {"predicted": 100, "actual": 80}}, data={"classes": {"good": 800, "bad": 200}}
    ),
    "the held-out loss rises while accuracy rises": changed(
        evaluations=[*evaluations(0.7, 0.4), Result(40, {"loss": 0.5, "accuracy": 0.95})]
    ),
    "a held-out loss near 0 rises by a tenth of nearly nothing": changed(evaluations=evaluations(0.7, 0.02, 0.05)),
    "batches with a wrong label, one at a time": changed(steps=steps(*[0.7, *[0.2] * 20, *[0.9, 0.2, 0.2, 0.2] * 5])),
    "the best model is kept": changed(evaluations=evaluations(0.7, 0.4, 0.6), keeps_best=True),
    "the best model was chosen": changed(evaluations=evaluations(0.7, 0.4, 0.9), chosen=evaluations(0.7, 0.4)[1]),
    "a model that was trained before, at a low loss": changed(
        steps=falling(0.2, 0.2), evaluations=evaluations(0.21, 0.2, 0.2), baseline=BASELINE
    ),
    "a class that the sample of a stream lacks": changed(data={"streaming": True, "classes": {"good": 1000, "bad": 0}}),
    "no clipping": changed(steps=steps(*[0.5] * 40, gradientNorm=99.0), clip_norm=0.0),
}  # fmt: skip


def types(record: Record) -> set[str]:
    return {finding.type for finding in find(record)}


@pytest.mark.parametrize("kind", FindingType)
def test_each_finding_is_raised_alone_from_its_threshold_on(kind: FindingType) -> None:
    raised, close = CASES[kind]
    assert types(raised) == {kind}
    assert kind not in types(close)


@pytest.mark.parametrize("name", FALSE_ALARMS)
def test_no_finding(name: str) -> None:
    assert find(FALSE_ALARMS[name]) == []


def test_a_message_has_the_figures_and_what_to_try() -> None:
    [finding] = find(changed(evaluations=NO_BETTER))
    assert finding.message == (
        "the model is no better than a constant answer: accuracy 0.52 against 0.5, loss 0.71 against 0.7; "
        + FINDINGS[FindingType.NO_BETTER_THAN_CONSTANT].remedy
    )


def test_a_loss_that_is_nan_counts_as_the_worst() -> None:
    diverged = [*evaluations(0.7), Result(40, {"accuracy": 0.5})]
    assert types(changed(evaluations=diverged)) == {FindingType.NO_BETTER_THAN_CONSTANT, FindingType.HELD_OUT_LOSS_ROSE}


def test_a_negative_margin_says_what_is_preferred() -> None:
    [finding] = find(changed(DPO, evaluations=rewards(-0.1, -60.0)))
    assert "the rejected answers are preferred" in finding.message


def test_there_are_few_findings_the_worst_first() -> None:
    data = {"shared": 50, "disagreeing": 500, "skipped": {"empty": 500}, "classes": {"good": 999, "bad": 1}} | cut(900)
    found = find(changed(data=data, evaluations=NO_BETTER, missing=["layer"], hardware=Hardware(60.0, 60.0, 0.1, 2)))
    assert len(found) == MAX_FINDINGS
    order = list(FindingType)
    assert [finding.type for finding in found] == sorted(
        (finding.type for finding in found), key=lambda kind: order.index(FindingType(kind))
    )
    assert found[0].type == FindingType.HELD_OUT_ROWS_TRAINED_ON
    assert all(len(finding.message) <= 400 for finding in found)


def test_the_data_alone_has_its_findings_before_the_training() -> None:
    data = dataclasses.replace(DATA, shared=50, **cut(900))
    assert [finding.type for finding in find_in_data("text-classification", data)] == ["HeldOutRowsTrainedOn", "RowsCut"]
    assert find_in_data("text-classification", DATA) == []
