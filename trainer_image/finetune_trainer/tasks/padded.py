"""What the tasks share whose rows are texts, one by one, padded to the longest of a batch."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.runtime import device
from finetune_trainer.tasks.base import IGNORED, TENSOR_CORE_MULTIPLE, Batch, DataInfo, Row, Task

# The mask is all ones before padding: it is made then, and not kept.
_KEPT = ("input_ids", "token_type_ids")
_INPUTS = (*_KEPT, "attention_mask")


class PaddedTask(Task):
    """A task on rows of tokens, padded on the right, where classifiers on decoders look for the last token too."""

    def __init__(self, spec: FineTuneJobSpec, tokenizer: Any, config: Any, info: DataInfo) -> None:
        super().__init__(spec, tokenizer, config, info)
        self._multiple = TENSOR_CORE_MULTIPLE if device.has_gpu() else 1
        self._accepted: Sequence[str] = _INPUTS

    def prepare_model(self) -> None:
        """See what the model takes: some tokenizers give token types to models that know none."""
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        parameters = inspect.signature(model.forward).parameters
        self._accepted = [name for name in _INPUTS if name in parameters]
        # A classifier on a decoder finds the last token of a row by it.
        model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id

    def kept(self, encoded: Mapping[str, Any]) -> dict[str, Any]:
        """Columns of a tokenizer's result that rows are made of."""
        return {name: encoded[name] for name in _KEPT if name in encoded}

    def inputs(self, batch: Batch) -> Batch:
        """What the model gets of a batch."""
        return {name: batch[name] for name in self._accepted if name in batch}

    def pad(self, rows: Sequence[Row]) -> Batch:
        """Token columns of the rows as tensors (rows, tokens of the longest), on the CPU."""
        longest = max(len(row["input_ids"]) for row in rows)
        rounded = -(-longest // self._multiple) * self._multiple
        width = max(longest, min(rounded, self.max_tokens))  # never beyond the positions that the model has
        padded = self.tokenizer.pad(
            [self.kept(row) for row in rows],
            padding="max_length",
            max_length=width,
            padding_side="right",
            return_attention_mask=True,
            return_tensors="pt",
        )
        return dict(padded)

    def pad_labels(self, labels: Iterable[Sequence[int]], width: int) -> torch.Tensor:
        """One label a token: int64 (rows, width), IGNORED beyond the end of a row."""
        return torch.tensor([[*row, *[IGNORED] * (width - len(row))] for row in labels], dtype=torch.int64)
