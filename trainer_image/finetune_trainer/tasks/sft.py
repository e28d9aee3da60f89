"""Supervised fine-tuning: to answer prompts and chats as the data does."""

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers

from finetune_api.spec import FineTuneJobSpec
from finetune_api.spec import SupervisedFineTuning as Options
from finetune_trainer.tasks import chat
from finetune_trainer.tasks.base import IGNORED, Batch, DataInfo, Row
from finetune_trainer.tasks.generation import FLASH_ATTENTION, LanguageModel, takes, with_eos, with_kept_positions

log = logging.getLogger(__name__)

Encoded = tuple[list[int], list[bool]]  # tokens, and for each whether it is to be learned


class SupervisedFineTuning(LanguageModel):
    """Texts, prompts with completions, or chats; the loss on all tokens, or on those of the answers alone."""

    def __init__(self, spec: FineTuneJobSpec, tokenizer: Any, config: Any, info: DataInfo) -> None:
        self.options = spec.sft or Options()
        if info.format == "messages" or self.options.chat_template is not None:
            chat.prepare(tokenizer, self.options.chat_template)
        super().__init__(spec, tokenizer, config, info)
        self.packs = False

    # --- before the model ------------------------------------------------------------------------------------------------

    def encode(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """A row that has nothing to be learned (as its answer lies behind maxTokens) is left out."""
        rows: dict[str, list[Any]] = {"input_ids": [], "labels": []}
        for ids, learned in self._encoded(batch):
            ids = ids[: self.max_tokens]
            labels = [token if learn else IGNORED for token, learn in zip(ids, learned, strict=False)]
            labels[:1] = [IGNORED]
            if any(label != IGNORED for label in labels):
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
                # Where the two part; not after so many tokens, as the last of a prompt may merge with what follows.
                start = chat.common_length(prompt, ids) if self.options.assistant_only_loss else 0
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

    def model_arguments(self) -> dict[str, Any]:
        """Attention over rows laid end to end by their lengths, where that is installed: no mask of all against all."""
        packing = self.options.packing is not False and self._fast_packing()
        return {"attn_implementation": FLASH_ATTENTION} if packing else {}

    def prepare_model(self) -> None:
        """Pack where it is asked for, or where it is fast, if the model keeps the rows apart."""
        super().prepare_model()
        wanted = self._fast_packing() if self.options.packing is None else self.options.packing
        self.packs = wanted and keeps_rows_apart(self.model)
        if wanted and not self.packs:
            log.warning("spec.sft.packing: %s does not keep packed rows apart: rows are padded", type(self.model).__name__)

    def collate(self, rows: Sequence[Row]) -> Batch:
        return pack_rows(rows) if self.packs else super().collate(rows)

    def _fast_packing(self) -> bool:
        """Whether there is that attention; it computes in 16 bits only."""
        return self.spec.training.precision != "fp32" and transformers.utils.import_utils.is_flash_attn_2_available()


def pack_rows(rows: Sequence[Row]) -> Batch:
    """Rows end to end as one row, (1, tokens) int64. Positions begin anew with each, by which the model tells them apart, as
    there is no attention mask; as no row's first token is predicted, none is predicted from another row."""
    batch = {
        "input_ids": torch.tensor([[token for row in rows for token in row["input_ids"]]]),
        "position_ids": torch.tensor([[position for row in rows for position in range(len(row["input_ids"]))]]),
        "labels": torch.tensor([[label for row in rows for label in row["labels"]]]),
    }
    return with_kept_positions(batch)


@torch.no_grad()
def keeps_rows_apart(model: Any) -> bool:
    """Whether packed rows get the same logits as each on its own: tried out, as nothing about a model says so."""
    if not takes(model, "position_ids"):
        return False
    if model.config._attn_implementation == FLASH_ATTENTION:
        return True  # made for it, and it doesn't run where the model may still be
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
