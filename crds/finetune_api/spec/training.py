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
        "the process's share of globalBatchSize, at most 32, halved until it fits the GPU.",
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

    nodes: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=1, description="Pods that train together, spread over machines where possible."
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


class Checkpoint(Model):
    """How often the state of the training is saved, to go on from after a failure."""

    every_steps: Annotated[int, Field(ge=1)] = Field(default=500, description="Save every so many optimizer steps.")
    keep: Annotated[int, Field(ge=1, le=1000)] = Field(default=2, description="Keep so many of the newest checkpoints.")


class Recovery(Model):
    """What happens after a failure that a retry can heal."""

    max_restarts: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=3, description="Restart the whole gang from the last checkpoint this often before the job fails."
    )
    start_timeout_seconds: Annotated[int, Field(ge=0, le=31_536_000)] = Field(
        default=3600,
        description="Seconds that an attempt's pods have to start (images, volumes, Secrets, free machines) before the job "
        "fails. 0 waits without end. Time in a queue does not count.",
    )
