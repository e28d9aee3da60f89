"""Base class of the tasks of language models: padded or packed rows with a loss on some tokens, and generated answers."""

import abc
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
import transformers
from transformers.models.auto import modeling_auto

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec, Sample
from finetune_api.status import SampleAnswer
from finetune_trainer.runtime import device, heartbeat
from finetune_trainer.tasks import chat, constant, metrics
from finetune_trainer.tasks.base import IGNORE_INDEX, TENSOR_CORE_MULTIPLE, Batch, DataInfo, Row, Scores, Task
from finetune_trainer.tasks.lengths import max_input_length

FLASH_ATTENTION = "flash_attention_2"  # transformers' name for the attention that accepts rows of different lengths, in 16 bits
_MAX_NEW_TOKENS = 64
_MAX_EXPONENT = 700.0  # e to the power of a larger number does not fit float64


class LanguageModel(Task):
    """A decoder that continues a text. Rows have ``input_ids`` and ``labels``; the first token of a row is never predicted.

    A batch also has ``logits_to_keep``: (K,) int64, the positions whose next token has a label in any row. The model computes
    logits only there, because with a vocabulary of 100,000 tokens the logits are the largest tensor.
    """

    auto_model: ClassVar[str] = "AutoModelForCausalLM"

    def __init__(self, spec: FineTuneJobSpec, tokenizer: Any, config: Any, info: DataInfo) -> None:
        encoder = config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
        if encoder and not getattr(config, "is_decoder", False):
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                f"spec.task: {spec.task} needs a causal language model (decoder), and {config.model_type} is a masked "
                "language model; write masked-lm, or choose a decoder as spec.model",
            )
        super().__init__(spec, tokenizer, config, info)
        if any(sample.messages for sample in spec.samples or ()) and not tokenizer.chat_template:
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                "spec.samples: messages need a chat template, and the model has none; write text instead, or for sft "
                "spec.sft.chatTemplate: chatml",
            )
        for sample in spec.samples or ():
            self._sample_ids(sample)  # raises an error for an invalid sample before the training, not after it
        self._accepts_logits_to_keep = False
        # Queried here and not where rows are padded, because a forked worker of the data loader must not use CUDA.
        self._pad_to_multiple_of = TENSOR_CORE_MULTIPLE if device.has_gpu() else 1

    def peft_task_type(self) -> str | None:
        return "CAUSAL_LM"

    def prepare_model(self) -> None:
        self._accepts_logits_to_keep = forward_accepts(self.model, "logits_to_keep")

    # --- rows and batches ------------------------------------------------------------------------------------------------

    def padding_row(self, row: Row) -> Row:
        return {**row, "labels": [IGNORE_INDEX] * len(row["labels"])}

    def collate(self, rows: Sequence[Row]) -> Batch:
        return self.pad([row["input_ids"] for row in rows], [row["labels"] for row in rows])

    def pad(self, inputs: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> Batch:
        """Pad rows of different lengths on the right: (rows, tokens) int64. Add ``logits_to_keep``."""
        longest = max(len(ids) for ids in inputs)
        rounded = math.ceil(longest / self._pad_to_multiple_of) * self._pad_to_multiple_of
        width = max(longest, min(rounded, self.max_tokens))  # never beyond the positions of the model
        input_ids = np.full((len(inputs), width), self.tokenizer.pad_token_id, dtype=np.int64)
        attention_mask, padded = np.zeros_like(input_ids), np.full_like(input_ids, IGNORE_INDEX)
        for row, (ids, wanted) in enumerate(zip(inputs, labels, strict=True)):
            input_ids[row, : len(ids)], attention_mask[row, : len(ids)], padded[row, : len(ids)] = ids, 1, wanted
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": padded}
        return with_logits_to_keep({name: torch.from_numpy(values) for name, values in batch.items()})

    def count_loss_labels(self, batch: Batch) -> int:
        return int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())

    # --- training and evaluation -----------------------------------------------------------------------------------------

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        logits, targets = self.logits_and_targets(model, batch)
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1),
            targets.flatten(),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
            label_smoothing=self.spec.training.label_smoothing,
        )

    @torch.no_grad()
    def score(self, model: Any, batch: Batch) -> Scores:
        """Return sums over each row: loss, labelled tokens, and labelled tokens that the model predicts correctly."""
        logits, targets = self.logits_and_targets(model, batch)
        labelled = targets != IGNORE_INDEX
        hits = (logits.argmax(dim=-1) == targets) & labelled
        return {
            "loss": -log_probabilities(logits, targets).sum(dim=1, dtype=torch.float64).cpu().numpy(),
            "count": labelled.sum(dim=1).cpu().numpy(),
            "correct": hits.sum(dim=1).cpu().numpy(),
        }

    def compute_metrics(self, scores: Scores) -> tuple[dict[str, float], dict[str, Any]]:
        """Return the loss per token, the perplexity, and the share of tokens that the model predicts correctly."""
        count = int(scores["count"].sum())
        if not count:
            return {}, {}
        loss = float(scores["loss"].sum() / count)
        perplexity = math.exp(min(loss, _MAX_EXPONENT))
        found = {"loss": loss, "perplexity": perplexity, "tokenAccuracy": scores["correct"].sum() / count}
        return metrics.drop_non_finite(found), {"tokens": count}

    def baseline(self, train: pa.Table, evaluation: pa.Table) -> dict[str, float]:
        """Return the metrics of a unigram model: each token as likely as it is frequent, whatever stands before it."""
        learned, targets = (constant.tokens(table, "labels", np.array([IGNORE_INDEX])) for table in (train, evaluation))
        losses, most = constant.unigram_losses(learned, targets, len(self.tokenizer))
        return self.compute_metrics({"loss": losses, "count": np.ones(len(targets)), "correct": targets == most})[0]

    def logits_and_targets(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits in float32 (rows, positions, vocabulary) and the target tokens (rows, positions)."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
        targets = batch["labels"][:, batch["logits_to_keep"] + 1]
        if self._accepts_logits_to_keep:
            return model(**inputs, logits_to_keep=batch["logits_to_keep"]).logits.float(), targets
        return model(**inputs).logits[:, batch["logits_to_keep"]].float(), targets

    # --- answers ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def answer(self, samples: Sequence[Sample]) -> list[SampleAnswer]:
        """Return the model's continuations by greedy decoding."""
        return [
            SampleAnswer(text=_last_message(sample)[:200], answer=self._generate(sample)[:400])
            for sample in heartbeat.each(samples, "answering the samples")
        ]

    def _generate(self, sample: Sample) -> str:
        ids = self._sample_ids(sample)
        positions = max_input_length(self.config.model_type, getattr(self.config, "max_position_embeddings", None), None)
        ids = ids[-max(1, positions - _MAX_NEW_TOKENS) :]
        inputs = torch.tensor([ids], device=self.model.device)
        generation_config = transformers.GenerationConfig(
            max_new_tokens=min(_MAX_NEW_TOKENS, max(1, positions - len(ids))),
            do_sample=False,
            use_cache=True,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=eos_token_ids(self.model, self.tokenizer),
        )
        with torch.autocast(
            inputs.device.type, device.half_dtype(), enabled=self.model.config._attn_implementation == FLASH_ATTENTION
        ):
            output = self.model.generate(
                input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=generation_config
            )
        return self.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True).strip()

    def _sample_ids(self, sample: Sample) -> list[int]:
        """Return the tokens of a sample. A text without tokens becomes one pad token."""
        if sample.messages:
            messages = [message.model_dump() for message in sample.messages]
            ids = chat.encode(self.tokenizer, messages, generation_prompt=True)
        else:
            ids = without_eos(self.tokenizer(sample.text)["input_ids"], self.tokenizer)
        return ids or [self.tokenizer.pad_token_id]

    @abc.abstractmethod
    def encode(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Convert texts or chats to ``input_ids`` and ``labels``. The first label of a row is always ignored."""


def _last_message(sample: Sample) -> str:
    return sample.messages[-1].content if sample.messages else sample.text or ""


def forward_accepts(model: Any, argument: str) -> bool:
    """Return whether the forward method of the model, without adapters, has the argument."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return argument in inspect.signature(base.forward).parameters


def without_eos(ids: Sequence[int], tokenizer: Any) -> list[int]:
    """Remove the end-of-sequence token that some tokenizers add, so that the model continues the text."""
    return list(ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids)


def with_eos(ids: Sequence[int], tokenizer: Any) -> list[int]:
    """Add the end-of-sequence token if it is missing, so that the model learns to stop."""
    end = tokenizer.eos_token_id
    return list(ids) if end is None or (ids and ids[-1] == end) else [*ids, end]


def eos_token_ids(model: Any, tokenizer: Any) -> list[int] | None:
    """Return the tokens that end an answer."""
    given = model.generation_config.eos_token_id
    of_template = chat.turn_end_id(tokenizer) if tokenizer.chat_template else None
    ends = {*(given if isinstance(given, list) else [given]), tokenizer.eos_token_id, of_template} - {None}
    return sorted(ends) or None


def log_probabilities(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities of the targets (rows, positions), 0 if ignored. logits: (rows, positions, vocabulary)."""
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return -losses.view(targets.shape)


def with_logits_to_keep(batch: Batch) -> Batch:
    """Add ``logits_to_keep`` to the batch. Without labels, it has position 0, because the model must run anyway."""
    wanted = (batch["labels"][:, 1:] != IGNORE_INDEX).any(dim=0).nonzero().flatten()
    return {**batch, "logits_to_keep": wanted if len(wanted) else torch.zeros(1, dtype=torch.int64)}
