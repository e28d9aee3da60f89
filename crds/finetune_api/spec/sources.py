"""``spec.model`` and ``spec.datasets``: what to start from, and what to learn from."""

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
        description="Branch, tag or commit; the default branch if left out. Resolved once to a commit, kept in status.resolved.",
        examples=["v1.0"],
    )


class LoRA(Model):
    """Low-rank adapters: the model's own weights stay as they are, small matrices beside them are trained."""

    rank: Annotated[int, Field(ge=1, le=1024)] = Field(default=16, description="Rank of the matrices.")
    alpha: Annotated[float, Field(gt=0, le=4096)] = Field(
        default=32.0, description="What the adapters add is multiplied by alpha ÷ rank."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.05, description="Dropout before the adapters.")
    target_modules: Annotated[Sequence[Name], Field(min_length=1, max_length=64)] = Field(
        default_factory=lambda: ["all-linear"],
        description="Modules that get adapters, by the end of their names; all-linear: all linear layers but the head.",
        json_schema_extra={"default": ["all-linear"]},
        examples=[["q_proj", "v_proj"]],
    )
    modules_to_save: Annotated[Sequence[Name], Field(min_length=1, max_length=64)] | None = Field(
        default=None,
        description="Modules that are trained and saved whole, beside the adapters; a fresh head always is.",
        examples=[["embed_tokens"]],
    )


class ModelSource(Model):
    """The model to start from: exactly one of hub, claim."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(
            HUB_OR_CLAIM,
            cel(
                "!has(self.quantization) || self.quantization == 'none' || has(self.lora)",
                "quantization: quantized weights can't be trained themselves: add lora: {}, or write none",
            ),
        )
    )

    hub: HubModel | None = Field(default=None, description="A model repository of the Hub.")
    claim: Claim | None = Field(default=None, description="A directory of a claim that holds a model and its tokenizer.")
    trust_remote_code: bool = Field(
        default=False,
        description="Run Python code that the model's repository carries. It runs with everything that the training pods may do.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Type of the weights in memory. auto: float32 where they are trained; under adapters bfloat16 where the GPU "
        "has it. bfloat16 halves the memory of full fine-tuning, and loses small updates.",
    )
    quantization: Literal["none", "nf4", "int8"] = Field(
        default="none", description="Keep the model's own weights in 4 or 8 bits, under lora; needs a CUDA GPU."
    )
    lora: LoRA | None = Field(default=None, description="Train low-rank adapters instead of all weights; {} for the defaults.")

    @pydantic.model_validator(mode="after")
    def _union(self) -> "ModelSource":
        require_exactly_one(self, "hub", "claim")
        if self.quantization != "none" and self.lora is None:
            raise ValueError("quantization: quantized weights can't be trained themselves: add lora: {}, or write none")
        return self


class HubDataset(Model):
    """A data set repository of the Hub."""

    name: HubName = Field(description="Repository of the data set on the Hub, for example stanfordnlp/imdb.")
    config: Name | None = Field(
        default=None, description="Configuration (subset) of the data set, where it has several.", examples=["en"]
    )
    revision: Revision | None = Field(
        default=None,
        description="Branch, tag or commit; the default branch if left out. Resolved once to a commit, kept in status.resolved.",
        examples=["v1.0"],
    )


class ClaimDataset(Claim):
    """Files of a PersistentVolumeClaim."""

    path: ClaimPath | None = Field(
        default=None,
        description="File or directory below the claim's root with the training data, for example news/train.csv. "
        "The root if left out.",
    )
    eval_path: ClaimPath | None = Field(
        default=None, description="File or directory below the claim's root with the evaluation data.", examples=["news/test.csv"]
    )
    format: Literal["csv", "tsv", "jsonl", "parquet", "text", "folders"] | None = Field(
        default=None,
        description="Format of the files; by their ending if left out (a .gz or .zst behind it is looked through). text: one "
        "row per line; for token-classification, words and tags in columns with blank lines between sentences. folders: one "
        "folder per class, one text file per example (columns text and label).",
    )


class Columns(Model):
    """Which columns hold what; each task looks at its own."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(
            cel("!(has(self.label) && has(self.labels))", "write label or labels, not both"),
            cel(
                "!(has(self.text) && has(self.prompt)) && !(has(self.messages) && (has(self.text) || has(self.prompt)))",
                "a row has one of text, prompt and messages: write one of them",
            ),
        )
    )

    text: Name | None = Field(default=None, description="Column with the text; text if left out.", examples=["review"])
    text_pair: Name | None = Field(
        default=None, description="Column with the second text, for classification of pairs of texts.", examples=["hypothesis"]
    )
    label: Name | None = Field(
        default=None,
        description="Column with the class, a name or a number, or for a regression with the number; label if left out.",
        examples=["sentiment"],
    )
    labels: Name | None = Field(
        default=None,
        description="Column with the list of classes of a text, for MultiLabel; in tables, names with commas between them. "
        "labels if left out.",
        examples=["genres"],
    )
    tokens: Name | None = Field(
        default=None, description="Column with the list of words of a sentence; tokens if left out.", examples=["words"]
    )
    tags: Name | None = Field(
        default=None, description="Column with the list of tags, one per word; tags if left out.", examples=["ner_tags"]
    )
    prompt: Name | None = Field(default=None, description="Column with the prompt; prompt if left out.", examples=["question"])
    completion: Name | None = Field(
        default=None, description="Column with the completion of the prompt; completion if left out.", examples=["answer"]
    )
    messages: Name | None = Field(
        default=None, description="Column with a chat: a list of role and content; messages if left out.", examples=["chat"]
    )
    chosen: Name | None = Field(
        default=None, description="Column with the better answer to the prompt; chosen if left out.", examples=["better"]
    )
    rejected: Name | None = Field(
        default=None, description="Column with the worse answer to the prompt; rejected if left out.", examples=["worse"]
    )

    @pydantic.model_validator(mode="after")
    def _alternatives(self) -> "Columns":
        if self.label is not None and self.labels is not None:
            raise ValueError("write label or labels, not both")
        if sum(name is not None for name in (self.text, self.prompt, self.messages)) > 1:
            raise ValueError("a row has one of text, prompt and messages: write one of them")
        return self


