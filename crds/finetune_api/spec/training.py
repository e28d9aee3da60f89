"""``spec.training``, ``evaluation``, ``distributed``, ``checkpoint`` and ``recovery``: how to train, and on which hardware."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from finetune_api.model import Model, cel, validations
from finetune_api.spec.arguments import reject_reserved_arguments
from finetune_api.spec.common import Label, Name

DEFAULT_EPOCHS = 3.0
DEFAULT_WARMUP_RATIO = 0.06
Scheduler = Literal[
    "linear", "cosine", "constant", "cosine_with_restarts", "polynomial", "constant_with_warmup", "inverse_sqrt",
    "reduce_lr_on_plateau", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay", "greedy",
]  # fmt: skip
# Schedules that change the learning rate after evaluations, not after steps.
SCHEDULERS_BY_METRIC: tuple[Scheduler, ...] = ("reduce_lr_on_plateau", "greedy")
_NO_WARMUP = "reduce_lr_on_plateau and greedy have no warm-up: remove warmupSteps and warmupRatio"


class Training(Model):
    """How to train. Every field has a default."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(
            cel("!(has(self.epochs) && has(self.maxSteps))", "write epochs or maxSteps, not both"),
            cel("!(has(self.warmupSteps) && has(self.warmupRatio))", "write warmupSteps or warmupRatio, not both"),
            cel(
                "!has(self.perDeviceBatchSize) || self.perDeviceBatchSize <= self.globalBatchSize",
                "perDeviceBatchSize must not be larger than globalBatchSize",
            ),
            cel(
                f"!(self.scheduler in {list(SCHEDULERS_BY_METRIC)}) || !(has(self.warmupSteps) || has(self.warmupRatio))",
                _NO_WARMUP,
            ),
        )
    )

    epochs: Annotated[float, Field(gt=0, le=10_000)] | None = Field(
        default=None,
        description=f"Passes over the training data. {DEFAULT_EPOCHS:g} if neither epochs nor maxSteps is set.",
        examples=[3],
    )
    max_steps: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Optimizer steps, instead of epochs. The data is repeated as often as needed.",
        examples=[1000],
    )
    global_batch_size: Annotated[int, Field(ge=1, le=1_048_576)] = Field(
        default=32,
        description="Rows per optimizer step over all processes. The trainer derives gradient accumulation from it, so any "
        "number of GPUs trains the same model.",
    )
    per_device_batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = Field(
        default=None,
        description="Rows per forward pass of one process (micro-batch). It changes memory and speed, not the result. If left "
        "out: the process's share of globalBatchSize, at most 32 rows, halved until it fits the GPU. On a CPU: at most 2048 "
        "tokens.",
        examples=[16],
    )
    max_tokens: Annotated[int, Field(ge=8, le=1_048_576)] = Field(
        default=512, description="Maximum length of a text in tokens, including special tokens. Longer texts are truncated."
    )
    learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(default=2e-5, description="Peak learning rate of AdamW.")
    scheduler: Scheduler = Field(
        default="linear",
        description="Learning rate schedule after the warm-up, by its name in transformers. linear and cosine decay to 0; "
        "constant and constant_with_warmup do not change. reduce_lr_on_plateau and greedy follow evaluation.best.metric, or the "
        "loss, and have no warm-up. Options of a schedule: arguments: {lr_scheduler_kwargs: {…}}.",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="Share of each label that the training spreads evenly over all classes or tokens. Evaluations do not smooth "
        "labels. Not for dpo, and not for a regression.",
        examples=[0.1],
    )
    warmup_steps: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Warm-up: steps over which the learning rate rises from 0.", examples=[100]
    )
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None,
        description=f"Warm-up: share of all steps over which the learning rate rises from 0. {DEFAULT_WARMUP_RATIO:g} if neither "
        "warmupRatio nor warmupSteps is set.",
        examples=[0.06],
    )
    precision: Literal["Auto", "bf16", "fp16", "tf32", "fp32"] = Field(
        default="Auto",
        description="Precision of the computation. The weights stay fp32. Auto: bf16 if the GPU supports it, else fp16 on a GPU, "
        "else fp32. tf32: fp32 with 10 bits of mantissa in matrix products, on NVIDIA GPUs since Ampere (A100).",
    )
    seed: Annotated[int, Field(ge=0, le=4_294_967_295)] = Field(
        default=42, description="Random seed for new layers, order of the data, dropout and held-out rows."
    )

    loop: Literal["Trainer", "Native"] = Field(
        default="Trainer",
        description="Trainer: the Hugging Face Trainer. Native: a plain PyTorch loop in one file, short and easy to read, for "
        "text-classification, token-classification and masked-lm. Both do the same optimizer steps.",
    )
    activation_checkpointing: bool | None = Field(
        default=None,
        description="Recompute activations in the backward pass instead of storing them: less memory, a fifth slower. If left "
        "out: only if the training would not fit the GPU otherwise.",
        examples=[True],
    )
    arguments: Annotated[Mapping[str, Any], Field(max_length=100), pydantic.AfterValidator(reject_reserved_arguments)] | None = (
        Field(
            default=None,
            description="Other fields of transformers.TrainingArguments of the trainer image, by their own names, for example "
            "{weight_decay: 0.1}. An argument that another field of the job sets is rejected.",
            examples=[{"weight_decay": 0.1, "adam_beta2": 0.95}],
            json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
        )
    )

    @pydantic.model_validator(mode="after")
    def _alternatives(self) -> "Training":
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("write epochs or maxSteps, not both")
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise ValueError("write warmupSteps or warmupRatio, not both")
        if self.per_device_batch_size is not None and self.per_device_batch_size > self.global_batch_size:
            raise ValueError("perDeviceBatchSize must not be larger than globalBatchSize")
        if self.scheduler in SCHEDULERS_BY_METRIC and (self.warmup_steps is not None or self.warmup_ratio is not None):
            raise ValueError(_NO_WARMUP)
        return self


