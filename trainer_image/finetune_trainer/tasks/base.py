"""What a task is. Everything else (batches, loops, checkpoints, progress) is the same for all of them.

A task turns rows of text into rows of tokens, says what a batch loses and how good its outputs are, and tries the finished model
on samples. It knows neither the number of processes nor how a global batch is split: a loss is a sum, which the loop divides
by the count over the whole global batch. (The models' own losses would be scaled wrongly by accumulation and world size:
transformers issue 47688.)
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from finetune_api.spec import FineTuneJobSpec, ProblemType, Sample
from finetune_api.status import SampleAnswer
from finetune_trainer.tasks.lengths import longest_input

IGNORED = -100  # a label that weighs nothing; torch's cross-entropy leaves it out of the sum
TENSOR_CORE_MULTIPLE = 8  # of tokens: what a GPU multiplies fastest

Row = dict[str, Any]
Batch = dict[str, torch.Tensor]
# What an evaluation keeps of a batch: arrays that can be concatenated along their first axis.
Scores = dict[str, np.ndarray]


def count_tokens(batch: Batch) -> int:
    """Tokens of a batch that is still on the CPU, padding left out; one that is packed has none."""
    return int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What the data says of itself; the same on every rank, and part of the cache.

    classes: names of the classes or tags in their order, empty for tasks without. counts: how often each occurs in the training
    data. problem: of a classification. format: of the rows of sft.
    """

    classes: Sequence[str] = ()
    counts: Sequence[int] = ()
    problem: ProblemType | None = None
    format: Literal["text", "prompt", "messages"] | None = None


class Task(abc.ABC):
    """One task of one training. First without a model, to tokenise; ``model`` is set before anything that computes.

    spec: the job's. tokenizer: with a pad token. config: the model's configuration. info: of the data.
    """

    # transformers.AutoModelFor…, by name, as importing all of them takes seconds.
    auto_model: ClassVar[str]
    # Raised when what encode() returns changes, so that no cache of before is used.
    encoding_version: ClassVar[int] = 1

    def __init__(self, spec: FineTuneJobSpec, tokenizer: Any, config: Any, info: DataInfo) -> None:
        self.spec, self.tokenizer, self.config, self.info = spec, tokenizer, config, info
        positions = getattr(config, "max_position_embeddings", None)
        pad = getattr(config, "pad_token_id", None)
        self.max_tokens = min(spec.training.max_tokens, longest_input(config.model_type, positions, pad))
        self.model: Any = None

    # --- before the model ------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def encode(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Columns of the data (see data/columns.py) → columns of tokens; ``labels`` where there are some.

        A pure function of the rows, the spec and the tokenizer, as its result is cached. May return fewer or more rows.
        """

    def length(self, row: Row) -> int:
        """Tokens of an encoded row, by which rows are grouped."""
        return len(row["input_ids"])

    def is_cut(self, row: Row) -> bool:
        """Whether the row was longer than maxTokens; for the printed report alone."""
        return self.length(row) >= self.max_tokens

    # --- the model -------------------------------------------------------------------------------------------------------

    def model_arguments(self) -> dict[str, Any]:
        """More arguments of ``from_pretrained``: those of a fresh head."""
        return {}

    def peft_task(self) -> str | None:
        """peft's name of the task, for the head that it trains whole; None where there is no fresh head."""
        return None

    def prepare_model(self) -> None:
        """Called once, when ``model`` is there."""
        return

    # --- rows and batches ------------------------------------------------------------------------------------------------

    def vary(self, row: Row, random: np.random.Generator) -> Row:
        """The row as it is in one epoch. random: a function of seed, epoch and row alone."""
        return row

    @abc.abstractmethod
    def blank(self, row: Row) -> Row:
        """The same row, weighing nothing: there for its shape only."""

    @abc.abstractmethod
    def collate(self, rows: Sequence[Row]) -> Batch:
        """Rows → tensors on the CPU."""

    @abc.abstractmethod
    def count(self, batch: Batch) -> int:
        """How many terms the sum of loss() has: labelled rows or tokens. The batch is still on the CPU."""

    # --- training and evaluation -----------------------------------------------------------------------------------------

    @abc.abstractmethod
    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Loss of a batch, summed, not divided: a scalar in float32. model: perhaps wrapped by DDP, so not ``self.model``."""

    @abc.abstractmethod
    def score(self, model: Any, batch: Batch) -> Scores:
        """What is needed of a batch for metrics(): arrays with one entry per row (or per sequence, or per batch) first."""

    @abc.abstractmethod
    def metrics(self, scores: Scores) -> tuple[dict[str, float], dict[str, Any]]:
        """Figures of a whole evaluation by name, ``loss`` among them, and details for the model card, as JSON can hold them."""

    def predictions(self, scores: Scores) -> list[dict[str, Any]] | None:
        """One object per evaluated row, in order; None for tasks that predict nothing a row."""
        return None

    @torch.no_grad()
    def answer(self, samples: Sequence[Sample]) -> list[SampleAnswer]:
        """What the model says of the samples. The model is in evaluation mode."""
        return []
