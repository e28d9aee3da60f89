"""Causal language modelling: to go on with texts like those of the data."""

from collections.abc import Mapping
from typing import Any

from finetune_trainer.tasks.base import IGNORED, Row
from finetune_trainer.tasks.generation import LanguageModel, with_eos


class CausalLanguageModeling(LanguageModel):
    """One row per text; a longer one is split into pieces of maxTokens, so that nothing is lost."""

    def encode(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Pieces of a text share a token: the last of one is the first of the next, where it is not predicted once more."""
        rows: dict[str, list[Any]] = {"input_ids": [], "labels": []}
        for text in self.tokenizer(batch["text"])["input_ids"]:
            ids = with_eos(text, self.tokenizer)
            for start in range(0, len(ids) - 1, self.max_tokens - 1):
                piece = ids[start : start + self.max_tokens]
                rows["input_ids"].append(piece)
                rows["labels"].append([IGNORED, *piece[1:]])
        return rows

    def is_cut(self, row: Row) -> bool:
        return False