_STREAM_HOLDS_NOTHING_OUT = (
    "evalFraction: data that is streamed is never seen as a whole, so nothing can be held out: write evalSplit, or claim.evalPath"
)
_STREAM_HAS_NO_WEIGHT = "weight: data sets that are streamed give their rows in turn: leave it out"


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
                "claim.evalPath is the evaluation data already: leave out evalFraction and evalSplit",
            ),
            cel("!self.streaming || !has(self.evalFraction)", _STREAM_HOLDS_NOTHING_OUT),
            cel("!self.streaming || !has(self.weight)", _STREAM_HAS_NO_WEIGHT),
        )
    )

    hub: HubDataset | None = Field(default=None, description="A data set repository of the Hub.")
    claim: ClaimDataset | None = Field(default=None, description="Files of a claim.")
    columns: Columns = Field(default_factory=Columns, description="Which columns hold what.", json_schema_extra={"default": {}})
    train_split: Name = Field(default="train", description="Split to train on, for data sets that have splits.")
    eval_split: Name | None = Field(
        default=None,
        description="Split to evaluate on. If left out: validation, else test, where there is one; else evalFraction of the "
        "training data.",
        examples=["test"],
    )
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Share of the training data that is held out for evaluation, the same rows for the same seed, stratified by "
        "class; 0.1 if nothing else says what to evaluate on.",
        examples=[0.1],
    )
    max_train_samples: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Train on this many rows only, drawn at random (training.seed); with streaming, on the first ones.",
        examples=[10_000],
    )
    max_eval_samples: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Evaluate on this many rows only, drawn at random (training.seed); with streaming 1000 if left out, drawn "
        "from the first 100,000.",
        examples=[1000],
    )
    streaming: bool = Field(
        default=False,
        description="Read the training data while training instead of before it, for data that fits neither disk nor memory; "
        "the data begins again when it ends. Needs training.maxSteps, evaluation data of its own (and evaluation.everySteps to "
        "be evaluated on the way), and for classes their names (classification.labels, unless the data declares them). Rows are "
        "shuffled among 10,000 that follow one another: shuffle data that is sorted once before. Of a text of more than "
        "maxTokens causal-lm learns one piece, another each time. A restart reads again what was trained on, without training "
        "on it.",
    )

    weight: Annotated[float, Field(gt=0, le=1_000_000)] | None = Field(
        default=None,
        description="Share of this data set among several that are mixed: write it for each of them. An epoch then has as many "
        "rows as all together, drawn by weight; small data sets are repeated. If left out, all rows of all are there once.",
        examples=[2.0],
    )

    @pydantic.model_validator(mode="after")
    def _union(self) -> "Dataset":
        require_exactly_one(self, "hub", "claim")
        if self.eval_split is not None and self.eval_fraction is not None:
            raise ValueError("write evalSplit or evalFraction, not both")
        if self.claim is not None and self.claim.eval_path is not None and (self.eval_fraction or self.eval_split):
            raise ValueError("claim.evalPath is the evaluation data already: leave out evalFraction and evalSplit")
        if self.streaming and self.eval_fraction is not None:
            raise ValueError(_STREAM_HOLDS_NOTHING_OUT)
        if self.streaming and self.weight is not None:
            raise ValueError(_STREAM_HAS_NO_WEIGHT)
        return self
