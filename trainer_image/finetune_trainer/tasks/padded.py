"""Base class of tasks whose rows are single texts, padded to the longest row of a batch."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.runtime import device
from finetune_trainer.tasks.base import IGNORE_INDEX, TENSOR_CORE_MULTIPLE, Batch, DataInfo, Row, Task

# The attention mask of a row is all ones until the row is padded. So padding creates it, and rows do not store it.
_STORED_INPUTS = ("input_ids", "token_type_ids")
_INPUTS = (*_STORED_INPUTS, "attention_mask")


class PaddedTask(Task):
    """A task on rows of tokens that are padded on the right. A classifier on a decoder needs this to find the last token."""

    def __init__(self, spec: FineTuneJobSpec, tokenizer: Any, config: Any, info: DataInfo) -> None:
        super().__init__(spec, tokenizer, config, info)
        self._pad_to_multiple_of = TENSOR_CORE_MULTIPLE if device.has_gpu() else 1
        self._forward_inputs: Sequence[str] = _INPUTS

    def prepare_model(self) -> None:
        """Find the inputs that the model accepts. Some tokenizers return token types for models that do not accept them."""
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        parameters = inspect.signature(model.forward).parameters
        self._forward_inputs = [name for name in _INPUTS if name in parameters]
        # A classifier on a decoder uses the pad token to find the last token of a row.
        model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id

    def stored_columns(self, encoded: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns of a tokenizer's result that rows store."""
        return {name: encoded[name] for name in _STORED_INPUTS if name in encoded}

    def model_inputs(self, batch: Batch) -> Batch:
        """Return the tensors of a batch that the model gets."""
        return {name: batch[name] for name in self._forward_inputs if name in batch}

    def pad(self, rows: Sequence[Row]) -> Batch:
        """Return the token columns of the rows as tensors (rows, tokens of the longest row), on the CPU."""
        longest = max(len(row["input_ids"]) for row in rows)
        rounded = -(-longest // self._pad_to_multiple_of) * self._pad_to_multiple_of
        width = max(longest, min(rounded, self.max_tokens))  # never beyond the positions of the model
        padded = self.tokenizer.pad(
            [self.stored_columns(row) for row in rows],
            padding="max_length",
            max_length=width,
            padding_side="right",
            return_attention_mask=True,
            return_tensors="pt",
        )
        return dict(padded)

    def pad_labels(self, labels: Iterable[Sequence[int]], width: int) -> torch.Tensor:
        """Return one label per token: int64 (rows, width), IGNORE_INDEX after the end of a row."""
        return torch.tensor([[*row, *[IGNORE_INDEX] * (width - len(row))] for row in labels], dtype=torch.int64)
