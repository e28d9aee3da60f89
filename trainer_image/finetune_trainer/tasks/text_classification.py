"""Text classification: one text or a pair of texts; one class, several, or a number."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from finetune_api.spec import FineTuneJobSpec, Sample
from finetune_api.status import SampleAnswer
from finetune_trainer.tasks import figures
from finetune_trainer.tasks.base import Batch, DataInfo, Row, Scores
from finetune_trainer.tasks.padded import PaddedTask
from finetune_trainer.tasks.problems import PROBLEMS


class TextClassification(PaddedTask):
    """A fresh head on an encoder, or on a decoder's last token. What a label is, and its loss: see problems."""

    auto_model = "AutoModelForSequenceClassification"

    def __init__(self, spec: FineTuneJobSpec, tokenizer: Any, config: Any, info: DataInfo) -> None:
        super().__init__(spec, tokenizer, config, info)
        self._problem = PROBLEMS[info.problem or "SingleLabel"](spec, info)

    def encode(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """text and perhaps text_pair → tokens; label or labels → labels."""
        encoded = self._tokenise(batch["text"], batch.get("text_pair"))
        encoded["labels"] = self._problem.encode(batch)
        return encoded

    def _tokenise(self, texts: Sequence[str], pairs: Sequence[str] | None) -> dict[str, list[Any]]:
        columns = [list(texts)] if pairs is None else [list(texts), list(pairs)]
        return self.kept(self.tokenizer(*columns, truncation=True, max_length=self.max_tokens))

    def model_arguments(self) -> dict[str, Any]:
        """Outputs, their names, and what they are; a head for other classes is replaced by a fresh one."""
        names = self.info.classes or ("score",)
        return {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
            "problem_type": self._problem.problem_type,
            "ignore_mismatched_sizes": True,
        }

    def peft_task(self) -> str:
        """The head is fresh: it is trained whole."""
        return "SEQ_CLS"

    def blank(self, row: Row) -> Row:
        """The same text with a label that weighs nothing."""
        return {**row, "labels": self._problem.blank(row["labels"])}

    def collate(self, rows: Sequence[Row]) -> Batch:
        """labels: int64 (rows,); (rows, classes) with several; float32 (rows,) for a regression."""
        return {**self.pad(rows), "labels": torch.tensor([row["labels"] for row in rows], dtype=self._problem.dtype)}

    def count(self, batch: Batch) -> int:
        """Labelled rows; times classes where a row may have several."""
        return int(self._problem.known(batch["labels"]).sum())

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Sum of the problem's losses: in float32, whatever the logits are in."""
        return self._problem.losses(model(**self.inputs(batch)).logits.float(), batch["labels"]).sum()

    def score(self, model: Any, batch: Batch) -> Scores:
        """loss (rows,), logits (rows, outputs) and labels; without blank rows."""
        logits, labels = model(**self.inputs(batch)).logits.float(), batch["labels"]
        known = self._problem.known(labels).reshape(len(labels), -1).all(dim=1).cpu().numpy()
        scores = {"loss": self._problem.losses(logits, labels), "logits": logits, "labels": labels}
        return {name: tensor.cpu().numpy()[known] for name, tensor in scores.items()}

    def metrics(self, scores: Scores) -> tuple[dict[str, float], dict[str, Any]]:
        """Of one class: loss, accuracy, macroF1. Of several: loss, microF1, macroF1, exactMatch. Else those of a regression."""
        if not len(scores["labels"]):
            return {}, {}
        found, details = self._problem.metrics(scores)
        return figures.finite(found), details

    def predictions(self, scores: Scores) -> list[dict[str, Any]]:
        """label and score; labels and scores of all classes; or score alone. expected: what the data says."""
        rows = zip(scores["logits"], scores["labels"], strict=True)
        return [{**self._problem.prediction(logits), "expected": self._problem.label_of(label)} for logits, label in rows]

    @torch.no_grad()
    def answer(self, samples: Sequence[Sample]) -> list[SampleAnswer]:
        """Class and probability of each sample."""
        return [self._answer(sample) for sample in samples]

    def _answer(self, sample: Sample) -> SampleAnswer:
        assert sample.text is not None
        encoded = self._tokenise([sample.text], None if sample.text_pair is None else [sample.text_pair])
        batch = self.pad([{name: values[0] for name, values in encoded.items()}])
        inputs = {name: tensor.to(self.model.device) for name, tensor in self.inputs(batch).items()}
        logits: np.ndarray = self.model(**inputs).logits[0].float().cpu().numpy()
        label, score = self._problem.answer(logits)
        # A status knows no NaN, which a model that diverged says.
        return SampleAnswer(text=sample.text[:200], label=label, score=score if math.isfinite(score) else None)
