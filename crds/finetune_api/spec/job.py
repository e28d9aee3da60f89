"""The whole ``FineTuneJob.spec``."""

from collections.abc import Sequence
from typing import Annotated, Any

import pydantic
from pydantic import Field

from finetune_api import names
from finetune_api.model import Model, cel, validations
from finetune_api.spec.logging import Logging
from finetune_api.spec.output import Cache, Hub, Output, Publish, Sample
from finetune_api.spec.pod import Pod
from finetune_api.spec.rules import RULES
from finetune_api.spec.sources import Dataset, ModelSource
from finetune_api.spec.tasks import TASKS, UNKNOWN_TASK, Classification, DirectPreference, MaskedLM, SupervisedFineTuning, Task
from finetune_api.spec.training import Checkpoint, Distributed, EvaluationPlan, Recovery, Training

# A domain and a path, as in spec.managedBy of Jobs.
_MANAGER = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/[A-Za-z0-9/._~-]+$"


class FineTuneJobSpec(Model):
    """The model, the data, how to train, and where the result goes."""

    model_config = pydantic.ConfigDict(json_schema_extra=validations(*(cel(rule.cel, rule.message) for rule in RULES)))

    task: Task = Field(
        description="What the model learns. text-classification: to predict the class of a text. token-classification: to "
        "predict the tag of each word. masked-lm: to predict masked tokens. causal-lm: to continue a text. sft: to answer "
        "prompts and chats; also for question answering, translation and summarization, as prompt and completion. dpo: to "
        "prefer the better of two answers.",
        examples=["text-classification"],
        json_schema_extra=validations(cel(f"self in {list(TASKS)}", UNKNOWN_TASK)),
    )
    model: ModelSource = Field(description="The model to start from.")
    datasets: Annotated[Sequence[Dataset], Field(min_length=1, max_length=16)] = Field(
        description="Data to train and evaluate on. Several data sets are concatenated, or mixed by weight."
    )
    classification: Classification | None = Field(
        default=None, description="Options of text-classification and token-classification."
    )
    masked_lm: MaskedLM | None = Field(default=None, alias="maskedLM", description="Options of masked-lm.")
    sft: SupervisedFineTuning | None = Field(default=None, description="Options of sft.")
    dpo: DirectPreference | None = Field(default=None, description="Options of dpo.")
    training: Training = Field(default_factory=Training, description="How to train.", json_schema_extra={"default": {}})
    evaluation: EvaluationPlan = Field(
        default_factory=EvaluationPlan,
        description="When to evaluate, and which model is the best.",
        json_schema_extra={"default": {}},
    )
    distributed: Distributed = Field(
        default_factory=Distributed,
        description="Number of pods, GPUs and processes. May be changed while the job is suspended.",
        json_schema_extra={"default": {}},
    )
    checkpoint: Checkpoint = Field(
        default_factory=Checkpoint,
        description="How often to save the state of the training.",
        json_schema_extra={"default": {}},
    )
    output: Output = Field(
        default_factory=Output,
        description="Where checkpoints, finished model, history and report go.",
        json_schema_extra={"default": {}},
    )
    recovery: Recovery = Field(
        default_factory=Recovery,
        description="How to recover from failures.",
        json_schema_extra={"default": {}},
    )
    hub: Hub = Field(default_factory=Hub, description="Access to the Hub.", json_schema_extra={"default": {}})
    publish: Publish | None = Field(default=None, description="Push the finished model to the Hub.")
    samples: Annotated[Sequence[Sample], Field(max_length=16)] | None = Field(
        default=None, description="Inputs for the finished model. Its predictions are in status.samples."
    )
    logging: Logging = Field(
        default_factory=Logging,
        description="Format of the logs, and experiment trackers.",
        json_schema_extra={"default": {}},
    )
    pod: Pod = Field(
        default_factory=Pod,
        description="How the training pods run on the cluster. May be changed while the job is suspended.",
        json_schema_extra={"default": {}},
    )

    cache: Cache | None = Field(
        default=None,
        description="Cache for models and data sets of the Hub. Jobs that name the same claim download each of them once. "
        "Without a cache, each pod downloads its own copy.",
    )
    suspend: bool = Field(
        default=False,
        description="true: save a checkpoint and delete the pods. false: run, or resume from the checkpoint. May be changed at "
        "any time.",
    )
    managed_by: Annotated[str, Field(max_length=63, pattern=_MANAGER)] | None = Field(
        default=None,
        description=f"Controller that runs the job. If it is another one than {names.MANAGER}, the operator leaves the job "
        "alone: no pods, no status, no metrics, no deletion. If left out: the operator. It can never be changed.",
        examples=["kueue.x-k8s.io/multikueue"],
    )
    active_deadline_seconds: Annotated[int, Field(ge=1, le=315_360_000)] | None = Field(
        default=None,
        description="Seconds that the job's pods may run, over all attempts, before the job fails. Time in a queue and suspended "
        "time do not count. May be changed at any time.",
        examples=[86400],
    )
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=315_360_000)] | None = Field(
        default=None,
        description="Delete the FineTuneJob this many seconds after its end. If its output volume would be deleted with it and "
        "holds the only copy of the model, the job stays. If left out: it is not deleted. May be changed at any time.",
        examples=[604800],
    )

    @pydantic.field_validator("task", mode="before")
    @classmethod
    def _check_task(cls, task: Any) -> Any:
        if isinstance(task, str) and task not in TASKS:
            raise ValueError(UNKNOWN_TASK)
        return task

    @pydantic.model_validator(mode="after")
    def _check_rules(self) -> "FineTuneJobSpec":
        for rule in RULES:
            if not rule.holds(self):
                raise ValueError(rule.message)
        return self

    @property
    def processes_per_node(self) -> int:
        """Training processes of each pod."""
        return self.distributed.processes_per_node or max(1, self.distributed.gpus_per_node)

    @property
    def streaming(self) -> bool:
        """Whether the training data is streamed. Either all data sets are streamed or none is."""
        return any(dataset.streaming for dataset in self.datasets)

    def claim_names(self) -> list[str]:
        """Return the names of the claims of model and datasets, sorted and without duplicates."""
        sources: list[Any] = [self.model.claim, *(dataset.claim for dataset in self.datasets)]
        return sorted({source.claim_name for source in sources if source is not None})

    def uses_hub(self) -> bool:
        """Return whether the job pulls from the Hub or pushes to it. If not, the training needs no network."""
        return self.model.hub is not None or any(dataset.hub for dataset in self.datasets) or self.publish is not None