_MIN_NODES = "minNodes must not be larger than nodes"
_EVERY_STEPS_OR_SECONDS = "write everySteps or everySeconds, not both"
_GPUS_OF_CLAIM = "gpuResourceClaim needs gpusPerNode: write how many GPUs the claim of a pod has"
DEFAULT_CHECKPOINT_STEPS = 500


class Best(Model):
    """Which evaluation is the best one."""

    metric: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9]{0,62}$")] = Field(
        default="loss",
        description="Metric of status.evaluation.metrics to compare, for example accuracy, macroF1, loss. docs/tasks.md lists "
        "those of each task.",
    )
    mode: Literal["Min", "Max"] | None = Field(
        default=None,
        description="Min: a lower value is better. Max: a higher value is better. If left out: Min for loss, perplexity and "
        "errors, else Max.",
        examples=["Max"],
    )


class EarlyStopping(Model):
    """When to stop because the model no longer improves."""

    patience: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=3, description="Stop after this many evaluations in a row that are not better than the best."
    )
    min_delta: Annotated[float, Field(ge=0, le=1_000_000)] = Field(
        default=0.0, description="An evaluation counts as better only if it is better by more than this."
    )


class EvaluationPlan(Model):
    """When to evaluate on the held-out data. The trainer always evaluates before the first and after the last step."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(
            cel("!(has(self.everySteps) && has(self.everyEpochs))", "write everySteps or everyEpochs, not both"),
            cel("!has(self.earlyStopping) || has(self.best)", "earlyStopping needs best: {metric: …}"),
        )
    )

    every_steps: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Evaluate each time after this many optimizer steps.", examples=[200]
    )
    every_epochs: Annotated[float, Field(gt=0, le=10_000)] | None = Field(
        default=None,
        description="Evaluate each time after this many passes over the training data. 1 if neither field is set.",
        examples=[0.5],
    )
    best: Best | None = Field(default=None, description="Keep the model of the best evaluation instead of the last one.")
    early_stopping: EarlyStopping | None = Field(default=None, description="Stop when the model no longer improves.")

    @pydantic.model_validator(mode="after")
    def _alternatives(self) -> "EvaluationPlan":
        if self.every_steps is not None and self.every_epochs is not None:
            raise ValueError("write everySteps or everyEpochs, not both")
        if self.early_stopping is not None and self.best is None:
            raise ValueError("earlyStopping needs best: {metric: …}")
        return self


class Distributed(Model):
    """Number of pods, GPUs and processes."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(
            cel("!has(self.minNodes) || self.minNodes <= self.nodes", _MIN_NODES),
            cel("!has(self.gpuResourceClaim) || self.gpusPerNode > 0", _GPUS_OF_CLAIM),
        )
    )

    nodes: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=1, description="Number of pods that train together. They are spread over the cluster's nodes where possible."
    )
    min_nodes: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None,
        description="Minimum number of pods. If a node was lost and the cluster has no replacement, the job continues with fewer "
        "pods. The global batch size does not change, and the next restart tries the full number of pods again. If left out: "
        "the same as nodes.",
        examples=[2],
    )
    gpus_per_node: Annotated[int, Field(ge=0, le=64)] = Field(
        default=0, description="GPUs that each pod requests. 0 trains on the CPU."
    )
    gpu_resource_name: Name = Field(
        default="nvidia.com/gpu", description="Name of the extended resource for GPUs, for example amd.com/gpu."
    )
    gpu_resource_claim: Label | None = Field(
        default=None,
        description="Entry of pod.resourceClaims that has the GPUs of a pod (dynamic resource allocation), instead of "
        "gpuResourceName. gpusPerNode says how many they are.",
        examples=["gpus"],
    )
    processes_per_node: Annotated[int, Field(ge=1, le=64)] | None = Field(
        default=None, description="Training processes in each pod. If left out: one per GPU, or one on the CPU.", examples=[8]
    )
    gang_scheduling: Literal["Auto", "None"] = Field(
        default="Auto",
        description="Auto: the scheduler places all pods of an attempt or none of them (with minNodes: at least that many), if "
        "it can. Volcano, schedulers with the coscheduling plugin, and Kubernetes with its PodGroups (scheduling.k8s.io) can. A "
        "queue of Kueue decides itself. None: it places each pod on its own.",
    )

    @pydantic.model_validator(mode="after")
    def _check_min_nodes(self) -> "Distributed":
        if self.min_nodes is not None and self.min_nodes > self.nodes:
            raise ValueError(_MIN_NODES)
        return self

    @pydantic.model_validator(mode="after")
    def _check_gpus_of_claim(self) -> "Distributed":
        if self.gpu_resource_claim is not None and self.gpus_per_node == 0:
            raise ValueError(_GPUS_OF_CLAIM)
        return self


