"""Text classification: one text or a pair of texts; one class, several, or a number."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec, Sample
from finetune_api.status import SampleAnswer
from finetune_trainer.tasks import constant, metrics
from finetune_trainer.tasks.base import Batch, DataInfo, Row, Scores
from finetune_trainer.tasks.padded import PaddedTask
from finetune_trainer.tasks.problems import PROBLEMS


class TextClassification(PaddedTask):
    """A new head on an encoder, or on the last token of a decoder. problems.py defines labels and losses."""

    auto_model = "AutoModelForSequenceClassification"
    has_new_head = True

    def __init__(self, spec: FineTuneJobSpec, tokenizer: Any, config: Any, info: DataInfo) -> None:
        super().__init__(spec, tokenizer, config, info)
        problem = info.problem or "SingleLabel"
        if problem == "Regression" and spec.training.label_smoothing:
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                "spec.training.labelSmoothing: the labels are numbers, and only classes can be smoothed; remove it, or write "
                "spec.classification.problemType: SingleLabel",
            )
        self._problem = PROBLEMS[problem](spec, info)

    def encode(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Tokenise text, and text_pair if present. Convert label or labels to labels."""
        encoded = self._tokenise(batch["text"], batch.get("text_pair"))
        encoded["labels"] = self._problem.encode(batch)
        return encoded

    def _tokenise(self, texts: Sequence[str], pairs: Sequence[str] | None) -> dict[str, list[Any]]:
        columns = [list(texts)] if pairs is None else [list(texts), list(pairs)]
        return self.stored_columns(self.tokenizer(*columns, truncation=True, max_length=self.max_tokens))

    def model_kwargs(self) -> dict[str, Any]:
        """Return number, names and problem type of the outputs. A head for other classes is replaced by a new head."""
        names = self.info.classes or ("score",)
        return {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
            "problem_type": self._problem.problem_type,
            "ignore_mismatched_sizes": True,
        }

    def peft_task_type(self) -> str:
        """Return SEQ_CLS. peft then trains the whole head, because it is new."""
        return "SEQ_CLS"

    def padding_row(self, row: Row) -> Row:
        """Return the same text with a label of zero weight."""
        return {**row, "labels": self._problem.padding_label(row["labels"])}

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Combine rows. labels: int64 (rows,); multi-label: int64 (rows, classes); regression: float32 (rows,)."""
        return {**self.pad(rows), "labels": torch.tensor([row["labels"] for row in rows], dtype=self._problem.dtype)}

    def count_loss_labels(self, batch: Batch) -> int:
        """Count the labelled rows, times the number of classes if a row may have several."""
        return int(self._problem.label_mask(batch["labels"]).sum())

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Return the sum of the losses. It is computed in float32, whatever the type of the logits."""
        logits = model(**self.model_inputs(batch)).logits.float()
        return self._problem.losses(logits, batch["labels"], self.spec.training.label_smoothing).sum()

    def score(self, model: Any, batch: Batch) -> Scores:
        """Return loss (rows,), logits (rows, outputs) and labels, without padding rows."""
        logits, labels = model(**self.model_inputs(batch)).logits.float(), batch["labels"]
        mask = self._problem.label_mask(labels).reshape(len(labels), -1).all(dim=1).cpu().numpy()
        scores = {"loss": self._problem.losses(logits, labels), "logits": logits, "labels": labels}
        return {name: tensor.cpu().numpy()[mask] for name, tensor in scores.items()}

    def compute_metrics(self, scores: Scores) -> tuple[dict[str, float], dict[str, Any]]:
        """Return loss, accuracy, macroF1; multi-label: loss, microF1, macroF1, exactMatch; regression: regression_metrics()."""
        if not len(scores["labels"]):
            return {}, {}
        found, details = self._problem.compute_metrics(scores)
        return metrics.drop_non_finite(found), details

    def baseline(self, train: pa.Table, evaluation: pa.Table) -> dict[str, float]:
        """Return the metrics of always answering the most frequent class, or the mean. The loss is that of their shares."""
        logits = self._problem.constant_logits(constant.column(train, "labels"))
        labels = constant.column(evaluation, "labels")
        losses = self._problem.losses(
            torch.from_numpy(self._problem.weighted(logits)).expand(len(labels), -1),
            torch.tensor(labels, dtype=self._problem.dtype),
        )
        scores = {"loss": losses.numpy(), "logits": np.broadcast_to(logits, (len(labels), len(logits))), "labels": labels}
        return self.compute_metrics(scores)[0]

    def predictions(self, scores: Scores) -> list[dict[str, Any]]:
        """Return label and score; multi-label: labels, scores of all classes; regression: score. expected: label in the data."""
        rows = zip(scores["logits"], scores["labels"], strict=True)
        return [{**self._problem.prediction(logits), "expected": self._problem.decode_label(label)} for logits, label in rows]

    @torch.no_grad()
    def answer(self, samples: Sequence[Sample]) -> list[SampleAnswer]:
        """Return class and probability of each sample."""
        return [self._answer(sample) for sample in samples]

    def _answer(self, sample: Sample) -> SampleAnswer:
        assert sample.text is not None
        encoded = self._tokenise([sample.text], None if sample.text_pair is None else [sample.text_pair])
        batch = self.pad([{name: values[0] for name, values in encoded.items()}])
        inputs = {name: tensor.to(self.model.device) for name, tensor in self.model_inputs(batch).items()}
        logits: np.ndarray = self.model(**inputs).logits[0].float().cpu().numpy()
        label, score = self._problem.answer(logits)
        # A model that diverged gives NaN, which the status can't hold.
        return SampleAnswer(
            text=sample.text[:200],
            label=label,
            score=score if math.isfinite(score) else None,
            labels=self._problem.label_scores(logits),
        )
