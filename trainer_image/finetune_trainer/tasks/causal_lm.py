"""Causal language modelling: learns to continue texts like those of the data."""

from collections.abc import Mapping
from typing import Any

from finetune_trainer.tasks.base import IGNORE_INDEX, Row
from finetune_trainer.tasks.generation import LanguageModel, with_eos


class CausalLanguageModeling(LanguageModel):
    """One row per text. A text longer than maxTokens is split into several rows, so that nothing is lost."""

    def encode(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Tokenise texts. The last token of a piece is also the first of the next piece, where it is not predicted again."""
        rows: dict[str, list[Any]] = {"input_ids": [], "labels": []}
        for text in self.tokenizer(batch["text"])["input_ids"]:
            ids = with_eos(text, self.tokenizer)
            for start in range(0, len(ids) - 1, self.max_tokens - 1):
                piece = ids[start : start + self.max_tokens]
                rows["input_ids"].append(piece)
                rows["labels"].append([IGNORE_INDEX, *piece[1:]])
        return rows

    def is_truncated(self, row: Row) -> bool:
        return False
