"""The interface of a task. Everything else (batches, training loop, checkpoints, progress) is the same for all tasks.

A task converts rows of text to rows of tokens, computes the loss of a batch and the metrics of an evaluation, and runs the
finished model on samples. It does not depend on the number of processes or on how a global batch is split: it returns the loss
as a sum, and the training loop divides it by the number of loss labels in the whole global batch. (Accumulation and world size
would scale the models' own losses wrongly: transformers issue 47688.)
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch

from finetune_api.spec import FineTuneJobSpec, ProblemType, Sample
from finetune_api.status import SampleAnswer
from finetune_trainer.tasks.lengths import max_input_length

IGNORE_INDEX = -100  # a label with zero weight: torch's cross-entropy leaves it out of the sum
TENSOR_CORE_MULTIPLE = 8  # GPUs multiply matrices fastest if their sizes are multiples of this

Row = dict[str, Any]
Batch = dict[str, torch.Tensor]
# Results of one evaluation batch: arrays that can be concatenated along the first axis.
Scores = dict[str, np.ndarray]


def count_tokens(batch: Batch) -> int:
    """Count the tokens without padding of a batch that is still on the CPU. A packed batch has no padding."""
    return int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """Facts that come from the data. They are the same on every rank, and stored in the cache.

    classes: names of the classes or tags in their order; empty for tasks without classes. counts: how often each occurs in the
    training data. problem: type of a text classification. format: format of sft rows.
    """

    classes: Sequence[str] = ()
    counts: Sequence[int] = ()
    problem: ProblemType | None = None
    format: Literal["text", "prompt", "messages"] | None = None


class Task(abc.ABC):
    """One task of one training. Tokenising needs no model; ``model`` is set before all methods that compute.

    spec: spec of the job. tokenizer: has a pad token. config: configuration of the model. info: facts about the data.
    """

    # Name of a class in transformers, AutoModelFor…. It is not the class itself, because importing all of them takes seconds.
    auto_model: ClassVar[str]
    # Whether the model's own dropout is on in the training.
    uses_dropout: ClassVar[bool] = True
    # Whether the model gets a head with random weights. Otherwise its files must have all layers.
    has_new_head: ClassVar[bool] = False
    # Increment this when the results of encode() change, so that older cache entries are not used.
    encoding_version: ClassVar[int] = 1

    def __init__(self, spec: FineTuneJobSpec, tokenizer: Any, config: Any, info: DataInfo) -> None:
        self.spec, self.tokenizer, self.config, self.info = spec, tokenizer, config, info
        positions = getattr(config, "max_position_embeddings", None)
        pad = getattr(config, "pad_token_id", None)
        self.max_tokens = min(spec.training.max_tokens, max_input_length(config.model_type, positions, pad))
        self.model: Any = None
        self.missing_layers: Sequence[str] = ()  # layers with random weights that the model's files should have

    # --- before the model ------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def encode(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Convert columns of the data (see data/columns.py) to columns of tokens and, for most tasks, ``labels``.

        Must be a pure function of rows, spec and tokenizer, because the result is cached. May return fewer or more rows.
        """

    def length(self, row: Row) -> int:
        """Return the number of tokens of an encoded row. Batches group rows by length."""
        return len(row["input_ids"])

    def is_truncated(self, row: Row) -> bool:
        """Return whether the row was longer than maxTokens. Only for the printed report."""
        return self.length(row) >= self.max_tokens

    # --- the model -------------------------------------------------------------------------------------------------------

    def model_kwargs(self) -> dict[str, Any]:
        """Return additional arguments of ``from_pretrained``, for a new head."""
        return {}

    def peft_task_type(self) -> str | None:
        """Return peft's name of the task; None if peft has none. With SEQ_CLS and TOKEN_CLS, peft trains the whole head."""
        return None

    def prepare_model(self) -> None:
        """Prepare the model. Called once, after ``model`` is set."""
        return

    # --- rows and batches ------------------------------------------------------------------------------------------------

    def augment(self, row: Row, random: np.random.Generator) -> Row:
        """Return the row for one epoch. random: depends only on seed, epoch and row."""
        return row

    @abc.abstractmethod
    def padding_row(self, row: Row) -> Row:
        """Return the same row with zero weight. It only fills a batch."""

    @abc.abstractmethod
    def collate(self, rows: Sequence[Row]) -> Batch:
        """Combine rows to tensors on the CPU."""

    @abc.abstractmethod
    def count_loss_labels(self, batch: Batch) -> int:
        """Count the labels (of rows or tokens) that loss() sums over. The batch is still on the CPU."""

    # --- training and evaluation -----------------------------------------------------------------------------------------

    @abc.abstractmethod
    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Return the summed loss of a batch: a scalar in float32. model: may be wrapped by DDP, unlike ``self.model``."""

    @abc.abstractmethod
    def score(self, model: Any, batch: Batch) -> Scores:
        """Return the input of compute_metrics() for a batch: arrays that can be concatenated along the first axis."""

    @abc.abstractmethod
    def compute_metrics(self, scores: Scores) -> tuple[dict[str, float], dict[str, Any]]:
        """Return the metrics of an evaluation by name, including ``loss``, and details for the model card as JSON values."""

    def baseline(self, train: pa.Table, evaluation: pa.Table) -> dict[str, float]:
        """Return the metrics, by the same names, of the best answer that ignores its input; empty if there is no such answer.

        train, evaluation: encoded rows. If the data is streamed, ``train`` is a sample.
        """
        return {}

    def predictions(self, scores: Scores) -> list[dict[str, Any]] | None:
        """Return one object per evaluated row, in order; None for tasks without predictions per row."""
        return None

    @torch.no_grad()
    def answer(self, samples: Sequence[Sample]) -> list[SampleAnswer]:
        """Return the model's answers to the samples. The model is in evaluation mode."""
        return []
