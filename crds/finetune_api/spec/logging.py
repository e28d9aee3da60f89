"""``FineTuneJobSpec.logging``: the format of the logs, and experiment trackers."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from finetune_api.model import Model

LogFormat = Literal["Text", "JSON"]
Tracker = Literal["tensorboard", "wandb", "mlflow"]


class Logging(Model):
    """Format of the pods' logs, and experiment trackers that receive the metrics of the run."""

    format: LogFormat = Field(
        default="Text",
        description="Format of the pods' logs. Text: lines for people. JSON: one object per line, with time, level, job, "
        "attempt, rank and message, and the metrics of a step as fields.",
    )
    report_to: Annotated[Sequence[Tracker], Field(min_length=1, max_length=3)] | None = Field(
        default=None,
        description="Trackers that receive loss, learning rate, throughput and evaluations. The job is one run, also across "
        "restarts. tensorboard: files in tensorboard/ of the output. wandb, mlflow: servers. Set their address and key in "
        "pod.env, for instance WANDB_API_KEY and MLFLOW_TRACKING_URI. An unavailable tracker does not block the training.",
        examples=[["tensorboard", "mlflow"]],
    )
