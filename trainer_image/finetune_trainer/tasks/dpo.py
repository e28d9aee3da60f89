"""Direct preference optimisation: learns to prefer the better of two answers, but to stay near the initial model."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import DirectPreference as Options
from finetune_trainer.runtime.device import resolve_precision
from finetune_trainer.tasks import chat, metrics
from finetune_trainer.tasks.base import IGNORE_INDEX, Batch, Row, Scores
from finetune_trainer.tasks.generation import LanguageModel, log_probabilities, with_eos


class DirectPreference(LanguageModel):
    """A row is a pair of answers to a prompt. A batch holds all chosen answers, followed by all rejected answers.

    The reference model is the initial model: the trained model without its adapters, or a frozen copy that is never saved. The
    model's own dropout is off. Otherwise the model would differ from the reference before it has learned anything.
    """

    uses_dropout = False

    _reference_copy: Any = None

    # --- before the model ------------------------------------------------------------------------------------------------

    def encode(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Tokenise pairs. Leave out a pair if one of its answers lies entirely beyond maxTokens."""
        rows: dict[str, list[Any]] = {"chosen_ids": [], "rejected_ids": [], "answer_start": []}
        for prompt, chosen, rejected in zip(batch["prompt"], batch["chosen"], batch["rejected"], strict=True):
            prompt_ids = self._prompt_ids(prompt)
            pair = [self._encode_answer(prompt, answer) for answer in (chosen, rejected)]
            start = min(chat.common_prefix_length(prompt_ids, ids) for ids in pair)
            pair = [ids[: self.max_tokens] for ids in pair]
            if max(1, start) < min(map(len, pair)):
                for name, value in zip(rows, (*pair, start), strict=True):
                    rows[name].append(value)
        return rows

    def _prompt_ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt)["input_ids"])
        if not self.tokenizer.chat_template:
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                "spec.model: the data holds chats, and the model has no chat template; train it with task sft first, or choose "
                "a model that has one",
            )
        return chat.encode(self.tokenizer, prompt, generation_prompt=True)

    def _encode_answer(self, prompt: Any, answer: Any) -> list[int]:
        if isinstance(prompt, str):
            return with_eos(self.tokenizer(prompt + answer)["input_ids"], self.tokenizer)
        return chat.encode(self.tokenizer, [*prompt, *answer])

    def length(self, row: Row) -> int:
        return max(len(row["chosen_ids"]), len(row["rejected_ids"]))

    # --- the model -------------------------------------------------------------------------------------------------------

    def prepare_model(self) -> None:
        super().prepare_model()
        for name, module in self.model.named_modules():
            if isinstance(module, torch.nn.Dropout) and "lora_dropout" not in name:  # the spec sets this one
                module.p = 0.0
        if not hasattr(self.model, "disable_adapter"):  # models with adapters have this method
            self._reference_copy = copy.deepcopy(self.model).eval().requires_grad_(False)

    # --- rows and batches ------------------------------------------------------------------------------------------------

    def padding_row(self, row: Row) -> Row:
        return {**row, "weight": 0.0}

    def collate(self, rows: Any) -> Batch:
        """Combine pairs. ``weight`` has the shape (pairs,) and is 0 for padding rows; other tensors have twice as many rows."""
        ids = [row["chosen_ids"] for row in rows] + [row["rejected_ids"] for row in rows]
        starts = [row["answer_start"] for row in rows] * 2
        labels = [[IGNORE_INDEX] * max(1, start) + list(row[max(1, start) :]) for row, start in zip(ids, starts, strict=True)]
        weight = torch.tensor([row.get("weight", 1.0) for row in rows])
        return {**self.pad(ids, labels), "weight": weight}

    def count_loss_labels(self, batch: Batch) -> int:
        return int((batch["weight"] > 0).sum())

    # --- training and evaluation -----------------------------------------------------------------------------------------

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        losses, _, _ = self._losses(model, batch)
        return (losses * batch["weight"]).sum()

    @torch.no_grad()
    def score(self, model: Any, batch: Batch) -> Scores:
        losses, logps, rewards = self._losses(model, batch)
        columns = {"loss": losses, "weight": batch["weight"]}
        columns |= dict(zip(("chosen_logps", "rejected_logps"), logps.chunk(2), strict=True))
        columns |= dict(zip(("chosen_reward", "rejected_reward"), rewards.chunk(2), strict=True))
        return {name: values.double().cpu().numpy() for name, values in columns.items()}

    def compute_metrics(self, scores: Scores) -> tuple[dict[str, float], dict[str, Any]]:
        """Return loss per pair, how often and by how much the chosen reward is larger, and log-probabilities of answers."""
        counted = scores["weight"] > 0
        kept = {name: values[counted] for name, values in scores.items()}
        margins = kept["chosen_reward"] - kept["rejected_reward"]
        means = {
            "loss": kept["loss"],
            "rewardAccuracy": margins > 0,
            "rewardMargin": margins,
            "chosenLogps": kept["chosen_logps"],
            "rejectedLogps": kept["rejected_logps"],
        }
        if not len(margins):
            return {}, {}
        return metrics.drop_non_finite({name: float(np.mean(values)) for name, values in means.items()}), {"pairs": len(margins)}

    def baseline(self, train: pa.Table, evaluation: pa.Table) -> dict[str, float]:
        """Return no metrics: an answer that ignores the prompt has no reward. The evaluation before the training compares."""
        return {}

    def _losses(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the loss of each pair (pairs,), and log-probability and reward of each answer (2 × pairs,)."""
        options = self.spec.dpo or Options()
        device = batch["input_ids"].device
        with torch.no_grad(), self._autocast(device), self._reference_model(device) as reference:
            reference_logps = log_probabilities(*self.logits_and_targets(reference, batch)).sum(dim=1)
        logps = log_probabilities(*self.logits_and_targets(model, batch)).sum(dim=1)
        ratios = logps - reference_logps
        if options.loss_type == "ipo":  # per token, as its authors intend: the length of an answer must not count
            ratios_per_token = ratios / (batch["labels"] != IGNORE_INDEX).sum(dim=1)
            chosen, rejected = ratios_per_token.chunk(2)
            losses = (chosen - rejected - 1 / (2 * options.beta)) ** 2
        else:
            chosen, rejected = ratios.chunk(2)
            margins = options.beta * (chosen - rejected)
            losses = torch.relu(1 - margins) if options.loss_type == "hinge" else -torch.nn.functional.logsigmoid(margins)
        return losses, logps, options.beta * ratios.detach()

    def _autocast(self, device: torch.device) -> torch.autocast:
        """Return autocast in the precision of the training.

        No other code applies autocast to the reference copy. In another precision, its results would differ from the model's.
        """
        precision = resolve_precision(self.spec.training.precision)
        half = torch.float16 if precision == "fp16" else torch.bfloat16
        return torch.autocast(device.type, half, enabled=precision != "fp32")

    @contextlib.contextmanager
    def _reference_model(self, device: torch.device) -> Iterator[Any]:
        """Yield the reference model. It is never the DDP wrapper, which counts forward passes."""
        if self._reference_copy is not None:
            yield self._reference_copy.to(device)
            return
        training = self.model.training
        self.model.eval()
        try:
            with self.model.disable_adapter():
                yield self.model
        finally:
            self.model.train(training)
