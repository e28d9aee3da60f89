"""Token classification: a tag for each word, as in named entity recognition."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec, Sample
from finetune_api.status import Entity, SampleAnswer
from finetune_trainer.tasks import constant, metrics
from finetune_trainer.tasks.base import IGNORE_INDEX, Batch, DataInfo, Row, Scores
from finetune_trainer.tasks.class_weights import ClassWeights
from finetune_trainer.tasks.metrics import ClassCounts
from finetune_trainer.tasks.padded import PaddedTask


class TokenClassification(PaddedTask):
    """The first subword of a word has its tag. Other subwords and special tokens have no label.

    Training and evaluation ignore words beyond maxTokens. The details of an evaluation state their number.
    """

    auto_model = "AutoModelForTokenClassification"
    has_new_head = True

    def __init__(self, spec: FineTuneJobSpec, tokenizer: Any, config: Any, info: DataInfo) -> None:
        super().__init__(spec, tokenizer, config, info)
        if not tokenizer.is_fast:
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                "spec.model: its tokenizer is written in Python and does not say which word a token belongs to; choose a model "
                "that has a tokenizer.json",
            )
        self._weights = ClassWeights(spec, info)
        self._label2id = {name: number for number, name in enumerate(info.classes)}
        self._prefixed = metrics.has_prefixes(info.classes)
        self._space = _space_between_words(tokenizer)

    def encode(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Convert tokens (words) and tags to tokens, labels and ``words``: the number of words, including words that are cut."""
        encoded, firsts = self._tokenise(batch["tokens"])
        encoded["labels"] = [
            _label_subwords(len(ids), first, [self._label2id[tag] for tag in tags])
            for ids, first, tags in zip(encoded["input_ids"], firsts, batch["tags"], strict=True)
        ]
        encoded["words"] = [len(words) for words in batch["tokens"]]
        return encoded

    def _tokenise(self, rows: Sequence[Sequence[str]]) -> tuple[dict[str, list[Any]], list[list[int]]]:
        """Return columns of tokens, and for each row the position of each word's first subword, without words that are cut."""
        rows = [self._with_spaces(words) for words in rows]
        encoded = self._tokenise_words(rows)
        # A word without a token (such as a control character) would lose its tag, and later tags would shift.
        lost = {row: _lost_words(encoded, row, words, self.max_tokens) for row, words in enumerate(rows)}
        if any(lost.values()):
            known = self.tokenizer.unk_token or "?"
            rows = [[known if i in lost[row] else word for i, word in enumerate(words)] for row, words in enumerate(rows)]
            encoded = self._tokenise_words(rows)
        return self.stored_columns(encoded), [_first_subwords(encoded.word_ids(row)) for row in range(len(rows))]

    def _with_spaces(self, words: Sequence[str]) -> list[str]:
        return [self._space * (index > 0) + word for index, word in enumerate(words)]

    def _tokenise_words(self, rows: Sequence[Sequence[str]]) -> Any:
        return self.tokenizer(list(rows), is_split_into_words=True, truncation=True, max_length=self.max_tokens)

    def is_truncated(self, row: Row) -> bool:
        """Return whether a word was cut."""
        return row["words"] > sum(label != IGNORE_INDEX for label in row["labels"])

    def model_kwargs(self) -> dict[str, Any]:
        """Return one output per tag. A head for other tags is replaced by a new head."""
        return {
            "num_labels": len(self.info.classes),
            "id2label": dict(enumerate(self.info.classes)),
            "label2id": dict(self._label2id),
            "ignore_mismatched_sizes": True,
        }

    def peft_task_type(self) -> str:
        """Return TOKEN_CLS. peft then trains the whole head, because it is new."""
        return "TOKEN_CLS"

    def padding_row(self, row: Row) -> Row:
        """Return the same words without labels."""
        return {**row, "labels": [IGNORE_INDEX] * len(row["labels"]), "words": 0}

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Combine rows. labels: int64 (rows, tokens). words: int64 (rows,)."""
        batch = self.pad(rows)
        labels = self.pad_labels((row["labels"] for row in rows), batch["input_ids"].shape[1])
        return {**batch, "labels": labels, "words": torch.tensor([row["words"] for row in rows])}

    def count_loss_labels(self, batch: Batch) -> int:
        """Count the tagged words."""
        return int((batch["labels"] != IGNORE_INDEX).sum())

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Return the sum of the cross-entropy over the words, each times the weight of its true tag."""
        logits = model(**self.model_inputs(batch)).logits.float()
        return self._losses(logits, batch["labels"], "sum", self.spec.training.label_smoothing)

    def _losses(self, logits: torch.Tensor, labels: torch.Tensor, reduction: str, smoothing: float = 0.0) -> torch.Tensor:
        """Return the sum of the losses, or each loss (rows × tokens,). Tokens without a label have loss 0."""
        logits, labels, weights = logits.flatten(0, 1), labels.flatten(), self._weights.to(logits.device)
        return torch.nn.functional.cross_entropy(
            logits, labels, weights, ignore_index=IGNORE_INDEX, reduction=reduction, label_smoothing=smoothing
        )

    def score(self, model: Any, batch: Batch) -> Scores:
        """Return words and seen (words that are not cut) per row; loss, actual and predicted per seen word. No padding rows."""
        logits = model(**self.model_inputs(batch)).logits.float()
        labels, words = batch["labels"].cpu().numpy(), batch["words"].cpu().numpy()
        seen = labels != IGNORE_INDEX
        return {
            "words": words[words > 0],
            "seen": seen.sum(axis=1)[words > 0],
            "loss": self._losses(logits, batch["labels"], "none").cpu().numpy()[seen.flatten()],
            "actual": labels[seen],
            "predicted": logits.argmax(dim=-1).cpu().numpy()[seen],
        }

    def compute_metrics(self, scores: Scores) -> tuple[dict[str, float], dict[str, Any]]:
        """Return loss and accuracy of words, and precision, recall and f1 of entities as in seqeval. Details: by entity type."""
        count = len(scores["actual"])
        if not count:
            return {}, {}
        actual, predicted = self._tags(scores, "actual"), self._tags(scores, "predicted")
        types, counts = metrics.count_entities(self._entities(actual), self._entities(predicted))
        found = {
            "loss": scores["loss"].sum(dtype=np.float64) / count,
            "accuracy": (scores["actual"] == scores["predicted"]).mean(),
            **counts.micro(),
        }
        words = int(scores["words"].sum())
        tags = ClassCounts.from_class_ids(scores["actual"], scores["predicted"], len(self.info.classes))
        details = {"words": words, "wordsCut": words - count, "mostPredicted": tags.most_predicted(self.info.classes)}
        return metrics.drop_non_finite(found), {**metrics.class_details(types, counts), **details}

    def baseline(self, train: pa.Table, evaluation: pa.Table) -> dict[str, float]:
        """Return the metrics of always answering the most frequent tag. The loss is that of the tags' shares."""
        counts = np.array(self.info.counts) + 1
        labels = evaluation["labels"].to_pylist()
        seen = [sum(label != IGNORE_INDEX for label in row) for row in labels]
        actual = np.array([label for row in labels for label in row if label != IGNORE_INDEX], dtype=np.int64)
        weights = self._weights.to(torch.device("cpu"))
        logits = torch.log(torch.tensor(counts, dtype=torch.float32) * (1 if weights is None else weights))
        losses = self._losses(logits.expand(1, len(actual), -1), torch.from_numpy(actual), "none")
        predicted = np.full(len(actual), counts.argmax())
        words = constant.column(evaluation, "words")
        scores = {"words": words, "seen": np.array(seen), "loss": losses.numpy(), "actual": actual, "predicted": predicted}
        return self.compute_metrics(scores)[0]

    def predictions(self, scores: Scores) -> list[dict[str, Any]]:
        """Return the tags of the words that were not cut, the tags in the data, and the number of words that were cut."""
        rows = zip(self._tags(scores, "predicted"), self._tags(scores, "actual"), scores["words"].tolist(), strict=True)
        return [{"tags": tags, "expected": expected, "wordsCut": words - len(tags)} for tags, expected, words in rows]

    def _tags(self, scores: Scores, name: str) -> list[list[str]]:
        """Return the tags of each row, from an array of all words."""
        tags = (self.info.classes[number] for number in scores[name])
        return [list(itertools.islice(tags, seen)) for seen in scores["seen"].tolist()]

    def _entities(self, rows: Sequence[Sequence[str]]) -> list[list[metrics.Entity]]:
        return [metrics.entities(tags, self._prefixed) for tags in rows]

    @torch.no_grad()
    def answer(self, samples: Sequence[Sample]) -> list[SampleAnswer]:
        """Return the entities of each sample. White space separates its words."""
        return [self._answer(sample.text or "") for sample in samples]

    def _answer(self, text: str) -> SampleAnswer:
        words = text.split()
        if not words:
            return SampleAnswer(text=text[:200], entities=[])
        encoded, (firsts,) = self._tokenise([words])
        batch = self.pad([{name: values[0] for name, values in encoded.items()}])
        inputs = {name: tensor.to(self.model.device) for name, tensor in self.model_inputs(batch).items()}
        numbers = self.model(**inputs).logits[0].argmax(dim=-1)[firsts].tolist()
        found = metrics.entities([self.info.classes[number] for number in numbers], self._prefixed)
        named = [Entity(text=" ".join(words[first : last + 1]), label=kind) for kind, first, last in found]
        return SampleAnswer(text=text[:200], entities=named)


