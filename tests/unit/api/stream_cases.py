"""Cases about data that is read while training."""

from typing import Any

from unit.api.cases import MINIMAL, Case
from unit.api.task_cases import data, of


def streamed(task: str = "text-classification", **more: Any) -> dict[str, Any]:
    """A spec whose one data set is streamed."""
    return of(task, **{"datasets": data({"streaming": True}), "training": {"maxSteps": 10}, **more})


_STEPS = "datasets: streaming does not know how many rows there are, so epochs have no length: write training.maxSteps"
_ALL = "datasets: write streaming: true for each data set, or for none"
_EPOCHS = "evaluation.everyEpochs: epochs have no length with streaming: write everySteps"
_BALANCED = "classification.balanced: streaming does not count the classes beforehand: write classWeights"
_CHUNK = "maskedLM.chunk: streaming takes each text on its own: leave it out"
_FRACTION = (
    "evalFraction: data that is streamed is never seen as a whole, so nothing can be held out: write evalSplit, or claim.evalPath"
)
_WEIGHT = "weight: data sets that are streamed give their rows in turn: leave it out"

ACCEPTED = [
    Case("a stream", streamed()),
    Case("a stream of files", streamed(datasets=[{"claim": {"claimName": "c", "evalPath": "test.csv"}, "streaming": True}])),
    Case("two streams", streamed("sft", datasets=data({"streaming": True, "evalSplit": "test"}, {"streaming": True}))),
    Case(
        "a stream with all that it may have",
        streamed(evaluation={"everySteps": 5, "best": {}}, classification={"labels": ["a", "b"]}),
    ),
    Case("streaming that is off", {**MINIMAL, "datasets": data({"streaming": False, "evalFraction": 0.1, "weight": 1})}),
    Case("a stream of texts one by one", streamed("masked-lm", maskedLM={"probability": 0.3})),
]
REFUSED = [
    Case("a stream without steps", streamed(training={"learningRate": 0.1}), "spec", _STEPS),
    Case("a stream by epochs", streamed(training={"epochs": 2}), "spec", _STEPS),
    Case("one stream of two", streamed(datasets=data({"streaming": True}, {})), "spec", _ALL),
    Case("another stream of two", streamed(datasets=data({"streaming": False}, {"streaming": True})), "spec", _ALL),
    Case("a stream evaluated by epochs", streamed(evaluation={"everyEpochs": 1}), "spec", _EPOCHS),
    Case("a stream with balanced classes", streamed(classification={"balanced": True}), "spec", _BALANCED),
    Case("a stream in chunks", streamed("masked-lm", maskedLM={"chunk": True}), "spec", _CHUNK),
    Case(
        "a stream of which rows are held out",
        streamed(datasets=data({"streaming": True, "evalFraction": 0.1})),
        "spec.datasets[0]",
        _FRACTION,
    ),
    Case("a stream with a weight", streamed(datasets=data({"streaming": True, "weight": 1})), "spec.datasets[0]", _WEIGHT),
]