class Checkpoint(Model):
    """How often to save the state of the training. The job resumes from it after a failure. A save runs in the background."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(cel("!(has(self.everySteps) && has(self.everySeconds))", _EVERY_STEPS_OR_SECONDS))
    )

    every_steps: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Save each time after this many optimizer steps. 500 if neither field is set.", examples=[500]
    )
    every_seconds: Annotated[int, Field(ge=1, le=604_800)] | None = Field(
        default=None, description="Save each time after this many seconds instead.", examples=[600]
    )
    keep: Annotated[int, Field(ge=1, le=1000)] = Field(default=2, description="Number of checkpoints to keep, the newest ones.")

    @pydantic.model_validator(mode="after")
    def _alternatives(self) -> "Checkpoint":
        if self.every_steps is not None and self.every_seconds is not None:
            raise ValueError(_EVERY_STEPS_OR_SECONDS)
        return self

    @property
    def steps(self) -> int | None:
        """Number of optimizer steps between saves. None if ``every_seconds`` is set."""
        return self.every_steps or (DEFAULT_CHECKPOINT_STEPS if self.every_seconds is None else None)


class Recovery(Model):
    """How to recover from failures."""

    max_restarts: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=3,
        description="Maximum number of restarts after failures. Restarts of processes in their pods and new attempts both count. "
        "The count starts again at 0 when an attempt gets beyond the checkpoint that it started from.",
    )
    max_preemptions: Annotated[int, Field(ge=0, le=100_000)] = Field(
        default=100,
        description="Maximum number of restarts after disruptions: drained and lost nodes, preempted and deleted pods. Counted "
        "over the whole life of the job.",
    )
    start_timeout_seconds: Annotated[int, Field(ge=0, le=31_536_000)] = Field(
        default=3600,
        description="Seconds that an attempt's pods have to start (images, volumes, Secrets, initContainers) before the "
        "job fails. 0 waits without a limit. Time in a queue, or without a free node, does not count.",
    )
    schedule_timeout_seconds: Annotated[int, Field(ge=0, le=31_536_000)] = Field(
        default=0,
        description="Seconds that an attempt's pods may wait for free nodes before the job fails. 0 waits without a limit. If "
        "only some of the pods get a node for ten minutes, all of them are deleted and created again after a pause, so that no "
        "GPU waits idle.",
    )
    stall_timeout_seconds: Annotated[int, Field(ge=0, le=31_536_000)] = Field(
        default=600,
        description="Restart from the last checkpoint if no step ended for this many seconds, or for ten times the usual "
        "duration of a step, if that is longer. Each part of loading, evaluating and saving has the same limit. 0 waits without "
        "a limit.",
    )
    on_out_of_memory: Literal["Fail", "ShrinkMicroBatch"] = Field(
        default="ShrinkMicroBatch",
        description="What to do if a GPU runs out of memory. Fail: the job fails. ShrinkMicroBatch: resume from the last "
        "checkpoint with half as many rows per forward pass, which trains the same model more slowly. The job fails if one row "
        "does not fit.",
    )
    on_non_finite_loss: Literal["Fail", "SkipBatch"] = Field(
        default="Fail",
        description="What to do if the loss is NaN or infinite. Fail: the job fails. SkipBatch: resume from the last checkpoint "
        "and skip the batch that caused it, at most a few times.",
    )
