"""``FineTuneJob.spec``: what a user asks for. Every field is implemented; descriptions are what `kubectl explain` shows."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from finetune_api.model import Model, cel, validations

Name = Annotated[str, Field(min_length=1, max_length=253)]
# Relative to the claim's root; a path that climbs out of the claim is refused.
ClaimPath = Annotated[str, Field(max_length=1024, pattern=r"^([^/.][^/]*|\.[^/.][^/]*)(/([^/.][^/]*|\.[^/.][^/]*))*$")]
HubName = Annotated[str, Field(min_length=1, max_length=193, pattern=r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?$")]
Revision = Annotated[str, Field(min_length=1, max_length=255)]

DEFAULT_EPOCHS = 3.0
DEFAULT_WARMUP_RATIO = 0.06


def _exactly_one(model: pydantic.BaseModel, *names: str) -> None:
    given = [name for name in names if getattr(model, name) is not None]
    if len(given) != 1:
        raise ValueError(f"write exactly one of {' and '.join(names)}")


class HubModel(Model):
    """A model repository of the Hub."""

    name: HubName = Field(description="Repository of the model on the Hub, for example google-bert/bert-base-uncased.")
    revision: Revision | None = Field(
        default=None,
        description="Branch, tag or commit; the default branch if left out. Resolved once to a commit, kept in status.resolved.",
    )


class Claim(Model):
    """A directory of a PersistentVolumeClaim; with `finetune run`, of a directory given by --claim NAME=DIR."""

    claim_name: Name = Field(description="PersistentVolumeClaim in the namespace of the job.")
    path: ClaimPath | None = Field(
        default=None, description="Directory below the claim's root, for example models/bert. The root if left out."
    )


_HUB_OR_CLAIM = cel("has(self.hub) != has(self.claim)", "write exactly one of hub and claim")


class ModelSource(Model):
    """The model to start from: exactly one of hub, claim."""

    model_config = pydantic.ConfigDict(json_schema_extra=validations(_HUB_OR_CLAIM))

    hub: HubModel | None = Field(default=None, description="A model repository of the Hub.")
    claim: Claim | None = Field(default=None, description="A directory of a claim that holds a model and its tokenizer.")

    @pydantic.model_validator(mode="after")
    def _union(self) -> "ModelSource":
        _exactly_one(self, "hub", "claim")
        return self


class HubDataset(Model):
    """A data set repository of the Hub."""

    name: HubName = Field(description="Repository of the data set on the Hub, for example stanfordnlp/imdb.")
    config: Name | None = Field(default=None, description="Configuration (subset) of the data set, where it has several.")
    revision: Revision | None = Field(
        default=None,
        description="Branch, tag or commit; the default branch if left out. Resolved once to a commit, kept in status.resolved.",
    )


class ClaimDataset(Claim):
    """Files of a PersistentVolumeClaim."""

    path: ClaimPath | None = Field(
        default=None,
        description="File or directory below the claim's root with the training data, for example news/train.csv. "
        "The root if left out.",
    )
    eval_path: ClaimPath | None = Field(
        default=None, description="File or directory below the claim's root with the evaluation data."
    )
    format: Literal["csv", "tsv", "jsonl", "parquet", "folders"] | None = Field(
        default=None,
        description="Format of the files; by their ending if left out. folders: one folder per class, one text file per example "
        "(columns text and label).",
    )


class Columns(Model):
    """Which columns hold what."""

    text: Name = Field(default="text", description="Column with the text.")
    text_pair: Name | None = Field(default=None, description="Column with the second text, for tasks on pairs of texts.")
    label: Name = Field(default="label", description="Column with the class: a name or a number.")


class Dataset(Model):
    """Data to train and evaluate on: exactly one of hub, claim."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(
            _HUB_OR_CLAIM,
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
    )
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Share of the training data that is held out for evaluation, the same rows for the same seed, stratified by "
        "class; 0.1 if nothing else says what to evaluate on.",
    )
    max_train_samples: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Train on this many rows only, drawn at random (training.seed)."
    )
    max_eval_samples: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Evaluate on this many rows only, drawn at random (training.seed)."
    )

    @pydantic.model_validator(mode="after")
    def _union(self) -> "Dataset":
        _exactly_one(self, "hub", "claim")
        if self.eval_split is not None and self.eval_fraction is not None:
            raise ValueError("write evalSplit or evalFraction, not both")
        if self.claim is not None and self.claim.eval_path is not None and (self.eval_fraction or self.eval_split):
            raise ValueError("claim.evalPath is the evaluation data already: leave out evalFraction and evalSplit")
        return self


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
        default=None, description=f"Passes over the training data; {DEFAULT_EPOCHS:g} if neither epochs nor maxSteps is given."
    )
    max_steps: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Optimizer steps, instead of epochs; the data is gone through again as often as needed."
    )
    global_batch_size: Annotated[int, Field(ge=1, le=1_048_576)] = Field(
        default=32,
        description="Rows per optimizer step over all processes together. Accumulation follows from it, so that the same model "
        "comes out on any number of GPUs.",
    )
    per_device_batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = Field(
        default=None,
        description="Rows per forward pass of one process (micro-batch). Changes memory and speed, not the result. If left out: "
        "the process's share of globalBatchSize, at most 32.",
    )
    max_tokens: Annotated[int, Field(ge=8, le=1_048_576)] = Field(
        default=512, description="Longest text in tokens, special ones included; longer texts are cut."
    )
    learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(default=2e-5, description="Peak learning rate of AdamW.")
    scheduler: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="Course of the learning rate after the warm-up: down to 0, or constant."
    )
    warmup_steps: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Steps over which the learning rate rises from 0."
    )
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None,
        description=f"Share of all steps over which the learning rate rises from 0; {DEFAULT_WARMUP_RATIO:g} if neither "
        "warmupRatio nor warmupSteps is given.",
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        default="auto",
        description="Precision of the computation; weights stay fp32. auto: bf16 where the GPU has it, else fp16 on a GPU, else "
        "fp32.",
    )
    seed: Annotated[int, Field(ge=0, le=4_294_967_295)] = Field(
        default=42, description="Seed of everything random: new layers, order of the data, dropout, held-out rows."
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
        default=None, description="Training processes in each pod; one per GPU, or one on the CPU, if left out."
    )


