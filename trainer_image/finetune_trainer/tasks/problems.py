"""The three problem types of text classification, with labels, losses and metrics of each."""

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import LabelScore
from finetune_trainer.tasks import metrics
from finetune_trainer.tasks.base import IGNORE_INDEX, DataInfo, Scores
from finetune_trainer.tasks.class_weights import ClassWeights
from finetune_trainer.tasks.metrics import ClassCounts

_MAX_TAGS = 32  # of a sample, in the status
_MAX_CONFUSION_CLASSES = 100  # a larger matrix is not readable, and its size grows with the square


class Problem(abc.ABC):
    """One problem type: a label per row, and a loss between logits and labels. Logits are float32 (rows, outputs).

    problem_type: name in transformers. dtype: type of the tensor of labels.
    """

    problem_type: ClassVar[str]
    dtype: ClassVar[torch.dtype] = torch.int64

    def __init__(self, spec: FineTuneJobSpec, info: DataInfo) -> None:
        self.class_names: Sequence[str] = info.classes
        self._weights = ClassWeights(spec, info)
        self._label2id = {name: number for number, name in enumerate(info.classes)}

    @abc.abstractmethod
    def encode(self, batch: Mapping[str, list[Any]]) -> list[Any]:
        """Return the labels of the data as numbers."""

    @abc.abstractmethod
    def padding_label(self, label: Any) -> Any:
        """Return a label of the same shape with zero weight."""

    def label_mask(self, labels: torch.Tensor) -> torch.Tensor:
        """Return which labels are not padding: bool, same shape."""
        return labels != IGNORE_INDEX

    @abc.abstractmethod
    def losses(self, logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
        """Return the loss of each row, summed over its outputs: float32 (rows,). Padding rows have loss and gradient 0.

        smoothing: share of the label that is spread evenly over all classes.
        """

    @abc.abstractmethod
    def constant_logits(self, labels: np.ndarray) -> np.ndarray:
        """Return the logits of the best constant answer: float32 (outputs,). labels: of the training rows, as encode() does."""

    def weighted(self, logits: np.ndarray) -> np.ndarray:
        """Return the logits of the constant answer with the lowest loss, which differs if the classes have weights."""
        weights = self._weights.to(torch.device("cpu"))
        return logits if weights is None else logits + np.log(np.maximum(weights.numpy(), np.finfo(np.float32).tiny))

    @abc.abstractmethod
    def compute_metrics(self, scores: Scores) -> tuple[dict[str, float], dict[str, Any]]:
        """Return metrics and details from ``loss`` (rows,), ``logits`` and ``labels``: no padding rows, at least one row."""

    @abc.abstractmethod
    def prediction(self, logits: np.ndarray) -> dict[str, Any]:
        """Return the prediction for one row, for the file of predictions. logits: (outputs,)."""

    @abc.abstractmethod
    def decode_label(self, label: np.ndarray) -> Any:
        """Return the true label of a row in the format of the data."""

    @abc.abstractmethod
    def answer(self, logits: np.ndarray) -> tuple[str | None, float]:
        """Return label and score of a sample."""

    def label_scores(self, logits: np.ndarray) -> list[LabelScore] | None:
        """Return the probability of each class, the largest first; None if a text has one class."""
        return None


class SingleLabel(Problem):
    """One class per row. The loss is cross-entropy times the weight of the true class, divided by the number of rows."""

    problem_type = "single_label_classification"

    def encode(self, batch: Mapping[str, list[Any]]) -> list[int]:
        return [self._label2id[label] for label in batch["label"]]

    def padding_label(self, label: int) -> int:
        return IGNORE_INDEX

    def losses(self, logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(
            logits,
            labels,
            self._weights.to(logits.device),
            ignore_index=IGNORE_INDEX,
            reduction="none",
            label_smoothing=smoothing,
        )

    def constant_logits(self, labels: np.ndarray) -> np.ndarray:
        """Return the logarithm of the shares of the classes. One more row of each class keeps them finite."""
        counts = np.bincount(labels, minlength=len(self.class_names)) + 1
        return np.log(counts / counts.sum()).astype(np.float32)

    def compute_metrics(self, scores: Scores) -> tuple[dict[str, float], dict[str, Any]]:
        actual, predicted = scores["labels"], scores["logits"].argmax(axis=1)
        counts = ClassCounts.from_class_ids(actual, predicted, len(self.class_names))
        details = {
            **metrics.class_details(self.class_names, counts),
            "mostPredicted": counts.most_predicted(self.class_names),
        }
        if len(self.class_names) <= _MAX_CONFUSION_CLASSES:
            details["confusion"] = metrics.confusion_matrix(actual, predicted, len(self.class_names)).tolist()
        loss = scores["loss"].sum(dtype=np.float64) / len(actual)
        return {"loss": loss, "accuracy": counts.true_positives.sum() / len(actual), "macroF1": counts.macro_f1()}, details

    def prediction(self, logits: np.ndarray) -> dict[str, Any]:
        label, score = self.answer(logits)
        return {"label": label, "score": score}

    def decode_label(self, label: np.ndarray) -> str:
        return self.class_names[int(label)]

    def answer(self, logits: np.ndarray) -> tuple[str, float]:
        probabilities = np.exp(logits - logits.max())
        best = int(probabilities.argmax())
        return self.class_names[best], round(float(probabilities[best] / probabilities.sum()), 4)


class MultiLabel(Problem):
    """Any number of classes per row. The loss is binary cross-entropy ÷ (rows × classes).

    The weight of a class applies to the rows that have it (torch's pos_weight), as in SingleLabel.
    """

    problem_type = "multi_label_classification"

    def encode(self, batch: Mapping[str, list[Any]]) -> list[list[int]]:
        encoded = np.zeros((len(batch["labels"]), len(self.class_names)), dtype=np.int64)
        for row, labels in enumerate(batch["labels"]):
            encoded[row, [self._label2id[label] for label in labels]] = 1
        return encoded.tolist()

    def padding_label(self, label: list[int]) -> list[int]:
        return [IGNORE_INDEX] * len(label)

    def losses(self, logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
        mask = self.label_mask(labels)
        wanted = (labels * mask).float() * (1 - smoothing) + smoothing / 2
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, wanted, pos_weight=self._weights.to(logits.device), reduction="none"
        )
        return (losses * mask).sum(dim=1)

    def constant_logits(self, labels: np.ndarray) -> np.ndarray:
        """Return the logits of the shares of the classes. A row with and one without each class keep them finite."""
        counts = labels.sum(axis=0) + 1
        return np.log(counts / (len(labels) + 2 - counts)).astype(np.float32)

    def compute_metrics(self, scores: Scores) -> tuple[dict[str, float], dict[str, Any]]:
        actual, predicted = scores["labels"] == 1, scores["logits"] > 0
        counts = ClassCounts.from_multi_hot(actual, predicted)
        found = {
            "loss": scores["loss"].sum(dtype=np.float64) / actual.size,
            "microF1": counts.micro().get("f1", math.nan),
            "macroF1": counts.macro_f1(),
            "exactMatch": (actual == predicted).all(axis=1).mean(),
        }
        return found, metrics.class_details(self.class_names, counts)

    def prediction(self, logits: np.ndarray) -> dict[str, Any]:
        probabilities = _sigmoid(logits)
        scores = {name: round(float(value), 4) for name, value in zip(self.class_names, probabilities, strict=True)}
        return {"labels": [name for name, logit in zip(self.class_names, logits, strict=True) if logit > 0], "scores": scores}

    def decode_label(self, label: np.ndarray) -> list[str]:
        return [self.class_names[number] for number in np.flatnonzero(label == 1).tolist()]

    def answer(self, logits: np.ndarray) -> tuple[str, float]:
        """Return the classes with a probability above 0.5, the most likely first, and the largest probability of all classes."""
        order = np.argsort(-logits, kind="stable").tolist()
        likely = ", ".join(self.class_names[number] for number in order if logits[number] > 0)
        return likely, round(float(_sigmoid(logits).max()), 4)

    def label_scores(self, logits: np.ndarray) -> list[LabelScore] | None:
        if not np.isfinite(logits).all():  # a model that diverged
            return None
        order = np.argsort(-logits, kind="stable")[:_MAX_TAGS]
        return [
            LabelScore(label=self.class_names[number], score=round(float(_sigmoid(logits[number])), 4))
            for number in order.tolist()
        ]


class Regression(Problem):
    """One number per row. The loss is squared error ÷ rows. Padding rows have the label NaN, which the loss ignores."""

    problem_type = "regression"
    dtype = torch.float32

    def encode(self, batch: Mapping[str, list[Any]]) -> list[float]:
        return [float(label) for label in batch["label"]]

    def padding_label(self, label: float) -> float:
        return float("nan")

    def label_mask(self, labels: torch.Tensor) -> torch.Tensor:
        return ~labels.isnan()

    def losses(self, logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
        assert not smoothing, "a number has no classes to spread it over"
        return ((logits.squeeze(1) - labels.nan_to_num()) * self.label_mask(labels)) ** 2

    def constant_logits(self, labels: np.ndarray) -> np.ndarray:
        return np.array([labels.mean()], dtype=np.float32)

    def compute_metrics(self, scores: Scores) -> tuple[dict[str, float], dict[str, Any]]:
        found = metrics.regression_metrics(scores["labels"], scores["logits"][:, 0])
        return {"loss": scores["loss"].sum(dtype=np.float64) / len(scores["loss"]), **found}, {}

    def prediction(self, logits: np.ndarray) -> dict[str, Any]:
        return {"score": self.answer(logits)[1]}

    def decode_label(self, label: np.ndarray) -> float:
        return round(float(label), 6)

    def answer(self, logits: np.ndarray) -> tuple[None, float]:
        return None, round(float(logits[0]), 4)


PROBLEMS: dict[str, type[Problem]] = {"SingleLabel": SingleLabel, "MultiLabel": MultiLabel, "Regression": Regression}


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # a model that diverged gives NaN, which stays NaN
        return np.exp(-np.logaddexp(0, -logits))
