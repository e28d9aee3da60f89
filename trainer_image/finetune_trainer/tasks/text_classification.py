"""Text classification: one text or a pair of texts, one class of two or more."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import Sample, Training
from finetune_api.status import SampleAnswer
from finetune_trainer.data.lengths import longest_input
from finetune_trainer.data.load import Data

log = logging.getLogger(__name__)

IGNORED_LABEL = -100  # torch's cross-entropy leaves rows with this label out of the sum


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """Tokenised rows by key: a row's number, or its padding key (see batches), for which the label weighs nothing."""

    def __init__(self, tokenised: datasets.Dataset) -> None:
        self._rows = tokenised

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: int) -> dict[str, Any]:
        row = dict(self._rows[key if key >= 0 else ~key])
        if key < 0:
            row["labels"] = IGNORED_LABEL
        return row


@dataclasses.dataclass(frozen=True)
class ModelLocation:
    """Where the model comes from: a repository and a commit, or a directory.

    field: what to name in an error. trust_remote_code: whether Python code of the repository may run.
    """

    name_or_path: str
    revision: str | None
    field: str
    trust_remote_code: bool = False


class TextClassification:
    """Model, tokenizer and rows for one training."""

    def __init__(self, data: Data, location: ModelLocation, training: Training) -> None:
        self.classes = data.classes
        self.tokenizer, self.model = _load(location, data.classes)
        config = self.model.config
        positions = getattr(config, "max_position_embeddings", None)
        self._max_tokens = min(training.max_tokens, longest_input(config.model_type, positions, config.pad_token_id))
        self.train_rows = Rows(self._tokenise(data.train))
        self.eval_rows = Rows(self._tokenise(data.evaluation))
        self.collate = DataCollatorWithPadding(self.tokenizer, pad_to_multiple_of=8 if torch.cuda.is_available() else None)

    def _tokenise(self, rows: datasets.Dataset) -> datasets.Dataset:
        numbers = {name: number for number, name in enumerate(self.classes)}

        def convert(batch: Mapping[str, list[str]]) -> dict[str, Any]:
            texts = [batch["text"], batch["text_pair"]] if "text_pair" in batch else [batch["text"]]
            encoded = dict(self.tokenizer(*texts, truncation=True, max_length=self._max_tokens))
            encoded["labels"] = [numbers[label] for label in batch["label"]]
            return encoded

        return rows.map(convert, batched=True, remove_columns=rows.column_names, keep_in_memory=True)

    def loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor) -> torch.Tensor:
        """Cross-entropy, summed over this forward pass, ÷ labelled rows of the whole global batch.

        So it does not matter how the global batch is split. (The models' own loss would be scaled wrongly by accumulation
        and world size: transformers issue 47688.) outputs.logits: (rows, classes); labels: (rows,).
        """
        total = torch.nn.functional.cross_entropy(outputs.logits.float(), labels, ignore_index=IGNORED_LABEL, reduction="sum")
        return total / num_items_in_batch

    def metrics(self, logits: np.ndarray, labels: np.ndarray) -> tuple[dict[str, float], dict[str, Any]]:
        """Figures by name, and the details: classes, confusion[true][predicted], precision, recall, f1 per class.

        logits: float (rows, classes); labels: int (rows,).
        """
        count = len(self.classes)
        confusion = np.zeros((count, count), dtype=np.int64)
        np.add.at(confusion, (labels, logits.argmax(axis=1)), 1)
        hits, predicted, actual = confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)
        precision = hits / np.maximum(predicted, 1)
        recall = hits / np.maximum(actual, 1)
        f1 = 2 * hits / np.maximum(predicted + actual, 1)
        figures = {"accuracy": float(hits.sum() / len(labels)), "macroF1": float(f1.mean())}
        details = {
            "classes": self.classes,
            "confusion": confusion.tolist(),
            "perClass": {
                name: {"precision": float(precision[i]), "recall": float(recall[i]), "f1": float(f1[i])}
                for i, name in enumerate(self.classes)
            },
        }
        return figures, details

    @torch.no_grad()
    def answer(self, samples: Sequence[Sample]) -> list[SampleAnswer]:
        """What the model says of the samples."""
        self.model.eval()
        answers = []
        for sample in samples:
            texts = [sample.text] if sample.text_pair is None else [sample.text, sample.text_pair]
            inputs = self.tokenizer(*texts, truncation=True, max_length=self._max_tokens, return_tensors="pt")
            logits = self.model(**inputs.to(self.model.device)).logits[0].float()
            score, number = logits.softmax(dim=0).max(dim=0)
            answers.append(SampleAnswer(text=sample.text[:200], label=self.classes[int(number)], score=round(float(score), 4)))
        return answers


def _load(location: ModelLocation, classes: list[str]) -> tuple[Any, Any]:
    """Tokenizer and model with a head for the classes; weights in fp32, safetensors only.

    Code of the repository runs only if the job trusts it.
    """
    source: dict[str, Any] = {"revision": location.revision} if location.revision else {}
    source["trust_remote_code"] = location.trust_remote_code
    try:
        tokenizer = AutoTokenizer.from_pretrained(location.name_or_path, **source)
        model = AutoModelForSequenceClassification.from_pretrained(
            location.name_or_path,
            **source,
            num_labels=len(classes),
            id2label=dict(enumerate(classes)),
            label2id={name: number for number, name in enumerate(classes)},
            problem_type="single_label_classification",
            ignore_mismatched_sizes=True,  # a head for other classes is replaced by a fresh one
            dtype=torch.float32,  # mixed precision keeps fp32 weights; "auto" would train those of a bf16 checkpoint in bf16
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError) as error:
        if "trust_remote_code" in str(error) and not location.trust_remote_code:
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                f"{location.field}: the model comes with Python code of its own, which is not run unless you write "
                "spec.model.trustRemoteCode: true; choose another model if you do not trust its repository",
            ) from error
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"{location.field}: no text classifier can be made of it: {reason[:400]} (config.json, tokenizer and safetensors "
            "weights are needed)",
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
    log.info("%s: %.1f million parameters", type(model).__name__, model.num_parameters() / 1e6)
    return tokenizer, model


transformers.logging.disable_progress_bar()
