"""``spec.training``, ``distributed``, ``checkpoint`` and ``recovery``: how to train, and on what."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from finetune_api.model import Model, cel, validations
from finetune_api.spec.arguments import refuse_arguments
from finetune_api.spec.common import Name

DEFAULT_EPOCHS = 3.0
DEFAULT_WARMUP_RATIO = 0.06


class Training(Model):
    """How to train. Every field has a default that a newcomer need not know."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(
            cel("!(has(self.epochs) && has(self.maxSteps))", "write epochs or maxSteps, not both"),
            cel("!(has(self.warmupSteps) && has(self.warmupRatio))", "write warmupSteps or warmupRatio, not both"),
            cel(
                "!has(self.perDeviceBatchSize) || self.perDeviceBatchSize <= self.globalBatchSize",
                "perDeviceBatchSize must not be larger than globalBatchSize",
            ),
        )
    )

    epochs: Annotated[float, Field(gt=0, le=10_000)] | None = Field(
        default=None,
        description=f"Passes over the training data; {DEFAULT_EPOCHS:g} if neither epochs nor maxSteps is given.",
        examples=[3],
    )
    max_steps: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Optimizer steps, instead of epochs; the data is gone through again as often as needed.",
        examples=[1000],
    )
    global_batch_size: Annotated[int, Field(ge=1, le=1_048_576)] = Field(
        default=32,
        description="Rows per optimizer step over all processes together. Accumulation follows from it, so that the same model "
        "comes out on any number of GPUs.",
    )
    per_device_batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = Field(
        default=None,
        description="Rows per forward pass of one process (micro-batch). Changes memory and speed, not the result. If left out: "
        "the process's share of globalBatchSize, at most 32, halved until it fits the GPU; on a CPU at most 2048 tokens.",
        examples=[16],
    )
    max_tokens: Annotated[int, Field(ge=8, le=1_048_576)] = Field(
        default=512, description="Longest text in tokens, special ones included; longer texts are cut."
    )
    learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(default=2e-5, description="Peak learning rate of AdamW.")
    scheduler: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="Course of the learning rate after the warm-up: down to 0, or constant."
    )
    warmup_steps: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Steps over which the learning rate rises from 0.", examples=[100]
    )
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None,
        description=f"Share of all steps over which the learning rate rises from 0; {DEFAULT_WARMUP_RATIO:g} if neither "
        "warmupRatio nor warmupSteps is given.",
        examples=[0.06],
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        default="auto",
        description="Precision of the computation; weights stay fp32. auto: bf16 where the GPU has it, else fp16 on a GPU, else "
        "fp32.",
    )
    seed: Annotated[int, Field(ge=0, le=4_294_967_295)] = Field(
        default=42, description="Seed of everything random: new layers, order of the data, dropout, held-out rows."
    )

    loop: Literal["trainer", "native"] = Field(
        default="trainer",
        description="trainer: the Hugging Face Trainer. native: a plain PyTorch loop in one file, to be read and learned from; "
        "for text-classification, token-classification and masked-lm. Both take the same steps.",
    )
    activation_checkpointing: bool | None = Field(
        default=None,
        description="Compute activations again in the backward pass instead of keeping them: less memory, a fifth slower. If "
        "left out: only where the training would not fit the GPU otherwise.",
        examples=[True],
    )
    arguments: Annotated[Mapping[str, Any], Field(max_length=100), pydantic.AfterValidator(refuse_arguments)] | None = Field(
        default=None,
        description="Any other field of transformers.TrainingArguments of the trainer image, by its own name, for example "
        "{weight_decay: 0.1}; refused where another field of the job says the same.",
        examples=[{"weight_decay": 0.1, "adam_beta2": 0.95}],
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )

    @pydantic.model_validator(mode="after")
    def _alternatives(self) -> "Training":
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("write epochs or maxSteps, not both")
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise ValueError("write warmupSteps or warmupRatio, not both")
        if self.per_device_batch_size is not None and self.per_device_batch_size > self.global_batch_size:
            raise ValueError("perDeviceBatchSize must not be larger than globalBatchSize")
        return self


_MIN_NODES = "minNodes must not be larger than nodes"
_EVERY = "write everySteps or everyMinutes, not both"
DEFAULT_CHECKPOINT_STEPS = 500


class Best(Model):
    """Which evaluation is the best."""

    metric: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9]{0,62}$")] = Field(
        default="loss", description="Figure of status.evaluation.metrics to go by, for example accuracy, macroF1, f1, loss."
    )
    mode: Literal["Min", "Max"] | None = Field(
        default=None,
        description="Whether less or more is better. If left out: Min for loss, perplexity and errors, else Max.",
        examples=["Max"],
    )


class EarlyStopping(Model):
    """When to stop because it gets no better."""

    patience: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=3, description="Stop after so many evaluations in a row that are no better than the best."
    )
    min_delta: Annotated[float, Field(ge=0, le=1_000_000)] = Field(
        default=0.0, description="An evaluation counts as better only if it is so by more than this."
    )


