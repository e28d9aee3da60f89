"""The three problems of text classification: what a label is, what it costs to miss it, and how often that happens."""

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.tasks import figures
from finetune_trainer.tasks.base import IGNORED, DataInfo, Scores
from finetune_trainer.tasks.figures import Tally
from finetune_trainer.tasks.weights import ClassWeights

_MOST_CONFUSED_CLASSES = 100  # a larger matrix helps nobody, and grows with the square


class Problem(abc.ABC):
    """A label a row, and a loss of the logits against it. Logits are float32 (rows, outputs).

    problem_type: transformers' name. dtype: of the tensor of labels.
    """

    problem_type: ClassVar[str]
    dtype: ClassVar[torch.dtype] = torch.int64

    def __init__(self, spec: FineTuneJobSpec, info: DataInfo) -> None:
        self.names: Sequence[str] = info.classes
        self._weights = ClassWeights(spec, info)
        self._numbers = {name: number for number, name in enumerate(info.classes)}

    @abc.abstractmethod
    def encode(self, batch: Mapping[str, list[Any]]) -> list[Any]:
        """Labels of the data as numbers."""

    @abc.abstractmethod
    def blank(self, label: Any) -> Any:
        """A label of the same shape that weighs nothing."""

    def known(self, labels: torch.Tensor) -> torch.Tensor:
        """Which labels weigh something: bool, of their shape."""
        return labels != IGNORED

    @abc.abstractmethod
    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss of each row, summed over its outputs: float32 (rows,), 0 for blank rows, which have no gradient either."""

    @abc.abstractmethod
    def metrics(self, scores: Scores) -> tuple[dict[str, float], dict[str, Any]]:
        """Figures and details of ``loss`` (rows,), ``logits`` and ``labels``, blank rows left out; one row at least."""

    @abc.abstractmethod
    def prediction(self, logits: np.ndarray) -> dict[str, Any]:
        """What is said of one row, for the file of predictions. logits: (outputs,)."""

    @abc.abstractmethod
    def label_of(self, label: np.ndarray) -> Any:
        """A row's true label, as the data has it."""

    @abc.abstractmethod
    def answer(self, logits: np.ndarray) -> tuple[str | None, float]:
        """Label and score of a sample."""


class SingleLabel(Problem):
    """One class a row: cross-entropy ÷ rows, each times the weight of its true class."""

    problem_type = "single_label_classification"

    def encode(self, batch: Mapping[str, list[Any]]) -> list[int]:
        return [self._numbers[label] for label in batch["label"]]

    def blank(self, label: int) -> int:
        return IGNORED

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        weights = self._weights.on(logits.device)
        return torch.nn.functional.cross_entropy(logits, labels, weights, ignore_index=IGNORED, reduction="none")

    def metrics(self, scores: Scores) -> tuple[dict[str, float], dict[str, Any]]:
        actual, predicted = scores["labels"], scores["logits"].argmax(axis=1)
        tally = Tally.of_numbers(actual, predicted, len(self.names))
        details = figures.describe(self.names, tally)
        if len(self.names) <= _MOST_CONFUSED_CLASSES:
            details["confusion"] = figures.confusion(actual, predicted, len(self.names)).tolist()
        loss = scores["loss"].sum(dtype=np.float64) / len(actual)
        return {"loss": loss, "accuracy": tally.hits.sum() / len(actual), "macroF1": tally.macro_f1()}, details

    def prediction(self, logits: np.ndarray) -> dict[str, Any]:
        label, score = self.answer(logits)
        return {"label": label, "score": score}

    def label_of(self, label: np.ndarray) -> str:
        return self.names[int(label)]

    def answer(self, logits: np.ndarray) -> tuple[str, float]:
        probabilities = np.exp(logits - logits.max())
        best = int(probabilities.argmax())
        return self.names[best], round(float(probabilities[best] / probabilities.sum()), 4)


class MultiLabel(Problem):
    """Any number of classes a row: binary cross-entropy ÷ (rows × classes).

    A class's weight is that of the rows that have it, as in a problem with a single label (torch's pos_weight).
    """

    problem_type = "multi_label_classification"

    def encode(self, batch: Mapping[str, list[Any]]) -> list[list[int]]:
        encoded = np.zeros((len(batch["labels"]), len(self.names)), dtype=np.int64)
        for row, labels in enumerate(batch["labels"]):
            encoded[row, [self._numbers[label] for label in labels]] = 1
        return encoded.tolist()

    def blank(self, label: list[int]) -> list[int]:
        return [IGNORED] * len(label)

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        known = self.known(labels)
        terms = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, (labels * known).float(), pos_weight=self._weights.on(logits.device), reduction="none"
        )
        return (terms * known).sum(dim=1)

    def metrics(self, scores: Scores) -> tuple[dict[str, float], dict[str, Any]]:
        actual, predicted = scores["labels"] == 1, scores["logits"] > 0
        tally = Tally.of_sets(actual, predicted)
        found = {
            "loss": scores["loss"].sum(dtype=np.float64) / actual.size,
            "microF1": tally.micro().get("f1", math.nan),
            "macroF1": tally.macro_f1(),
            "exactMatch": (actual == predicted).all(axis=1).mean(),
        }
        return found, figures.describe(self.names, tally)

    def prediction(self, logits: np.ndarray) -> dict[str, Any]:
        probabilities = _sigmoid(logits)
        scores = {name: round(float(value), 4) for name, value in zip(self.names, probabilities, strict=True)}
        return {"labels": [name for name, logit in zip(self.names, logits, strict=True) if logit > 0], "scores": scores}

    def label_of(self, label: np.ndarray) -> list[str]:
        return [self.names[number] for number in np.flatnonzero(label == 1).tolist()]

    def answer(self, logits: np.ndarray) -> tuple[str, float]:
        """Classes that are likelier than not, the likeliest first, and the probability of the likeliest of all."""
        order = np.argsort(-logits, kind="stable").tolist()
        return ", ".join(self.names[number] for number in order if logits[number] > 0), round(float(_sigmoid(logits).max()), 4)


class Regression(Problem):
    """A number a row: squared error ÷ rows. A blank row's label is NaN, which is taken out before it can touch a gradient."""

    problem_type = "regression"
    dtype = torch.float32

    def encode(self, batch: Mapping[str, list[Any]]) -> list[float]:
        return [float(label) for label in batch["label"]]

    def blank(self, label: float) -> float:
        return float("nan")

    def known(self, labels: torch.Tensor) -> torch.Tensor:
        return ~labels.isnan()

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return ((logits.squeeze(1) - labels.nan_to_num()) * self.known(labels)) ** 2

    def metrics(self, scores: Scores) -> tuple[dict[str, float], dict[str, Any]]:
        found = figures.regression(scores["labels"], scores["logits"][:, 0])
        return {"loss": scores["loss"].sum(dtype=np.float64) / len(scores["loss"]), **found}, {}

    def prediction(self, logits: np.ndarray) -> dict[str, Any]:
        return {"score": self.answer(logits)[1]}

    def label_of(self, label: np.ndarray) -> float:
        return round(float(label), 6)

    def answer(self, logits: np.ndarray) -> tuple[None, float]:
        return None, round(float(logits[0]), 4)


PROBLEMS: dict[str, type[Problem]] = {"SingleLabel": SingleLabel, "MultiLabel": MultiLabel, "Regression": Regression}


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # of a model that diverged: NaN in, NaN out
        return np.exp(-np.logaddexp(0, -logits))
