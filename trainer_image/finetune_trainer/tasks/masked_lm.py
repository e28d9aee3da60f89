"""Masked language modelling: hidden words are to be found, others in each epoch."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec, MaskedLM, Sample
from finetune_api.status import Guess, SampleAnswer
from finetune_trainer.tasks import figures
from finetune_trainer.tasks.base import IGNORED, Batch, DataInfo, Row, Scores
from finetune_trainer.tasks.padded import PaddedTask

MASK = "[MASK]"  # how samples write it, whatever the model's own is
_GUESSES = 5
# Of the hidden tokens, as in BERT: most are the mask, some another token, the rest stay, to be doubted.
_MASKED, _REPLACED = 0.8, 0.1


class MaskedLanguageModeling(PaddedTask):
    """Text by text, or laid end to end and cut into pieces of maxTokens (``maskedLM.chunk``)."""

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
        self._ordinary = np.setdiff1d(np.arange(min(outputs, len(tokenizer))), self._special)
        self._hidden: torch.Tensor | None = None
        for index, sample in enumerate(spec.samples or ()):
            self._with_mask(sample.text or "", f"spec.samples[{index}].text: ")

    # --- rows ------------------------------------------------------------------------------------------------------------

    def encode(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """text → tokens. Rows without an ordinary token are left out, as there is nothing to hide in them."""
        rows = self._chunks(batch["text"]) if self._options.chunk else self._lines(batch["text"])
        return {"input_ids": [row for row in rows if not np.isin(row, self._special).all()]}

    def _lines(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, truncation=True, max_length=self.max_tokens)["input_ids"]

    def _chunks(self, texts: list[str]) -> list[list[int]]:
        """All tokens, with a separator behind each text, in pieces as long as may be; the last has what is left."""
        encoded = self.tokenizer(texts, return_special_tokens_mask=True, verbose=False)  # verbose would warn of the length
        masks = encoded["special_tokens_mask"]
        bodies = [_ordinary_part(ids, mask) for ids, mask in zip(encoded["input_ids"], masks, strict=True)]
        filled = next((row for row, body in enumerate(bodies) if body), None)
        if filled is None:
            return []
        before, after = _frame(encoded["input_ids"][filled], masks[filled])
        separator = [] if self.tokenizer.sep_token_id is None else [self.tokenizer.sep_token_id]
        stream = list(itertools.chain.from_iterable(body + separator for body in bodies if body))
        size = self.max_tokens - len(before) - len(after)
        return [[*before, *stream[start : start + size], *after] for start in range(0, len(stream), size)]

    def is_cut(self, row: Row) -> bool:
        """Nothing is cut off where texts are laid end to end."""
        return not self._options.chunk and super().is_cut(row)

    def vary(self, row: Row, random: np.random.Generator) -> Row:
        """Hide a share of the ordinary tokens, one at least: 80 % masked, 10 % replaced by any other, 10 % left as they are."""
        ids = np.array(row["input_ids"])
        candidates = np.flatnonzero(~np.isin(ids, self._special))
        hidden = candidates[random.random(len(candidates)) < self._options.probability]
        if not len(hidden):
            hidden = random.choice(candidates, size=1)
        labels = np.full(len(ids), IGNORED)
        labels[hidden] = ids[hidden]
        fate = random.random(len(hidden))
        others = random.choice(self._ordinary, size=len(hidden))
        ids[hidden] = np.where(fate < _MASKED, self.tokenizer.mask_token_id, ids[hidden])
        replaced = (fate >= _MASKED) & (fate < _MASKED + _REPLACED)
        ids[hidden[replaced]] = others[replaced]
        return {**row, "input_ids": ids.tolist(), "labels": labels.tolist()}

    def blank(self, row: Row) -> Row:
        """The same tokens, none of them to be found."""
        return {**row, "labels": [IGNORED] * len(row["input_ids"])}

    def collate(self, rows: Sequence[Row]) -> Batch:
        """hidden: where hidden tokens are in the batch laid flat, int64 (hidden tokens,); labels: what they are, same shape."""
        batch = self.pad(rows)
        labels = self.pad_labels((row["labels"] for row in rows), batch["input_ids"].shape[1]).flatten()
        hidden = (labels != IGNORED).nonzero().squeeze(1)
        return {**batch, "hidden": hidden, "labels": labels[hidden]}

    def count(self, batch: Batch) -> int:
        """Hidden tokens."""
        return len(batch["hidden"])

    # --- model -----------------------------------------------------------------------------------------------------------

    def prepare_model(self) -> None:
        """Let the projection onto the vocabulary see the hidden positions alone.

        It is the largest layer by far, and seven of eight positions would be computed for nothing. A hook does so for any model,
        and leaves its forward() whole, which DDP needs to be called.
        """
        super().prepare_model()
        projection = self.model.get_output_embeddings()
        if projection is not None:
            projection.register_forward_pre_hook(self._select)

    def _select(self, _: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Hook: states (rows, tokens, size) → (hidden, size) while there is something hidden."""
        states = arguments[0]
        if self._hidden is None or states.dim() != 3:
            return None
        return (states.flatten(0, 1)[self._hidden], *arguments[1:])

    def _logits(self, model: Any, inputs: Batch, hidden: torch.Tensor) -> torch.Tensor:
        """Logits at the hidden positions: float32 (hidden, vocabulary)."""
        self._hidden = hidden
        try:
            logits = model(**inputs).logits
        finally:
            self._hidden = None
        if logits.dim() == 3:  # a model that projects by other means
            logits = logits.flatten(0, 1)[hidden]
        return logits.float()

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Cross-entropy over the hidden tokens."""
        logits = self._logits(model, self.inputs(batch), batch["hidden"])
        return torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="sum")

    def score(self, model: Any, batch: Batch) -> Scores:
        """By hidden token: loss, and whether the likeliest guess is right."""
        logits = self._logits(model, self.inputs(batch), batch["hidden"])
        losses = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
        return {"loss": losses.cpu().numpy(), "found": (logits.argmax(dim=-1) == batch["labels"]).cpu().numpy()}

    def metrics(self, scores: Scores) -> tuple[dict[str, float], dict[str, Any]]:
        """loss, perplexity (its exponential) and accuracy, of the hidden tokens."""
        count = len(scores["loss"])
        if not count:
            return {}, {}
        loss = float(scores["loss"].sum(dtype=np.float64)) / count
        perplexity = math.exp(loss) if loss < 700 else math.inf  # beyond, it is no float
        return figures.finite({"loss": loss, "perplexity": perplexity, "accuracy": scores["found"].mean()}), {"tokens": count}

    # --- samples ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def answer(self, samples: Sequence[Sample]) -> list[SampleAnswer]:
        """The five best fillings of the first [MASK] of each. Raises FineTuneError where there is none."""
        return [self._answer(sample.text or "") for sample in samples]

    def _answer(self, text: str) -> SampleAnswer:
        ids = self._with_mask(text)
        inputs = {name: tensor.to(self.model.device) for name, tensor in self.inputs(self.pad([{"input_ids": ids}])).items()}
        hidden = torch.tensor([ids.index(self.tokenizer.mask_token_id)], device=self.model.device)
        scores, tokens = self._logits(self.model, inputs, hidden)[0].softmax(dim=-1).topk(_GUESSES)
        guesses = [
            Guess(token=self.tokenizer.decode([token]).strip(), score=round(score, 4))
            for token, score in zip(tokens.tolist(), scores.tolist(), strict=True)
            if math.isfinite(score)  # of a model that diverged
        ]
        return SampleAnswer(text=text[:200], guesses=guesses)

    def _with_mask(self, text: str, field: str = "") -> list[int]:
        """Tokens of a sample."""
        ids: list[int] = self._lines([text.replace(MASK, self.tokenizer.mask_token)])[0]
        if self.tokenizer.mask_token_id not in ids:
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                f"{field}{text[:80]!r} has no {MASK} in its first {self.max_tokens} tokens; write it where a word is to be found",
            )
        return ids


def _ordinary_part(ids: list[int], special: list[int]) -> list[int]:
    return [token for token, is_special in zip(ids, special, strict=True) if not is_special]


def _frame(ids: list[int], special: list[int]) -> tuple[list[int], list[int]]:
    """Special tokens before and after the ordinary ones."""
    return ids[: special.index(0)], ids[len(ids) - special[::-1].index(0) :]
