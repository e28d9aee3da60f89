"""``FineTuneJobSpec.logging``: what a run tells of itself, and to whom."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from finetune_api.model import Model

LogFormat = Literal["Text", "JSON"]
Tracker = Literal["tensorboard", "wandb", "mlflow"]


class Logging(Model):
    """What the pods write to their logs, and which experiment trackers get the figures of the run."""

    format: LogFormat = Field(
        default="Text",
        description="Of the pods' logs. Text: lines for people. JSON: one object a line, with time, level, job, attempt, rank "
        "and message, and the figures of a step as fields.",
    )
    report_to: Annotated[Sequence[Tracker], Field(min_length=1, max_length=3)] | None = Field(
        default=None,
        description="Trackers that get loss, learning rate, throughput and evaluations: one run for the whole job, whatever is "
        "restarted. tensorboard: files in tensorboard/ of the output. wandb, mlflow: servers, whose address and key are given by "
        "pod.env, as WANDB_API_KEY and MLFLOW_TRACKING_URI. One that is away never holds up the training.",
        examples=[["tensorboard", "mlflow"]],
    )
