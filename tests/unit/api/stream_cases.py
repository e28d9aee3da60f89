"""Cases about streamed data."""

from typing import Any

from unit.api.cases import MINIMAL, Case
from unit.api.task_cases import data, of


def streamed(task: str = "text-classification", **more: Any) -> dict[str, Any]:
    """Return a spec whose only data set is streamed."""
    return of(task, **{"datasets": data({"streaming": True}), "training": {"maxSteps": 10}, **more})


_STEPS = "datasets: with streaming, the number of rows is unknown, so the length of an epoch is unknown: write training.maxSteps"
_ALL = "datasets: write streaming: true for each data set, or for none"
_EPOCHS = "evaluation.everyEpochs: with streaming, the length of an epoch is unknown: write everySteps"
_BALANCED = "classification.balanced: with streaming, the rows of each class can't be counted beforehand: write classWeights"
_CHUNK = "maskedLM.chunk: with streaming, each text is one row: remove it"
_FRACTION = "evalFraction: with streaming, no rows can be held out: write evalSplit, or claim.evalPath"
_WEIGHT = "weight: with streaming, one row is read from each data set in turn: remove it"

ACCEPTED = [
    Case("a stream", streamed()),
    Case("a stream of files", streamed(datasets=[{"claim": {"claimName": "c", "evalPath": "test.csv"}, "streaming": True}])),
    Case("two streams", streamed("sft", datasets=data({"streaming": True, "evalSplit": "test"}, {"streaming": True}))),
    Case(
        "a stream with evaluation and labels",
        streamed(evaluation={"everySteps": 5, "best": {}}, classification={"labels": ["a", "b"]}),
    ),
    Case("streaming that is off", {**MINIMAL, "datasets": data({"streaming": False, "evalFraction": 0.1, "weight": 1})}),
    Case("a stream for masked-lm without chunks", streamed("masked-lm", maskedLM={"probability": 0.3})),
]
REFUSED = [
    Case("a stream without steps", streamed(training={"learningRate": 0.1}), "spec", _STEPS),
    Case("a stream by epochs", streamed(training={"epochs": 2}), "spec", _STEPS),
    Case("the first of two data sets streamed", streamed(datasets=data({"streaming": True}, {})), "spec", _ALL),
    Case(
        "the second of two data sets streamed", streamed(datasets=data({"streaming": False}, {"streaming": True})), "spec", _ALL
    ),
    Case("a stream evaluated by epochs", streamed(evaluation={"everyEpochs": 1}), "spec", _EPOCHS),
    Case("a stream with balanced classes", streamed(classification={"balanced": True}), "spec", _BALANCED),
    Case("a stream in chunks", streamed("masked-lm", maskedLM={"chunk": True}), "spec", _CHUNK),
    Case(
        "a stream with held-out rows",
        streamed(datasets=data({"streaming": True, "evalFraction": 0.1})),
        "spec.datasets[0]",
        _FRACTION,
    ),
    Case("a stream with a weight", streamed(datasets=data({"streaming": True, "weight": 1})), "spec.datasets[0]", _WEIGHT),
]
