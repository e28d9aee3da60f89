"""The names of the tasks, and the blocks of options that belong to a task."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, get_args

import pydantic
from pydantic import Field

from finetune_api.model import Model, cel, validations
from finetune_api.spec.common import Name, join_words

Task = Literal["text-classification", "token-classification", "masked-lm", "causal-lm", "sft", "dpo"]
TASKS: tuple[Task, ...] = get_args(Task)
# Tasks that `loop: Native` supports.
NATIVE_TASKS: tuple[Task, ...] = ("text-classification", "token-classification", "masked-lm")
# The columns that each task reads, with their names in a file.
TASK_COLUMNS: dict[Task, tuple[str, ...]] = {
    "text-classification": ("text", "textPair", "label", "labels"),
    "token-classification": ("tokens", "tags"),
    "masked-lm": ("text",),
    "causal-lm": ("text",),
    "sft": ("text", "prompt", "completion", "messages"),
    "dpo": ("prompt", "chosen", "rejected"),
}
# The metrics of an evaluation. Those of text-classification depend on the kind of the labels, which only the data may tell.
TASK_METRICS: dict[Task, tuple[str, ...]] = {
    "text-classification": (
        *("loss", "accuracy", "macroF1", "microF1", "exactMatch"),
        *("mse", "rmse", "mae", "r2", "pearson", "spearman"),
    ),
    "token-classification": ("loss", "accuracy", "precision", "recall", "f1"),
    "masked-lm": ("loss", "perplexity", "accuracy"),
    "causal-lm": ("loss", "perplexity", "tokenAccuracy"),
    "sft": ("loss", "perplexity", "tokenAccuracy"),
    "dpo": ("loss", "rewardAccuracy", "rewardMargin", "chosenLogps", "rejectedLogps"),
}
UNKNOWN_TASK = (
    f"unknown task: write {join_words(TASKS, 'or')}; for question answering, translation and summarization write sft, with the "
    "columns prompt and completion"
)
ProblemType = Literal["SingleLabel", "MultiLabel", "Regression"]


class Classification(Model):
    """Options of text-classification and token-classification."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(
            cel(
                "!has(self.problemType) || self.problemType != 'Regression'"
                " || !(has(self.labels) || has(self.classWeights) || self.balanced)",
                "labels, classWeights and balanced are for classes, and a Regression has none: remove them",
            )
        )
    )

    problem_type: ProblemType | None = Field(
        default=None,
        description="SingleLabel: one class per text. MultiLabel: a list of any number of classes per text. Regression: "
        "columns.label holds the number to predict. If left out, the labels decide: lists are MultiLabel, numbers with decimals "
        "are Regression, all others are SingleLabel.",
        examples=["MultiLabel"],
    )
    labels: Annotated[Sequence[Name], Field(min_length=2, max_length=10_000)] | None = Field(
        default=None,
        description="Names of the classes, in the order of the model's outputs. Every label of the data must be one of them. If "
        "left out: as the data set declares them, else numbers by value and names in alphabetical order.",
        examples=[["negative", "positive"]],
    )
    class_weights: Annotated[Mapping[Name, Annotated[float, Field(gt=0, le=1_000_000)]], Field(max_length=10_000)] | None = Field(
        default=None,
        description="Weights of the classes in the loss, by name. A class without an entry has weight 1.",
        examples=[{"rare": 5.0}],
    )
    balanced: bool = Field(
        default=False,
        description="Weight each class by its inverse frequency in the training data: rows ÷ (classes × rows of the class).",
    )

    @pydantic.model_validator(mode="after")
    def _classes(self) -> "Classification":
        if self.problem_type == "Regression" and (self.labels is not None or self.class_weights is not None or self.balanced):
            raise ValueError("labels, classWeights and balanced are for classes, and a Regression has none: remove them")
        return self


class MaskedLM(Model):
    """Options of masked-lm."""

    probability: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.15, description="Share of the tokens that are masked. Each epoch masks other tokens."
    )
    chunk: bool = Field(
        default=False,
        description="Concatenate all texts and split them into rows of maxTokens, instead of one row per text.",
    )


class SupervisedFineTuning(Model):
    """Options of sft."""

    packing: bool | None = Field(
        default=None,
        description="Concatenate the rows of a forward pass instead of padding them. No row attends to another row, and the "
        "result is the same. If left out: true on GPUs, for models that support it.",
        examples=[True],
    )
    assistant_only_loss: bool = Field(
        default=True,
        description="Compute the loss only on the assistant's messages (of messages) or on the completion (of prompt and "
        "completion).",
    )
    chat_template: Annotated[str, Field(min_length=1, max_length=65_536)] | None = Field(
        default=None,
        description="Chat template (Jinja) for messages, or the name of a preset: chatml. If left out: the template of the "
        "model, else chatml.",
        examples=["chatml"],
    )


class DirectPreference(Model):
    """Options of dpo."""

    beta: Annotated[float, Field(gt=0, le=100)] = Field(
        default=0.1,
        description="Strength of the regularization towards the base model. A larger value keeps the model closer to it.",
    )
    loss_type: Literal["sigmoid", "ipo", "hinge"] = Field(
        default="sigmoid", description="Loss function of the difference of the rewards."
    )
