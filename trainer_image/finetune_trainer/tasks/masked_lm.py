"""Masked language modelling: learns to find hidden words. Each epoch hides other words."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec, MaskedLM, Sample
from finetune_api.status import Guess, SampleAnswer
from finetune_trainer.tasks import constant, metrics
from finetune_trainer.tasks.base import IGNORE_INDEX, Batch, DataInfo, Row, Scores
from finetune_trainer.tasks.padded import PaddedTask

MASK = "[MASK]"  # the mask in samples, whatever the model's own mask token is
_NUM_GUESSES = 5
# Shares of the hidden tokens, as in BERT: most become the mask, some become another token, the rest stay unchanged.
_MASK_SHARE, _RANDOM_SHARE = 0.8, 0.1


class MaskedLanguageModeling(PaddedTask):
    """One row per text, or all texts concatenated and cut into pieces of maxTokens (``maskedLM.chunk``)."""

    auto_model = "AutoModelForMaskedLM"

    def __init__(self, spec: FineTuneJobSpec, tokenizer: Any, config: Any, info: DataInfo) -> None:
        super().__init__(spec, tokenizer, config, info)
        if tokenizer.mask_token is None:
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                "spec.model: its tokenizer has no mask token; choose a model such as BERT or RoBERTa, or write task: causal-lm "
                "for a model that continues texts",
            )
        self._options = spec.masked_lm or MaskedLM()
        self._special = np.array(sorted(set(tokenizer.all_special_ids)))
        outputs = getattr(config.get_text_config(), "vocab_size", len(tokenizer))
        self._replacement_ids = np.setdiff1d(np.arange(min(outputs, len(tokenizer))), self._special)
        self._masked_positions: torch.Tensor | None = None
        for index, sample in enumerate(spec.samples or ()):
            self._with_mask(sample.text or "", f"spec.samples[{index}].text: ")

    # --- rows ------------------------------------------------------------------------------------------------------------

    def encode(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Tokenise texts. Rows without an ordinary token are left out, because they have nothing to hide."""
        rows = self._chunks(batch["text"]) if self._options.chunk else self._tokenise_texts(batch["text"])
        return {"input_ids": [row for row in rows if not np.isin(row, self._special).all()]}

    def _tokenise_texts(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, truncation=True, max_length=self.max_tokens)["input_ids"]

    def _chunks(self, texts: list[str]) -> list[list[int]]:
        """Concatenate the tokens, with a separator after each text, and cut them into pieces of maximum length."""
        encoded = self.tokenizer(texts, return_special_tokens_mask=True, verbose=False)  # verbose would warn about the length
        masks = encoded["special_tokens_mask"]
        bodies = [_without_special_tokens(ids, mask) for ids, mask in zip(encoded["input_ids"], masks, strict=True)]
        filled = next((row for row, body in enumerate(bodies) if body), None)
        if filled is None:
            return []
        before, after = _special_affixes(encoded["input_ids"][filled], masks[filled])
        separator = [] if self.tokenizer.sep_token_id is None else [self.tokenizer.sep_token_id]
        stream = list(itertools.chain.from_iterable(body + separator for body in bodies if body))
        size = self.max_tokens - len(before) - len(after)
        return [[*before, *stream[start : start + size], *after] for start in range(0, len(stream), size)]

    def is_truncated(self, row: Row) -> bool:
        """Concatenated texts are never truncated."""
        return not self._options.chunk and super().is_truncated(row)

    def augment(self, row: Row, random: np.random.Generator) -> Row:
        """Hide a share of the ordinary tokens, at least one: mask 80 %, replace 10 % by another token, leave 10 % unchanged."""
        ids = np.array(row["input_ids"])
        candidates = np.flatnonzero(~np.isin(ids, self._special))
        masked = candidates[random.random(len(candidates)) < self._options.probability]
        if not len(masked):
            masked = random.choice(candidates, size=1)
        labels = np.full(len(ids), IGNORE_INDEX)
        labels[masked] = ids[masked]
        draw = random.random(len(masked))
        others = random.choice(self._replacement_ids, size=len(masked))
        ids[masked] = np.where(draw < _MASK_SHARE, self.tokenizer.mask_token_id, ids[masked])
        replaced = (draw >= _MASK_SHARE) & (draw < _MASK_SHARE + _RANDOM_SHARE)
        ids[masked[replaced]] = others[replaced]
        return {**row, "input_ids": ids.tolist(), "labels": labels.tolist()}

    def padding_row(self, row: Row) -> Row:
        """Return the same tokens without labels."""
        return {**row, "labels": [IGNORE_INDEX] * len(row["input_ids"])}

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Combine rows. masked_positions: indices of hidden tokens in the flattened batch, int64 (hidden tokens,).

        labels: the hidden tokens, same shape.
        """
        batch = self.pad(rows)
        labels = self.pad_labels((row["labels"] for row in rows), batch["input_ids"].shape[1]).flatten()
        masked = (labels != IGNORE_INDEX).nonzero().squeeze(1)
        return {**batch, "masked_positions": masked, "labels": labels[masked]}

    def count_loss_labels(self, batch: Batch) -> int:
        """Count the hidden tokens."""
        return len(batch["masked_positions"])

    # --- model -----------------------------------------------------------------------------------------------------------

    def prepare_model(self) -> None:
        """Project only the hidden positions onto the vocabulary.

        The projection is by far the largest layer, and the loss does not need seven of eight positions. A hook works for
        any model, and does not replace its forward(), which DDP must call.
        """
        super().prepare_model()
        projection = self.model.get_output_embeddings()
        if projection is not None:
            projection.register_forward_pre_hook(self._select_masked)

    def _select_masked(self, _: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Hook: reduce states (rows, tokens, size) to (hidden, size) while masked positions are set."""
        states = arguments[0]
        if self._masked_positions is None or states.dim() != 3:
            return None
        return (states.flatten(0, 1)[self._masked_positions], *arguments[1:])

    def _logits(self, model: Any, inputs: Batch, masked: torch.Tensor) -> torch.Tensor:
        """Return the logits at the hidden positions: float32 (hidden, vocabulary)."""
        self._masked_positions = masked
        try:
            logits = model(**inputs).logits
        finally:
            self._masked_positions = None
        if logits.dim() == 3:  # the model does not use this projection
            logits = logits.flatten(0, 1)[masked]
        return logits.float()

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Return the sum of the cross-entropy over the hidden tokens."""
        logits = self._logits(model, self.model_inputs(batch), batch["masked_positions"])
        smoothing = self.spec.training.label_smoothing
        return torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="sum", label_smoothing=smoothing)

    def score(self, model: Any, batch: Batch) -> Scores:
        """Return for each hidden token the loss, and whether the most likely token is right."""
        logits = self._logits(model, self.model_inputs(batch), batch["masked_positions"])
        losses = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
        return {"loss": losses.cpu().numpy(), "correct": (logits.argmax(dim=-1) == batch["labels"]).cpu().numpy()}

    def compute_metrics(self, scores: Scores) -> tuple[dict[str, float], dict[str, Any]]:
        """Return loss, perplexity (the exponential of the loss) and accuracy of the hidden tokens."""
        count = len(scores["loss"])
        if not count:
            return {}, {}
        loss = float(scores["loss"].sum(dtype=np.float64)) / count
        perplexity = math.exp(loss) if loss < 700 else math.inf  # a larger result does not fit a float
        found = {"loss": loss, "perplexity": perplexity, "accuracy": scores["correct"].mean()}
        return metrics.drop_non_finite(found), {"tokens": count}

    def baseline(self, train: pa.Table, evaluation: pa.Table) -> dict[str, float]:
        """Return the metrics of a unigram model on all ordinary tokens, of which the hidden ones are a random sample."""
        learned, targets = (constant.tokens(table, "input_ids", self._special) for table in (train, evaluation))
        losses, most = constant.unigram_losses(learned, targets, len(self.tokenizer))
        return self.compute_metrics({"loss": losses, "correct": targets == most})[0]

    # --- samples ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def answer(self, samples: Sequence[Sample]) -> list[SampleAnswer]:
        """Return the five best guesses for the first [MASK] of each sample. Raise FineTuneError if a sample has no [MASK]."""
        return [self._answer(sample.text or "") for sample in samples]

    def _answer(self, text: str) -> SampleAnswer:
        ids = self._with_mask(text)
        batch = self.pad([{"input_ids": ids}])
        inputs = {name: tensor.to(self.model.device) for name, tensor in self.model_inputs(batch).items()}
        masked = torch.tensor([ids.index(self.tokenizer.mask_token_id)], device=self.model.device)
        scores, tokens = self._logits(self.model, inputs, masked)[0].softmax(dim=-1).topk(_NUM_GUESSES)
        guesses = [
            Guess(token=self.tokenizer.decode([token]).strip(), score=round(score, 4))
            for token, score in zip(tokens.tolist(), scores.tolist(), strict=True)
            if math.isfinite(score)  # a model that diverged gives NaN
        ]
        return SampleAnswer(text=text[:200], guesses=guesses)

    def _with_mask(self, text: str, field: str = "") -> list[int]:
        """Return the tokens of a sample. Raise FineTuneError if it has no mask."""
        ids: list[int] = self._tokenise_texts([text.replace(MASK, self.tokenizer.mask_token)])[0]
        if self.tokenizer.mask_token_id not in ids:
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                f"{field}{text[:80]!r} has no {MASK} in its first {self.max_tokens} tokens; "
                "write it in place of the word to predict",
            )
        return ids


def _without_special_tokens(ids: list[int], special: list[int]) -> list[int]:
    return [token for token, is_special in zip(ids, special, strict=True) if not is_special]


def _special_affixes(ids: list[int], special: list[int]) -> tuple[list[int], list[int]]:
    """Return the special tokens before and after the ordinary tokens."""
    return ids[: special.index(0)], ids[len(ids) - special[::-1].index(0) :]
