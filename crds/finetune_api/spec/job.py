"""``FineTuneJob.spec`` as a whole."""

from collections.abc import Sequence
from typing import Annotated, Any

import pydantic
from pydantic import Field

from finetune_api.model import Model, cel, validations
from finetune_api.spec.logging import Logging
from finetune_api.spec.output import Cache, Hub, Output, Publish, Sample
from finetune_api.spec.pod import Pod
from finetune_api.spec.rules import RULES
from finetune_api.spec.sources import Dataset, ModelSource
from finetune_api.spec.tasks import TASKS, UNKNOWN_TASK, Classification, DirectPreference, MaskedLM, SupervisedFineTuning, Task
from finetune_api.spec.training import Checkpoint, Distributed, EvaluationPlan, Recovery, Training


class FineTuneJobSpec(Model):
    """What to train, on what, how, and where the result goes."""

    model_config = pydantic.ConfigDict(json_schema_extra=validations(*(cel(rule.cel, rule.sentence) for rule in RULES)))

    task: Task = Field(
        description="What the model learns. text-classification: the class of a text. token-classification: the tag of each "
        "word. masked-lm: hidden words. causal-lm: to go on with a text. sft: to answer prompts and chats; also for question "
        "answering, translation and summarization, as prompt and completion. dpo: which of two answers is the better.",
        examples=["text-classification"],
        json_schema_extra=validations(cel(f"self in {list(TASKS)}", UNKNOWN_TASK)),
    )
    model: ModelSource = Field(description="The model to start from.")
    datasets: Annotated[Sequence[Dataset], Field(min_length=1, max_length=16)] = Field(
        description="Data to train and evaluate on; several are concatenated, or mixed by weight."
    )
    classification: Classification | None = Field(
        default=None, description="Options of text-classification and token-classification."
    )
    masked_lm: MaskedLM | None = Field(default=None, alias="maskedLM", description="Options of masked-lm.")
    sft: SupervisedFineTuning | None = Field(default=None, description="Options of sft.")
    dpo: DirectPreference | None = Field(default=None, description="Options of dpo.")
    training: Training = Field(default_factory=Training, description="How to train.", json_schema_extra={"default": {}})
    evaluation: EvaluationPlan = Field(
        default_factory=EvaluationPlan, description="When to evaluate, and what is the best.", json_schema_extra={"default": {}}
    )
    distributed: Distributed = Field(
        default_factory=Distributed,
        description="On how many machines, GPUs and processes.",
        json_schema_extra={"default": {}},
    )
    checkpoint: Checkpoint = Field(
        default_factory=Checkpoint,
        description="How often the state of the training is saved.",
        json_schema_extra={"default": {}},
    )
    output: Output = Field(
        default_factory=Output,
        description="Where checkpoints, finished model, history and report go.",
        json_schema_extra={"default": {}},
    )
    recovery: Recovery = Field(
        default_factory=Recovery,
        description="What happens after a failure that a retry can heal.",
        json_schema_extra={"default": {}},
    )
    hub: Hub = Field(default_factory=Hub, description="Access to the Hub.", json_schema_extra={"default": {}})
    publish: Publish | None = Field(default=None, description="Push the finished model to the Hub.")
    samples: Annotated[Sequence[Sample], Field(max_length=16)] | None = Field(
        default=None, description="Inputs that the finished model is tried on; its answers are in status.samples."
    )
    logging: Logging = Field(
        default_factory=Logging,
        description="Format of the logs, and experiment trackers.",
        json_schema_extra={"default": {}},
    )
    pod: Pod = Field(
        default_factory=Pod, description="How the training pods run on the cluster.", json_schema_extra={"default": {}}
    )

    cache: Cache | None = Field(
        default=None,
        description="Models and data sets of the Hub, fetched once for all jobs that name the same claim. Without it each pod "
        "fetches its own.",
    )
    suspend: bool = Field(
        default=False,
        description="Stop after a checkpoint and give the machines back; false goes on from there. May be changed at any time.",
    )
    active_deadline_seconds: Annotated[int, Field(ge=1, le=315_360_000)] | None = Field(
        default=None,
        description="Seconds that the job's pods may run in all, over all attempts, before it fails; time in a queue or "
        "suspended does not count. May be changed at any time.",
        examples=[86400],
    )
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=315_360_000)] | None = Field(
        default=None,
        description="Delete the FineTuneJob this many seconds after its end; never where its volume, which would go with it, "
        "holds the only copy of the model. Kept if left out. May be changed at any time.",
        examples=[604800],
    )

    @pydantic.field_validator("task", mode="before")
    @classmethod
    def _known(cls, task: Any) -> Any:
        if isinstance(task, str) and task not in TASKS:
            raise ValueError(UNKNOWN_TASK)
        return task

    @pydantic.model_validator(mode="after")
    def _rules(self) -> "FineTuneJobSpec":
        for rule in RULES:
            if not rule.holds(self):
                raise ValueError(rule.sentence)
        return self

    @property
    def processes_per_node(self) -> int:
        """Training processes of each pod."""
        return self.distributed.processes_per_node or max(1, self.distributed.gpus_per_node)

    @property
    def streaming(self) -> bool:
        """Whether the training data is read while training: of all data sets or of none."""
        return any(dataset.streaming for dataset in self.datasets)

    def claim_names(self) -> list[str]:
        """Every claim that the job reads from, each once, sorted; without the output's."""
        sources: list[Any] = [self.model.claim, *(dataset.claim for dataset in self.datasets)]
        return sorted({source.claim_name for source in sources if source is not None})

    def uses_hub(self) -> bool:
        """Whether anything is pulled from or pushed to the Hub; if not, the training needs no network."""
        return self.model.hub is not None or any(dataset.hub for dataset in self.datasets) or self.publish is not None