class EvaluationPlan(Model):
    """When to evaluate on the held-out data. It is always done before the first and after the last step."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(
            cel("!(has(self.everySteps) && has(self.everyEpochs))", "write everySteps or everyEpochs, not both"),
            cel("!has(self.earlyStopping) || has(self.best)", "earlyStopping needs best: {metric: …}, which says what is better"),
        )
    )

    every_steps: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Evaluate every so many optimizer steps.", examples=[200]
    )
    every_epochs: Annotated[float, Field(gt=0, le=10_000)] | None = Field(
        default=None, description="Evaluate every so many passes over the training data; 1 if neither is given.", examples=[0.5]
    )
    best: Best | None = Field(
        default=None, description="Keep the best model of all evaluations as the finished one, instead of the last."
    )
    early_stopping: EarlyStopping | None = Field(default=None, description="Stop when it gets no better.")

    @pydantic.model_validator(mode="after")
    def _alternatives(self) -> "EvaluationPlan":
        if self.every_steps is not None and self.every_epochs is not None:
            raise ValueError("write everySteps or everyEpochs, not both")
        if self.early_stopping is not None and self.best is None:
            raise ValueError("earlyStopping needs best: {metric: …}, which says what is better")
        return self


class Distributed(Model):
    """On how many machines, GPUs and processes."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(cel("!has(self.minNodes) || self.minNodes <= self.nodes", _MIN_NODES))
    )

    nodes: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=1, description="Pods that train together, spread over machines where possible."
    )
    min_nodes: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None,
        description="Go on with fewer pods, at least so many, when a machine that was lost finds no substitute; the global batch "
        "stays what it is, and the next restart tries all of them again. As many as nodes if left out.",
        examples=[2],
    )
    gpus_per_node: Annotated[int, Field(ge=0, le=64)] = Field(
        default=0, description="GPUs that each pod asks for; 0 trains on the CPU."
    )
    gpu_resource_name: Name = Field(
        default="nvidia.com/gpu", description="Extended resource that a GPU is, for example amd.com/gpu."
    )
    processes_per_node: Annotated[int, Field(ge=1, le=64)] | None = Field(
        default=None, description="Training processes in each pod; one per GPU, or one on the CPU, if left out.", examples=[8]
    )

    @pydantic.model_validator(mode="after")
    def _fewer(self) -> "Distributed":
        if self.min_nodes is not None and self.min_nodes > self.nodes:
            raise ValueError(_MIN_NODES)
        return self


class Checkpoint(Model):
    """How often the state of the training is saved, to go on from after a failure. It is written while the training goes on."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(cel("!(has(self.everySteps) && has(self.everyMinutes))", _EVERY))
    )

    every_steps: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Save every so many optimizer steps; 500 if neither is given.", examples=[500]
    )
    every_minutes: Annotated[float, Field(gt=0, le=10_080)] | None = Field(
        default=None, description="Save every so many minutes instead.", examples=[10]
    )
    keep: Annotated[int, Field(ge=1, le=1000)] = Field(default=2, description="Keep so many of the newest checkpoints.")

    @pydantic.model_validator(mode="after")
    def _alternatives(self) -> "Checkpoint":
        if self.every_steps is not None and self.every_minutes is not None:
            raise ValueError(_EVERY)
        return self

    @property
    def steps(self) -> int | None:
        """Save every so many optimizer steps; None where the clock decides."""
        return self.every_steps or (DEFAULT_CHECKPOINT_STEPS if self.every_minutes is None else None)


class Recovery(Model):
    """What happens after a failure that a retry can heal."""

    max_restarts: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=3,
        description="Go on from the last checkpoint after so many failures before the job fails: restarts of processes in their "
        "pods and of the whole gang count alike. Counted anew when an attempt got beyond the checkpoint that it started from.",
    )
    max_preemptions: Annotated[int, Field(ge=0, le=100_000)] = Field(
        default=100,
        description="The same for what is nobody's failure: drained and lost machines, preempted and deleted pods. Counted over "
        "the whole life of the job.",
    )
    start_timeout_seconds: Annotated[int, Field(ge=0, le=31_536_000)] = Field(
        default=3600,
        description="Seconds that an attempt's pods have to start (images, volumes, Secrets, free machines) before the job "
        "fails. 0 waits without end. Time in a queue does not count.",
    )
    stall_timeout_seconds: Annotated[int, Field(ge=0, le=31_536_000)] = Field(
        default=600,
        description="Restart from the last checkpoint when no step ended for so many seconds, or for ten times as long as a "
        "step usually takes, if that is longer. Loading, evaluating and saving have as long for each part. 0 waits without end.",
    )
    on_out_of_memory: Literal["Fail", "ShrinkMicroBatch"] = Field(
        default="ShrinkMicroBatch",
        description="What to do when a GPU's memory is not enough. ShrinkMicroBatch: go on from the last checkpoint with half as "
        "many rows per forward pass, which trains the same model more slowly; it fails at one row.",
    )
    on_non_finite_loss: Literal["Fail", "SkipBatch"] = Field(
        default="Fail",
        description="What to do when the loss is no number. SkipBatch: go back to the last checkpoint and leave out the batch "
        "that did it, a few times at most.",
    )
