"""What the tasks of language models share: rows of tokens with a loss on some of them, padded or packed, and answers."""

import abc
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from transformers.models.auto import modeling_auto

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec, Sample
from finetune_api.status import SampleAnswer
from finetune_trainer.runtime import device, heartbeat
from finetune_trainer.tasks import chat, figures
from finetune_trainer.tasks.base import IGNORED, TENSOR_CORE_MULTIPLE, Batch, DataInfo, Row, Scores, Task
from finetune_trainer.tasks.lengths import longest_input

FLASH_ATTENTION = "flash_attention_2"  # transformers' name for the one that takes rows of any length, in 16 bits
_ANSWER_TOKENS = 64
_LARGEST_EXPONENT = 700.0  # e to the power of more is no float64


class LanguageModel(Task):
    """A decoder that goes on with a text. Rows have ``input_ids`` and ``labels``; the first token of a row is never predicted.

    A batch also has ``keep``: (K,) int64, the positions whose next token has a label in any row, so that the model computes
    no other logits; over a vocabulary of 100,000 they are the largest tensor of all.
    """

    auto_model: ClassVar[str] = "AutoModelForCausalLM"

    def __init__(self, spec: FineTuneJobSpec, tokenizer: Any, config: Any, info: DataInfo) -> None:
        encoder = config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
        if encoder and not getattr(config, "is_decoder", False):
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                f"spec.task: {spec.task} needs a model that goes on with a text, and {config.model_type} is one that fills in "
                "hidden words; write masked-lm, or choose a decoder as spec.model",
            )
        super().__init__(spec, tokenizer, config, info)
        if any(sample.messages for sample in spec.samples or ()) and not tokenizer.chat_template:
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                "spec.samples: messages need a chat template, and the model has none; write text instead, or for sft "
                "spec.sft.chatTemplate: chatml",
            )
        for sample in spec.samples or ():
            self._sample_ids(sample)  # one that the template refuses is to be known before the training, not after it
        self._keeps = False
        # Asked here and not where rows are padded: a loader's worker, forked off, may not ask the GPU anything.
        self._multiple = TENSOR_CORE_MULTIPLE if device.has_gpu() else 1

    def peft_task(self) -> str | None:
        return "CAUSAL_LM"

    def prepare_model(self) -> None:
        self._keeps = takes(self.model, "logits_to_keep")

    # --- rows and batches ------------------------------------------------------------------------------------------------

    def blank(self, row: Row) -> Row:
        return {**row, "labels": [IGNORED] * len(row["labels"])}

    def collate(self, rows: Sequence[Row]) -> Batch:
        return self.pad([row["input_ids"] for row in rows], [row["labels"] for row in rows])

    def pad(self, inputs: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> Batch:
        """Rows of different lengths → (rows, tokens) int64, padded on the right, and ``keep``."""
        longest = max(len(ids) for ids in inputs)
        rounded = math.ceil(longest / self._multiple) * self._multiple
        width = max(longest, min(rounded, self.max_tokens))  # never beyond the positions that the model has
        input_ids = np.full((len(inputs), width), self.tokenizer.pad_token_id, dtype=np.int64)
        attention_mask, padded = np.zeros_like(input_ids), np.full_like(input_ids, IGNORED)
        for row, (ids, wanted) in enumerate(zip(inputs, labels, strict=True)):
            input_ids[row, : len(ids)], attention_mask[row, : len(ids)], padded[row, : len(ids)] = ids, 1, wanted
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": padded}
        return with_kept_positions({name: torch.from_numpy(values) for name, values in batch.items()})

    def count(self, batch: Batch) -> int:
        return int((batch["labels"][:, 1:] != IGNORED).sum())

    # --- training and evaluation -----------------------------------------------------------------------------------------

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        logits, targets = self.predict(model, batch)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")

    @torch.no_grad()
    def score(self, model: Any, batch: Batch) -> Scores:
        """Sums over each row: loss, labelled tokens, and those that the model would have chosen itself."""
        logits, targets = self.predict(model, batch)
        labelled = targets != IGNORED
        hits = (logits.argmax(dim=-1) == targets) & labelled
        return {
            "loss": -log_probabilities(logits, targets).sum(dim=1, dtype=torch.float64).cpu().numpy(),
            "count": labelled.sum(dim=1).cpu().numpy(),
            "hits": hits.sum(dim=1).cpu().numpy(),
        }

    def metrics(self, scores: Scores) -> tuple[dict[str, float], dict[str, Any]]:
        """loss per token, perplexity, and the share of tokens that the model would have chosen itself."""
        count = int(scores["count"].sum())
        if not count:
            return {}, {}
        loss = float(scores["loss"].sum() / count)
        perplexity = math.exp(min(loss, _LARGEST_EXPONENT))
        found = {"loss": loss, "perplexity": perplexity, "tokenAccuracy": scores["hits"].sum() / count}
        return figures.finite(found), {"tokens": count}

    def predict(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits in float32 (rows, positions, vocabulary) and the tokens to be predicted there (rows, positions)."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
        targets = batch["labels"][:, batch["keep"] + 1]
        if self._keeps:
            return model(**inputs, logits_to_keep=batch["keep"]).logits.float(), targets
        return model(**inputs).logits[:, batch["keep"]].float(), targets

    # --- answers ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def answer(self, samples: Sequence[Sample]) -> list[SampleAnswer]:
        """What the model goes on with, the likeliest token each time."""
        return [
            SampleAnswer(text=_last_said(sample)[:200], answer=self._go_on(sample)[:400])
            for sample in heartbeat.each(samples, "answering the samples")
        ]

    def _go_on(self, sample: Sample) -> str:
        ids = self._sample_ids(sample)
        positions = longest_input(self.config.model_type, getattr(self.config, "max_position_embeddings", None), None)
        ids = ids[-max(1, positions - _ANSWER_TOKENS) :]
        inputs = torch.tensor([ids], device=self.model.device)
        asked = transformers.GenerationConfig(
            max_new_tokens=min(_ANSWER_TOKENS, max(1, positions - len(ids))),
            do_sample=False,
            use_cache=True,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=end_tokens(self.model, self.tokenizer),
        )
        with torch.autocast(
            inputs.device.type, device.half_dtype(), enabled=self.model.config._attn_implementation == FLASH_ATTENTION
        ):
            output = self.model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=asked)
        return self.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True).strip()

    def _sample_ids(self, sample: Sample) -> list[int]:
        """One token at least: some texts have none."""
        if sample.messages:
            messages = [message.model_dump() for message in sample.messages]
            ids = chat.encode(self.tokenizer, messages, generation_prompt=True)
        else:
            ids = without_eos(self.tokenizer(sample.text)["input_ids"], self.tokenizer)
        return ids or [self.tokenizer.pad_token_id]

    @abc.abstractmethod
    def encode(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Texts or chats → ``input_ids`` and ``labels``, the first of which is always ignored."""


def _last_said(sample: Sample) -> str:
    return sample.messages[-1].content if sample.messages else sample.text or ""


def takes(model: Any, argument: str) -> bool:
    """Whether the model's forward, not that of its adapters, has the argument."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return argument in inspect.signature(base.forward).parameters


def without_eos(ids: Sequence[int], tokenizer: Any) -> list[int]:
    """A text that is to be gone on with: some tokenizers end it by themselves."""
    return list(ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids)


def with_eos(ids: Sequence[int], tokenizer: Any) -> list[int]:
    """A text that is at its end, so that the model learns to stop."""
    end = tokenizer.eos_token_id
    return list(ids) if end is None or (ids and ids[-1] == end) else [*ids, end]


def end_tokens(model: Any, tokenizer: Any) -> list[int] | None:
    """The tokens after which an answer is through."""
    given = model.generation_config.eos_token_id
    ends = {*(given if isinstance(given, list) else [given]), tokenizer.eos_token_id} - {None}
    return sorted(ends) or None


def log_probabilities(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of the targets, 0 where they are ignored: (rows, positions), from logits (rows, positions, vocabulary)."""
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return -losses.view(targets.shape)


def with_kept_positions(batch: Batch) -> Batch:
    """The batch with ``keep``; the first position where nothing is to be predicted, as the model must run all the same."""
    wanted = (batch["labels"][:, 1:] != IGNORED).any(dim=0).nonzero().flatten()
    return {**batch, "keep": wanted if len(wanted) else torch.zeros(1, dtype=torch.int64)}
