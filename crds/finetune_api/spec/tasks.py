"""The names of the tasks, and what a task alone has options for: one block each."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, get_args

import pydantic
from pydantic import Field

from finetune_api.model import Model, cel, validations
from finetune_api.spec.common import Name, join_words

Task = Literal["text-classification", "token-classification", "masked-lm", "causal-lm", "sft", "dpo"]
TASKS: tuple[Task, ...] = get_args(Task)
# Tasks that `loop: native` has, too.
NATIVE_TASKS: tuple[Task, ...] = ("text-classification", "token-classification", "masked-lm")
# The columns that each task looks at, as a file has them.
TASK_COLUMNS: dict[Task, tuple[str, ...]] = {
    "text-classification": ("text", "textPair", "label", "labels"),
    "token-classification": ("tokens", "tags"),
    "masked-lm": ("text",),
    "causal-lm": ("text",),
    "sft": ("text", "prompt", "completion", "messages"),
    "dpo": ("prompt", "chosen", "rejected"),
}
UNKNOWN_TASK = (
    f"there is no such task: write {join_words(TASKS, 'or')}; question answering, translation and summarization are sft, with "
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
                "labels, classWeights and balanced are about classes, and a Regression has none: remove them",
            )
        )
    )

    problem_type: ProblemType | None = Field(
        default=None,
        description="SingleLabel: one class a text. MultiLabel: any number of them, a list. Regression: "
        "columns.label holds a number that is to be predicted. If left out, as the labels look: lists are MultiLabel, "
        "numbers with decimals a Regression, all else SingleLabel.",
        examples=["MultiLabel"],
    )
    labels: Annotated[Sequence[Name], Field(min_length=2, max_length=10_000)] | None = Field(
        default=None,
        description="Names of the classes, in the order of the model's outputs; every label of the data must be one of them. If "
        "left out: as the data set declares them, else numbers by value and names by alphabet.",
        examples=[["negative", "positive"]],
    )
    class_weights: Annotated[Mapping[Name, Annotated[float, Field(gt=0, le=1_000_000)]], Field(max_length=10_000)] | None = Field(
        default=None,
        description="Weight of a class in the loss, by its name; 1 for those that are not named.",
        examples=[{"rare": 5.0}],
    )
    balanced: bool = Field(
        default=False, description="Weigh each class by how seldom it is in the training data: rows ÷ (classes × its rows)."
    )

    @pydantic.model_validator(mode="after")
    def _classes(self) -> "Classification":
        if self.problem_type == "Regression" and (self.labels is not None or self.class_weights is not None or self.balanced):
            raise ValueError("labels, classWeights and balanced are about classes, and a Regression has none: remove them")
        return self


class MaskedLM(Model):
    """Options of masked-lm."""

    probability: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.15, description="Share of the tokens that are hidden and to be found, others in each epoch."
    )
    chunk: bool = Field(
        default=False,
        description="Lay all texts end to end and cut them into pieces of maxTokens, instead of one row per text.",
    )


class SupervisedFineTuning(Model):
    """Options of sft."""

    packing: bool | None = Field(
        default=None,
        description="Lay the rows of a forward pass end to end instead of padding them; no row sees another, and the result is "
        "the same. If left out: on GPUs, for models that can.",
        examples=[True],
    )
    assistant_only_loss: bool = Field(
        default=True,
        description="Learn what the assistant says (of messages) or the completion (of prompt and completion), not what it is "
        "asked.",
    )
    chat_template: Annotated[str, Field(min_length=1, max_length=65_536)] | None = Field(
        default=None,
        description="Chat template (Jinja) for messages, or the name of a preset: chatml. If left out: the model's own, else "
        "chatml.",
        examples=["chatml"],
    )


class DirectPreference(Model):
    """Options of dpo."""

    beta: Annotated[float, Field(gt=0, le=100)] = Field(
        default=0.1, description="How closely the model is held to the one that it started from; larger is closer."
    )
    loss_type: Literal["sigmoid", "ipo", "hinge"] = Field(default="sigmoid", description="Loss on the difference of the rewards.")
