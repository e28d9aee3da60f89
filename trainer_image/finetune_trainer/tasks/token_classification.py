"""Token classification: a tag for each word, as in the recognition of names."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec, Sample
from finetune_api.status import Entity, SampleAnswer
from finetune_trainer.tasks import figures
from finetune_trainer.tasks.base import IGNORED, Batch, DataInfo, Row, Scores
from finetune_trainer.tasks.padded import PaddedTask
from finetune_trainer.tasks.weights import ClassWeights


class TokenClassification(PaddedTask):
    """The first piece of a word carries its tag; other pieces, and special tokens, weigh nothing.

    Words beyond maxTokens are seen neither in training nor in evaluation; an evaluation says in its details how many they are.
    """

    auto_model = "AutoModelForTokenClassification"

    def __init__(self, spec: FineTuneJobSpec, tokenizer: Any, config: Any, info: DataInfo) -> None:
        super().__init__(spec, tokenizer, config, info)
        if not tokenizer.is_fast:
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                "spec.model: its tokenizer is written in Python and does not say which word a token belongs to; choose a model "
                "that has a tokenizer.json",
            )
        self._weights = ClassWeights(spec, info)
        self._numbers = {name: number for number, name in enumerate(info.classes)}
        self._prefixed = figures.has_prefixes(info.classes)
        self._space = _space_between_words(tokenizer)

    def encode(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """tokens (words) and tags → tokens, labels, and ``words``: how many the row has, seen or cut."""
        encoded, firsts = self._tokenise(batch["tokens"])
        encoded["labels"] = [
            _label_pieces(len(ids), first, [self._numbers[tag] for tag in tags])
            for ids, first, tags in zip(encoded["input_ids"], firsts, batch["tags"], strict=True)
        ]
        encoded["words"] = [len(words) for words in batch["tokens"]]
        return encoded

    def _tokenise(self, rows: Sequence[Sequence[str]]) -> tuple[dict[str, list[Any]], list[list[int]]]:
        """Columns of tokens, and for each row where the first piece of each of its words is; those of words cut are missing."""
        rows = [self._spaced(words) for words in rows]
        encoded = self._pieces(rows)
        # A word that the tokenizer leaves nothing of (a control character, say) would lose its tag, and shift those behind it.
        lost = {row: _lost_words(encoded, row, words, self.max_tokens) for row, words in enumerate(rows)}
        if any(lost.values()):
            known = self.tokenizer.unk_token or "?"
            rows = [[known if i in lost[row] else word for i, word in enumerate(words)] for row, words in enumerate(rows)]
            encoded = self._pieces(rows)
        return self.kept(encoded), [_first_pieces(encoded.word_ids(row)) for row in range(len(rows))]

    def _spaced(self, words: Sequence[str]) -> list[str]:
        return [self._space * (index > 0) + word for index, word in enumerate(words)]

    def _pieces(self, rows: Sequence[Sequence[str]]) -> Any:
        return self.tokenizer(list(rows), is_split_into_words=True, truncation=True, max_length=self.max_tokens)

    def is_cut(self, row: Row) -> bool:
        """Whether a word was cut."""
        return row["words"] > sum(label != IGNORED for label in row["labels"])

    def model_arguments(self) -> dict[str, Any]:
        """One output a tag; a head for other tags is replaced by a fresh one."""
        return {
            "num_labels": len(self.info.classes),
            "id2label": dict(enumerate(self.info.classes)),
            "label2id": dict(self._numbers),
            "ignore_mismatched_sizes": True,
        }

    def peft_task(self) -> str:
        """The head is fresh: it is trained whole."""
        return "TOKEN_CLS"

    def blank(self, row: Row) -> Row:
        """The same words with tags that weigh nothing."""
        return {**row, "labels": [IGNORED] * len(row["labels"]), "words": 0}

    def collate(self, rows: Sequence[Row]) -> Batch:
        """labels: int64 (rows, tokens); words: int64 (rows,)."""
        batch = self.pad(rows)
        labels = self.pad_labels((row["labels"] for row in rows), batch["input_ids"].shape[1])
        return {**batch, "labels": labels, "words": torch.tensor([row["words"] for row in rows])}

    def count(self, batch: Batch) -> int:
        """Tagged words."""
        return int((batch["labels"] != IGNORED).sum())

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Cross-entropy over the words, each times the weight of its true tag."""
        return self._losses(model(**self.inputs(batch)).logits.float(), batch["labels"], "sum")

    def _losses(self, logits: torch.Tensor, labels: torch.Tensor, reduction: str) -> torch.Tensor:
        """The sum, or each of (rows × tokens,); 0 where nothing is to be tagged."""
        logits, labels, weights = logits.flatten(0, 1), labels.flatten(), self._weights.on(logits.device)
        return torch.nn.functional.cross_entropy(logits, labels, weights, ignore_index=IGNORED, reduction=reduction)

    def score(self, model: Any, batch: Batch) -> Scores:
        """By row: words, seen (those not cut). By word that was seen: loss, actual and predicted tag. Without blank rows."""
        logits = model(**self.inputs(batch)).logits.float()
        labels, words = batch["labels"].cpu().numpy(), batch["words"].cpu().numpy()
        seen = labels != IGNORED
        return {
            "words": words[words > 0],
            "seen": seen.sum(axis=1)[words > 0],
            "loss": self._losses(logits, batch["labels"], "none").cpu().numpy()[seen.flatten()],
            "actual": labels[seen],
            "predicted": logits.argmax(dim=-1).cpu().numpy()[seen],
        }

    def metrics(self, scores: Scores) -> tuple[dict[str, float], dict[str, Any]]:
        """loss and accuracy of words; precision, recall and f1 of entities, as seqeval has them. Details: by type of entity."""
        count = len(scores["actual"])
        if not count:
            return {}, {}
        actual, predicted = self._tags(scores, "actual"), self._tags(scores, "predicted")
        types, tally = figures.entity_tally(self._entities(actual), self._entities(predicted))
        found = {
            "loss": scores["loss"].sum(dtype=np.float64) / count,
            "accuracy": (scores["actual"] == scores["predicted"]).mean(),
            **tally.micro(),
        }
        words = int(scores["words"].sum())
        return figures.finite(found), {**figures.describe(types, tally), "words": words, "wordsCut": words - count}

    def predictions(self, scores: Scores) -> list[dict[str, Any]]:
        """tags of the words that were seen, what the data expected, and the number of words cut."""
        rows = zip(self._tags(scores, "predicted"), self._tags(scores, "actual"), scores["words"].tolist(), strict=True)
        return [{"tags": tags, "expected": expected, "wordsCut": words - len(tags)} for tags, expected, words in rows]

    def _tags(self, scores: Scores, name: str) -> list[list[str]]:
        """Tags of each row, taken from an array of all words."""
        tags = (self.info.classes[number] for number in scores[name])
        return [list(itertools.islice(tags, seen)) for seen in scores["seen"].tolist()]

    def _entities(self, rows: Sequence[Sequence[str]]) -> list[list[figures.Entity]]:
        return [figures.entities(tags, self._prefixed) for tags in rows]

    @torch.no_grad()
    def answer(self, samples: Sequence[Sample]) -> list[SampleAnswer]:
        """Entities of each sample; its words are what stands between spaces."""
        return [self._answer(sample.text or "") for sample in samples]

    def _answer(self, text: str) -> SampleAnswer:
        words = text.split()
        if not words:
            return SampleAnswer(text=text[:200], entities=[])
        encoded, (firsts,) = self._tokenise([words])
        batch = self.pad([{name: values[0] for name, values in encoded.items()}])
        inputs = {name: tensor.to(self.model.device) for name, tensor in self.inputs(batch).items()}
        numbers = self.model(**inputs).logits[0].argmax(dim=-1)[firsts].tolist()
        found = figures.entities([self.info.classes[number] for number in numbers], self._prefixed)
        named = [Entity(text=" ".join(words[first : last + 1]), label=kind) for kind, first, last in found]
        return SampleAnswer(text=text[:200], entities=named)


