"""Supervised fine-tuning: learns to answer prompts and chats as the data does."""

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers

from finetune_api.spec import FineTuneJobSpec
from finetune_api.spec import SupervisedFineTuning as Options
from finetune_trainer.tasks import chat
from finetune_trainer.tasks.base import IGNORE_INDEX, Batch, DataInfo, Row
from finetune_trainer.tasks.generation import FLASH_ATTENTION, LanguageModel, forward_accepts, with_eos, with_logits_to_keep

log = logging.getLogger(__name__)

Encoded = tuple[list[int], list[bool]]  # tokens, and for each whether it has a label


class SupervisedFineTuning(LanguageModel):
    """Texts, prompts with completions, or chats. The loss is on all tokens, or only on those of the answers."""

    def __init__(self, spec: FineTuneJobSpec, tokenizer: Any, config: Any, info: DataInfo) -> None:
        self.options = spec.sft or Options()
        if info.format == "messages" or self.options.chat_template is not None:
            chat.set_chat_template(tokenizer, self.options.chat_template)
        super().__init__(spec, tokenizer, config, info)
        self.is_packing = False

    # --- before the model ------------------------------------------------------------------------------------------------

    def encode(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Tokenise rows. Leave out a row without labels, for example because its answer lies beyond maxTokens."""
        rows: dict[str, list[Any]] = {"input_ids": [], "labels": []}
        for ids, learned in self._encoded(batch):
            ids = ids[: self.max_tokens]
            labels = [token if learn else IGNORE_INDEX for token, learn in zip(ids, learned, strict=False)]
            labels[:1] = [IGNORE_INDEX]
            if any(label != IGNORE_INDEX for label in labels):
                rows["input_ids"].append(ids)
                rows["labels"].append(labels)
        return rows

    def _encoded(self, batch: Mapping[str, list[Any]]) -> Iterator[Encoded]:
        if self.info.format == "messages":
            yield from map(self._chat, batch["messages"])
        elif self.info.format == "prompt":
            prompts, whole = batch["prompt"], [a + b for a, b in zip(batch["prompt"], batch["completion"], strict=True)]
            for prompt, text in zip(self.tokenizer(prompts)["input_ids"], self.tokenizer(whole)["input_ids"], strict=True):
                ids = with_eos(text, self.tokenizer)
                # The answer starts where the tokens differ: the last token of the prompt may merge with what follows.
                start = chat.common_prefix_length(prompt, ids) if self.options.assistant_only_loss else 0
                yield ids, [position >= start for position in range(len(ids))]
        else:
            for text in self.tokenizer(batch["text"])["input_ids"]:
                ids = with_eos(text, self.tokenizer)
                yield ids, [True] * len(ids)

    def _chat(self, messages: chat.Messages) -> Encoded:
        if self.options.assistant_only_loss:
            return self._assistant_mask(messages)
        ids = chat.encode(self.tokenizer, messages)
        return ids, [True] * len(ids)

    @functools.cached_property
    def _assistant_mask(self) -> chat.AssistantMask:
        return chat.AssistantMask(self.tokenizer)

    # --- packing ---------------------------------------------------------------------------------------------------------

    def model_kwargs(self) -> dict[str, Any]:
        """Select flash attention for packing if it is installed: it separates rows by length, without a tokens × tokens mask."""
        packing = self.options.packing is not False and self._flash_packing()
        return {"attn_implementation": FLASH_ATTENTION} if packing else {}

    def prepare_model(self) -> None:
        """Enable packing if the spec asks for it (default: if flash attention is available) and the model keeps rows apart."""
        super().prepare_model()
        wanted = self._flash_packing() if self.options.packing is None else self.options.packing
        self.is_packing = wanted and supports_packing(self.model)
        if wanted and not self.is_packing:
            log.warning("spec.sft.packing: %s does not keep packed rows apart: rows are padded", type(self.model).__name__)

    def collate(self, rows: Sequence[Row]) -> Batch:
        return pack_rows(rows) if self.is_packing else super().collate(rows)

    def _flash_packing(self) -> bool:
        """Return whether flash attention is available. It computes only in 16 bits."""
        return self.spec.training.precision != "fp32" and transformers.utils.import_utils.is_flash_attn_2_available()


def pack_rows(rows: Sequence[Row]) -> Batch:
    """Concatenate rows to one row, (1, tokens) int64.

    There is no attention mask. Positions begin again at 0 in each row, and the model keeps the rows apart by them. The first
    token of a row is never predicted, so no token is predicted from another row.
    """
    batch = {
        "input_ids": torch.tensor([[token for row in rows for token in row["input_ids"]]]),
        "position_ids": torch.tensor([[position for row in rows for position in range(len(row["input_ids"]))]]),
        "labels": torch.tensor([[label for row in rows for label in row["labels"]]]),
    }
    return with_logits_to_keep(batch)


@torch.no_grad()
def supports_packing(model: Any) -> bool:
    """Return whether packed rows get the same logits as single rows. Only a test shows this: no model attribute states it."""
    if not forward_accepts(model, "position_ids"):
        return False
    if model.config._attn_implementation == FLASH_ATTENTION:
        return True  # this attention supports packing, and the test can't run if the model is still on the CPU
    tokens = torch.arange(1, 8, device=model.device) % model.config.get_text_config().vocab_size
    rows, training = (tokens, tokens.flip(0)[:5]), model.training
    packed = {
        "input_ids": torch.cat(rows)[None],
        "position_ids": torch.cat([torch.arange(len(row), device=model.device) for row in rows])[None],
    }
    model.eval()
    try:
        together = model(**packed).logits[0].float()
        alone = torch.cat([model(input_ids=row[None]).logits[0].float() for row in rows])
    finally:
        model.train(training)
    tolerance = 1e-4 if model.dtype == torch.float32 else 2e-2
    return bool((together - alone).abs().max() <= tolerance * alone.abs().max())
