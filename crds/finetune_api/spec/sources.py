"""``spec.model`` and ``spec.datasets``: the base model and the data."""

from collections.abc import Sequence
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from finetune_api.model import Model, cel, validations
from finetune_api.spec.common import HUB_OR_CLAIM, Claim, ClaimPath, HubName, Name, Revision, require_exactly_one


class HubModel(Model):
    """A model repository of the Hub."""

    name: HubName = Field(description="Repository of the model on the Hub, for example google-bert/bert-base-uncased.")
    revision: Revision | None = Field(
        default=None,
        description="Branch, tag or commit. If left out: the default branch. The first attempt resolves it to a commit in "
        "status.resolved.",
        examples=["v1.0"],
    )


class LoRA(Model):
    """Low-rank adapters: the base model's weights are frozen, and small matrices beside them are trained."""

    rank: Annotated[int, Field(ge=1, le=1024)] = Field(default=16, description="Rank of the matrices.")
    alpha: Annotated[float, Field(gt=0, le=4096)] = Field(
        default=32.0, description="The output of the adapters is multiplied by alpha ÷ rank."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.05, description="Dropout before the adapters.")
    target_modules: Annotated[Sequence[Name], Field(min_length=1, max_length=64)] = Field(
        default_factory=lambda: ["all-linear"],
        description="Modules that get adapters, by the end of their names. all-linear: all linear layers except the head.",
        json_schema_extra={"default": ["all-linear"]},
        examples=[["q_proj", "v_proj"]],
    )
    modules_to_save: Annotated[Sequence[Name], Field(min_length=1, max_length=64)] | None = Field(
        default=None,
        description="Modules that are trained and saved in full, beside the adapters. A newly initialized head is always trained "
        "and saved in full.",
        examples=[["embed_tokens"]],
    )


class ModelSource(Model):
    """The model to start from: exactly one of hub, claim."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(
            HUB_OR_CLAIM,
            cel(
                "!has(self.quantization) || self.quantization == 'None' || has(self.lora)",
                "quantization: quantized weights can't be trained: add lora: {}, or write None",
            ),
        )
    )

    hub: HubModel | None = Field(default=None, description="A model repository of the Hub.")
    claim: Claim | None = Field(default=None, description="A directory of a claim that holds a model and its tokenizer.")
    trust_remote_code: bool = Field(
        default=False,
        description="Run Python code from the model's repository. The code has all the rights of the training pods.",
    )
    dtype: Literal["Auto", "float32", "bfloat16"] = Field(
        default="Auto",
        description="Type of the weights in memory. Auto: float32 if they are trained, bfloat16 under adapters if the GPU "
        "supports it. bfloat16 halves the memory of full fine-tuning, but loses small updates.",
    )
    quantization: Literal["None", "nf4", "int8"] = Field(
        default="None", description="Keep the base model's weights in 4 or 8 bits, under lora. Needs a CUDA GPU."
    )
    lora: LoRA | None = Field(default=None, description="Train low-rank adapters instead of all weights. {} takes the defaults.")

    @pydantic.model_validator(mode="after")
    def _union(self) -> "ModelSource":
        require_exactly_one(self, "hub", "claim")
        if self.quantization != "None" and self.lora is None:
            raise ValueError("quantization: quantized weights can't be trained: add lora: {}, or write None")
        return self


class HubDataset(Model):
    """A data set repository of the Hub."""

    name: HubName = Field(description="Repository of the data set on the Hub, for example stanfordnlp/imdb.")
    config: Name | None = Field(
        default=None, description="Configuration (subset) of the data set, if it has several.", examples=["en"]
    )
    revision: Revision | None = Field(
        default=None,
        description="Branch, tag or commit. If left out: the default branch. The first attempt resolves it to a commit in "
        "status.resolved.",
        examples=["v1.0"],
    )


class ClaimDataset(Claim):
    """Files of a PersistentVolumeClaim."""

    path: ClaimPath | None = Field(
        default=None,
        description="File or directory below the claim's root with the training data, for example news/train.csv. If left out: "
        "the root.",
    )
    eval_path: ClaimPath | None = Field(
        default=None, description="File or directory below the claim's root with the evaluation data.", examples=["news/test.csv"]
    )
    format: Literal["csv", "tsv", "jsonl", "parquet", "text", "folders"] | None = Field(
        default=None,
        description="Format of the files. If left out: by their suffix, which .gz or .zst may follow. text: one row per line; "
        "for token-classification, words and tags in columns with blank lines between sentences. folders: one folder per class, "
        "one text file per example (columns text and label).",
    )


class Columns(Model):
    """Names of the columns. Each task reads its own columns."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(
            cel("!(has(self.label) && has(self.labels))", "write label or labels, not both"),
            cel(
                "!(has(self.text) && has(self.prompt)) && !(has(self.messages) && (has(self.text) || has(self.prompt)))",
                "write only one of text, prompt and messages",
            ),
        )
    )

    text: Name | None = Field(default=None, description="Column with the text. If left out: text.", examples=["review"])
    text_pair: Name | None = Field(
        default=None, description="Column with the second text, for classification of pairs of texts.", examples=["hypothesis"]
    )
    label: Name | None = Field(
        default=None,
        description="Column with the class, as a name or a number, or with the number of a regression. If left out: label.",
        examples=["sentiment"],
    )
    labels: Name | None = Field(
        default=None,
        description="Column with the list of classes of a text, for MultiLabel. In tables: a JSON list, or names separated by |, "
        "by ; or by a comma. If left out: labels.",
        examples=["genres"],
    )
    tokens: Name | None = Field(
        default=None, description="Column with the list of words of a sentence. If left out: tokens.", examples=["words"]
    )
    tags: Name | None = Field(
        default=None, description="Column with the list of tags, one per word. If left out: tags.", examples=["ner_tags"]
    )
    prompt: Name | None = Field(default=None, description="Column with the prompt. If left out: prompt.", examples=["question"])
    completion: Name | None = Field(
        default=None, description="Column with the completion of the prompt. If left out: completion.", examples=["answer"]
    )
    messages: Name | None = Field(
        default=None,
        description="Column with a chat: a list of messages with role and content. If left out: messages.",
        examples=["chat"],
    )
    chosen: Name | None = Field(
        default=None, description="Column with the better answer to the prompt. If left out: chosen.", examples=["better"]
    )
    rejected: Name | None = Field(
        default=None, description="Column with the worse answer to the prompt. If left out: rejected.", examples=["worse"]
    )

    @pydantic.model_validator(mode="after")
    def _alternatives(self) -> "Columns":
        if self.label is not None and self.labels is not None:
            raise ValueError("write label or labels, not both")
        if sum(name is not None for name in (self.text, self.prompt, self.messages)) > 1:
            raise ValueError("write only one of text, prompt and messages")
        return self