def _space_between_words(tokenizer: Any) -> str:
    """What must stand before a word for its pieces to be those of running text.

    Byte-level tokenizers (RoBERTa, GPT-2, Llama 3) have other tokens for a word with a space before it, and given words one by
    one, take them for one long word. Others put the space there themselves.
    """
    running = tokenizer("a a a", add_special_tokens=False)["input_ids"]
    given = tokenizer(["a", "a", "a"], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    return "" if given == running else " "


def _first_pieces(word_ids: Sequence[int | None]) -> list[int]:
    """Positions of the first piece of each word, in order."""
    pairs = enumerate(itertools.pairwise([None, *word_ids]))
    return [position for position, (previous, word) in pairs if word is not None and word != previous]


def _lost_words(encoded: Any, row: int, words: Sequence[str], max_tokens: int) -> set[int]:
    """Words that have no piece, those apart that were cut off the end."""
    word_ids = encoded.word_ids(row)
    seen = {word for word in word_ids if word is not None}
    whole = len(word_ids) < max_tokens
    return set(range(len(words) if whole else max(seen, default=-1) + 1)) - seen


def _label_pieces(length: int, firsts: Sequence[int], labels: Sequence[int]) -> list[int]:
    pieces = [IGNORED] * length
    for position, label in zip(firsts, labels, strict=False):  # fewer pieces than words where some were cut
        pieces[position] = label
    return pieces