class Checkpoint(Model):
    """How often the state of the training is saved, to go on from after a failure."""

    every_steps: Annotated[int, Field(ge=1)] = Field(default=500, description="Save every so many optimizer steps.")
    keep: Annotated[int, Field(ge=1, le=1000)] = Field(default=2, description="Keep so many of the newest checkpoints.")


class OutputVolume(Model):
    """A PersistentVolumeClaim that the operator creates for this job, named <name>-output."""

    size: Annotated[str, Field(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$")] = Field(
        default="10Gi", description="Size of the volume, for example 50Gi."
    )
    storage_class_name: Name | None = Field(
        default=None, description="StorageClass of the volume; the cluster's default if left out."
    )
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"] | None = Field(
        default=None, description="Access mode; ReadWriteOnce for one node, ReadWriteMany for several, if left out."
    )


class Retention(Model):
    """What becomes of the volume that output.volume creates."""

    when_deleted: Literal["Retain", "Delete"] = Field(
        default="Retain",
        description="Whether the volume outlives the FineTuneJob. Retain: the claim stays, with checkpoints and model.",
    )


class Output(Model):
    """Where checkpoints, finished model, history and report go: one of claim, volume; a volume of 10Gi if left out."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(
            cel("!(has(self.claim) && has(self.volume))", "write claim or volume, not both"),
            cel(
                "!(has(self.claim) && has(self.retention))", "retention is about output.volume: a claim of your own always stays"
            ),
        )
    )

    claim: Claim | None = Field(default=None, description="A claim that is there already; it is never deleted.")
    volume: OutputVolume | None = Field(default=None, description="A claim that the operator creates for this job.")
    retention: Retention | None = Field(default=None, description="What becomes of the volume that output.volume creates.")

    @pydantic.model_validator(mode="after")
    def _union(self) -> "Output":
        if self.claim is not None and self.volume is not None:
            raise ValueError("write claim or volume, not both")
        if self.claim is not None and self.retention is not None:
            raise ValueError("retention is about output.volume: a claim of your own always stays")
        return self


class Recovery(Model):
    """What happens after a failure that a retry can heal."""

    max_restarts: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=3, description="Restart the whole gang from the last checkpoint this often before the job fails."
    )


class SecretKey(Model):
    """A key of a Secret in the namespace of the job."""

    name: Name = Field(description="Secret in the namespace of the job.")
    key: Name = Field(default="token", description="Key of the Secret that holds the token.")


class Hub(Model):
    """Access to the Hub, for pulling private and gated repositories as well as for pushing."""

    endpoint: Annotated[str, Field(max_length=2048, pattern=r"^https?://[^\s]+$")] | None = Field(
        default=None, description="Address of a mirror or a private Hub, for example https://hub.example.com."
    )
    token_secret_ref: SecretKey | None = Field(
        default=None, description="Secret with an access token of the Hub; only the training pods ever see it."
    )


class Publish(Model):
    """Push the finished model, its tokenizer and a model card to the Hub."""

    repository: Annotated[str, Field(min_length=3, max_length=193, pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")] = Field(
        description="Repository of the Hub, owner/name; created when it is not there."
    )
    visibility: Literal["Private", "Public"] = Field(
        default="Private", description="Visibility of the repository when it is created; that of an existing one is left alone."
    )


class Sample(Model):
    """An input that the finished model is tried on."""

    text: Annotated[str, Field(min_length=1, max_length=4096)] = Field(description="The text.")
    text_pair: Annotated[str, Field(max_length=4096)] | None = Field(
        default=None, description="The second text, for tasks on pairs of texts."
    )


class LocalObjectReference(Model):
    """An object of the namespace of the job, by name."""

    name: Name = Field(description="Name of the object.")


class Toleration(Model):
    """A toleration, as in a pod."""

    key: str | None = Field(default=None, description="Taint key.")
    operator: Literal["Exists", "Equal"] | None = Field(default=None, description="Exists or Equal.")
    value: str | None = Field(default=None, description="Taint value.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(default=None, description="Taint effect.")
    toleration_seconds: int | None = Field(default=None, description="For NoExecute: seconds to stay.")


Quantity = Annotated[int | str, Field(json_schema_extra={"x-kubernetes-int-or-string": True})]


class Resources(Model):
    """Resources of the trainer container, as in a pod; GPUs are asked for by distributed.gpusPerNode."""

    requests: dict[str, Quantity] | None = Field(default=None, description="What the scheduler sets aside.")
    limits: dict[str, Quantity] | None = Field(default=None, description="What the pod may use at most.")


class Pod(Model):
    """How the training pods run on the cluster; means nothing to `finetune run`."""

    image: Annotated[str, Field(min_length=1, max_length=1024)] | None = Field(
        default=None, description="Trainer image; the operator's default if left out."
    )
    image_pull_secrets: Annotated[Sequence[LocalObjectReference], Field(max_length=16)] | None = Field(
        default=None, description="Secrets to pull the image with."
    )
    resources: Resources | None = Field(default=None, description="CPU and memory of each pod.")
    node_selector: dict[str, str] | None = Field(default=None, description="Labels of the machines that may be used.")
    tolerations: Annotated[Sequence[Toleration], Field(max_length=64)] | None = Field(
        default=None, description="Taints of machines that may be used all the same."
    )
    termination_grace_period_seconds: Annotated[int, Field(ge=1, le=3600)] = Field(
        default=60, description="Seconds that a pod has for a checkpoint when it is asked to stop."
    )


class FineTuneJobSpec(Model):
    """What to train, on what, how, and where the result goes."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(
            cel(
                "!has(self.distributed) || self.distributed.nodes < 2 || !has(self.output) || !has(self.output.volume)"
                " || !has(self.output.volume.accessMode) || self.output.volume.accessMode == 'ReadWriteMany'",
                "with distributed.nodes > 1 all pods write to the output volume: output.volume.accessMode must be ReadWriteMany",
            ),
        )
    )

    task: Literal["text-classification"] = Field(description="What the model learns.")
    model: ModelSource = Field(description="The model to start from.")
    datasets: Annotated[Sequence[Dataset], Field(min_length=1, max_length=16)] = Field(
        description="Data to train and evaluate on; several are concatenated."
    )
    training: Training = Field(default_factory=Training, description="How to train.", json_schema_extra={"default": {}})
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
    pod: Pod = Field(
        default_factory=Pod, description="How the training pods run on the cluster.", json_schema_extra={"default": {}}
    )

    @pydantic.model_validator(mode="after")
    def _shared_volume(self) -> "FineTuneJobSpec":
        volume = self.output.volume
        if self.distributed.nodes > 1 and volume and volume.access_mode not in (None, "ReadWriteMany"):
            raise ValueError(
                "with distributed.nodes > 1 all pods write to the output volume: output.volume.accessMode must be ReadWriteMany"
            )
        return self

    @property
    def processes_per_node(self) -> int:
        """Training processes of each pod."""
        return self.distributed.processes_per_node or max(1, self.distributed.gpus_per_node)

    def claim_names(self) -> list[str]:
        """Every claim that the job reads from, each once, sorted; without the output's."""
        sources: list[Any] = [self.model.claim, *(dataset.claim for dataset in self.datasets)]
        return sorted({source.claim_name for source in sources if source is not None})

    def uses_hub(self) -> bool:
        """Whether anything is pulled from or pushed to the Hub; if not, the training needs no network."""
        return self.model.hub is not None or any(dataset.hub for dataset in self.datasets) or self.publish is not None