_STREAMING_EVAL_FRACTION = "evalFraction: with streaming, no rows can be held out: write evalSplit, or claim.evalPath"
_STREAMING_WEIGHT = "weight: with streaming, one row is read from each data set in turn: remove it"


class Dataset(Model):
    """Data to train and evaluate on: exactly one of hub, claim."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(
            HUB_OR_CLAIM,
            cel(
                "!(has(self.evalSplit) && has(self.evalFraction))",
                "write evalSplit or evalFraction, not both",
            ),
            cel(
                "!(has(self.claim) && has(self.claim.evalPath) && (has(self.evalFraction) || has(self.evalSplit)))",
                "claim.evalPath already names the evaluation data: remove evalFraction and evalSplit",
            ),
            cel("!has(self.streaming) || !self.streaming || !has(self.evalFraction)", _STREAMING_EVAL_FRACTION),
            cel("!has(self.streaming) || !self.streaming || !has(self.weight)", _STREAMING_WEIGHT),
        )
    )

    hub: HubDataset | None = Field(default=None, description="A data set repository of the Hub.")
    claim: ClaimDataset | None = Field(default=None, description="Files of a claim.")
    columns: Columns = Field(default_factory=Columns, description="Names of the columns.", json_schema_extra={"default": {}})
    train_split: Name = Field(default="train", description="Split to train on, for data sets with splits.")
    eval_split: Name | None = Field(
        default=None,
        description="Split to evaluate on. If left out: the first that exists of validation and test, else evalFraction of the "
        "training data.",
        examples=["test"],
    )
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Share of the training data that is held out for evaluation, stratified by class. The same seed holds out "
        "the same rows. If left out: 0.1 if there is no other evaluation data.",
        examples=[0.1],
    )
    max_train_samples: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Train on only this many rows, drawn at random with training.seed. With streaming: on the first ones.",
        examples=[10_000],
    )
    max_eval_samples: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Evaluate on only this many rows, drawn at random with training.seed. With streaming: drawn from the first "
        "100,000 rows, and 1000 rows if left out.",
        examples=[1000],
    )
    streaming: bool = Field(
        default=False,
        description="Read the training data during the training instead of before it, for data that fits neither on disk nor in "
        "memory. When the data ends, it is read again from its beginning. Needs training.maxSteps, separate evaluation data, "
        "evaluation.everySteps for evaluations during the training, and for classification classification.labels, unless the "
        "data declares the classes. Rows are shuffled within blocks of 10,000 rows: if the data is sorted, shuffle it "
        "beforehand. If a text is longer than maxTokens, causal-lm trains on one piece of it, and on another piece each time. "
        "A restart reads the rows before the checkpoint again, without training on them.",
    )

    weight: Annotated[float, Field(gt=0, le=1_000_000)] | None = Field(
        default=None,
        description="Share of this data set in a mix of several. Write it for each of them. An epoch then has as many rows as "
        "all data sets together, drawn by weight, and small data sets are repeated. If left out: an epoch has each row of each "
        "data set once.",
        examples=[2.0],
    )

    @pydantic.model_validator(mode="after")
    def _union(self) -> "Dataset":
        require_exactly_one(self, "hub", "claim")
        if self.eval_split is not None and self.eval_fraction is not None:
            raise ValueError("write evalSplit or evalFraction, not both")
        if self.claim is not None and self.claim.eval_path is not None and (self.eval_fraction or self.eval_split):
            raise ValueError("claim.evalPath already names the evaluation data: remove evalFraction and evalSplit")
        if self.streaming and self.eval_fraction is not None:
            raise ValueError(_STREAMING_EVAL_FRACTION)
        if self.streaming and self.weight is not None:
            raise ValueError(_STREAMING_WEIGHT)
        return self
