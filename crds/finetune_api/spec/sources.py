"""``spec.model`` and ``spec.datasets``: what to start from, and what to learn from."""

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


class ModelSource(Model):
    """The model to start from: exactly one of hub, claim."""

    model_config = pydantic.ConfigDict(json_schema_extra=validations(HUB_OR_CLAIM))

    hub: HubModel | None = Field(default=None, description="A model repository of the Hub.")
    claim: Claim | None = Field(default=None, description="A directory of a claim that holds a model and its tokenizer.")
    trust_remote_code: bool = Field(
        default=False,
        description="Run Python code that the model's repository carries. It runs with everything that the training pods may do.",
    )

    @pydantic.model_validator(mode="after")
    def _union(self) -> "ModelSource":
        require_exactly_one(self, "hub", "claim")
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
    format: Literal["csv", "tsv", "jsonl", "parquet", "folders"] | None = Field(
        default=None,
        description="Format of the files; by their ending if left out. folders: one folder per class, one text file per example "
        "(columns text and label).",
    )


class Columns(Model):
    """Which columns hold what."""

    text: Name = Field(default="text", description="Column with the text.")
    text_pair: Name | None = Field(
        default=None, description="Column with the second text, for tasks on pairs of texts.", examples=["hypothesis"]
    )
    label: Name = Field(default="label", description="Column with the class: a name or a number.")


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
        default=None, description="Train on this many rows only, drawn at random (training.seed).", examples=[10_000]
    )
    max_eval_samples: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Evaluate on this many rows only, drawn at random (training.seed).", examples=[1000]
    )

    @pydantic.model_validator(mode="after")
    def _union(self) -> "Dataset":
        require_exactly_one(self, "hub", "claim")
        if self.eval_split is not None and self.eval_fraction is not None:
            raise ValueError("write evalSplit or evalFraction, not both")
        if self.claim is not None and self.claim.eval_path is not None and (self.eval_fraction or self.eval_split):
            raise ValueError("claim.evalPath is the evaluation data already: leave out evalFraction and evalSplit")
        return self