def _space_between_words(tokenizer: Any) -> str:
    """Return the string to put before a word (a space or nothing), so that it gets the same tokens as in running text.

    Byte-level tokenizers (RoBERTa, GPT-2, Llama 3) have other tokens for a word after a space. They treat a list of words
    without spaces as one long word. Other tokenizers add the space themselves.
    """
    running = tokenizer("a a a", add_special_tokens=False)["input_ids"]
    given = tokenizer(["a", "a", "a"], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    return "" if given == running else " "


def _first_subwords(word_ids: Sequence[int | None]) -> list[int]:
    """Return the position of the first subword of each word, in order."""
    pairs = enumerate(itertools.pairwise([None, *word_ids]))
    return [position for position, (previous, word) in pairs if word is not None and word != previous]


def _lost_words(encoded: Any, row: int, words: Sequence[str], max_tokens: int) -> set[int]:
    """Return the words without any token, except words that were cut at the end."""
    word_ids = encoded.word_ids(row)
    seen = {word for word in word_ids if word is not None}
    whole = len(word_ids) < max_tokens
    return set(range(len(words) if whole else max(seen, default=-1) + 1)) - seen


def _label_subwords(length: int, firsts: Sequence[int], labels: Sequence[int]) -> list[int]:
    pieces = [IGNORE_INDEX] * length
    for position, label in zip(firsts, labels, strict=False):  # fewer first subwords than words if words were cut
        pieces[position] = label
    return pieces
