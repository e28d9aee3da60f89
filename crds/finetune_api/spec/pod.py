"""``spec.pod``: how the training pods run on the cluster, and what they may not do."""

import re
from collections.abc import Sequence
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from finetune_api.model import Model, cel, validations
from finetune_api.spec.affinity import Affinity
from finetune_api.spec.common import Claim, LocalObjectReference, Name, ObjectName, require_exactly_one

# Variables that the operator sets, or that change which program runs in the pods. CEL and Python both use the pattern.
RESERVED_VARIABLES = (
    "^(LD_|PYTHON|PET_|MASTER_|FINETUNE_|TORCHELASTIC_|JOB_COMPLETION_|KUBERNETES_|NVIDIA_)"
    "|^(PATH|HOME|RANK|LOCAL_RANK|GROUP_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|HF_ENDPOINT|HF_TOKEN|HF_HOME|HF_HUB_CACHE|POD_IP|NODE_NAME"
    "|HUGGING_FACE_HUB_TOKEN|SSL_CERT_FILE|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|TORCH_DISABLE_SHARE_RDZV_TCP_STORE|PROMETHEUS_MULTIPROC_DIR"
    "|HTTP_PROXY|HTTPS_PROXY|NO_PROXY|http_proxy|https_proxy|no_proxy)$"
)
RESERVED_VARIABLES_MESSAGE = (
    "the operator sets this variable, or it changes which program runs: use spec.hub.endpoint and spec.hub.tokenSecretRef for "
    "the Hub, and spec.distributed for processes and nodes"
)
# Keys by which controllers and this operator select pods. A job must not make its pods look like other pods.
RESERVED_KEYS = r"(^|[.])(finetune[.]dev|kubernetes[.]io|k8s[.]io|kueue[.]x-k8s[.]io)/|^(job-name|controller-uid)$"
RESERVED_KEYS_MESSAGE = (
    "keys of finetune.dev, kubernetes.io, k8s.io and kueue.x-k8s.io, job-name and controller-uid are reserved: remove them "
    "(write Kueue's labels and annotations into the metadata of the FineTuneJob)"
)


# The grammar of image references: [host[:port]/]path[:tag][@digest]. Without "..", no prefix of a path leads out of it.
_COMPONENT = "[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*"
IMAGE = (
    f"^(([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\\[[0-9A-Fa-f:]+\\])(:[0-9]{{1,5}})?/)?{_COMPONENT}(/{_COMPONENT})*"
    "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@[a-z0-9]+:[0-9a-f]{32,128})?$"
)

MAX_OBJECT_BYTES = 65_536


class Toleration(Model):
    """A toleration, as in a pod."""

    key: str | None = Field(default=None, description="Taint key.", examples=["nvidia.com/gpu"])
    operator: Literal["Exists", "Equal"] | None = Field(default=None, description="Exists or Equal.")
    value: str | None = Field(default=None, description="Taint value.", examples=["true"])
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(default=None, description="Taint effect.")
    toleration_seconds: int | None = Field(default=None, description="For NoExecute: seconds that the pod stays.", examples=[30])


Quantity = Annotated[int | str, Field(json_schema_extra={"x-kubernetes-int-or-string": True})]


class Resources(Model):
    """Resources of the trainer container, as in a pod. distributed.gpusPerNode requests the GPUs."""

    requests: Annotated[dict[str, Quantity], Field(max_length=32)] | None = Field(
        default=None, description="Resources that the scheduler reserves."
    )
    limits: Annotated[dict[str, Quantity], Field(max_length=32)] | None = Field(
        default=None, description="Resources that the pod may use at most."
    )


class SpreadConstraint(Model):
    """How the job's pods are spread over failure domains. The operator sets the label selector to the pods of the attempt."""

    max_skew: Annotated[int, Field(ge=1)] = Field(
        default=1, description="Maximum difference between the numbers of pods of two domains."
    )
    topology_key: Name = Field(
        description="Label of the nodes whose value names the domain.", examples=["topology.kubernetes.io/zone"]
    )
    when_unsatisfiable: Literal["ScheduleAnyway", "DoNotSchedule"] = Field(
        default="ScheduleAnyway", description="What the scheduler does if it can't satisfy the constraint."
    )


class PodSecurity(Model):
    """User and groups of the training processes. The other settings are fixed to Pod Security "restricted"."""

    run_as_user: Annotated[int, Field(ge=1, le=2_147_483_647)] | None = Field(
        default=None, description="User ID of the processes, never 0. If left out: the operator's default.", examples=[1000]
    )
    run_as_group: Annotated[int, Field(ge=1, le=2_147_483_647)] | None = Field(
        default=None, description="Group ID of the processes, never 0. If left out: the operator's default.", examples=[1000]
    )
    fs_group: Annotated[int, Field(ge=1, le=2_147_483_647)] | None = Field(
        default=None, description="Group ID of the volumes. If left out: the operator's default.", examples=[1000]
    )


class KeyReference(Model):
    """A key of a Secret or a ConfigMap in the namespace of the job."""

    name: ObjectName = Field(description="Name of the Secret or the ConfigMap.", examples=["wandb"])
    key: Name = Field(description="Key in it.", examples=["api-key"])


class EnvironmentSource(Model):
    """Where the value of a variable comes from: exactly one of secretKeyRef, configMapKeyRef."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(
            cel("has(self.secretKeyRef) != has(self.configMapKeyRef)", "write exactly one of secretKeyRef and configMapKeyRef")
        )
    )

    secret_key_ref: KeyReference | None = Field(default=None, description="A key of a Secret. Only the pod reads it.")
    config_map_key_ref: KeyReference | None = Field(default=None, description="A key of a ConfigMap.")

    @pydantic.model_validator(mode="after")
    def _union(self) -> "EnvironmentSource":
        require_exactly_one(self, "secret_key_ref", "config_map_key_ref")
        return self


class EnvironmentVariable(Model):
    """A variable of the trainer container, as in a pod: exactly one of value, valueFrom."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(
            cel("has(self.value) != has(self.valueFrom)", "write exactly one of value and valueFrom"),
            cel(f"!self.name.matches('{RESERVED_VARIABLES}')", RESERVED_VARIABLES_MESSAGE),
        )
    )

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = Field(
        description="Name of the variable.", examples=["WANDB_PROJECT"]
    )
    value: Annotated[str, Field(max_length=4096)] | None = Field(
        default=None,
        description="Value of the variable. Everyone who can read the job can read it, so do not write a password here.",
        examples=["news"],
    )
    value_from: EnvironmentSource | None = Field(default=None, description="Source of the value.")

    @pydantic.model_validator(mode="after")
    def _alternatives(self) -> "EnvironmentVariable":
        require_exactly_one(self, "value", "value_from")
        if re.search(RESERVED_VARIABLES, self.name):
            raise ValueError(RESERVED_VARIABLES_MESSAGE)
        return self


class PodVolume(Model):
    """An additional volume of the trainer container: exactly one of claim, configMap."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(cel("has(self.claim) != has(self.configMap)", "write exactly one of claim and configMap"))
    )

    mount_path: Annotated[str, Field(max_length=512, pattern=r"^/mnt(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+$")] = Field(
        description="Mount path, below /mnt.", examples=["/mnt/reference"]
    )
    claim: Claim | None = Field(default=None, description="A claim, or a directory of it.")
    config_map: LocalObjectReference | None = Field(default=None, description="A ConfigMap, mounted with one file per key.")
    read_only: bool = Field(default=True, description="Whether the volume is mounted read-only.")

    @pydantic.model_validator(mode="after")
    def _union(self) -> "PodVolume":
        require_exactly_one(self, "claim", "config_map")
        return self


LabelKey = Annotated[str, Field(max_length=317)]
LabelValue = Annotated[str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$")]


def _reject_reserved_keys(mapping: dict[str, str] | None) -> dict[str, str] | None:
    if any(re.search(RESERVED_KEYS, key) for key in mapping or ()):
        raise ValueError(RESERVED_KEYS_MESSAGE)
    return mapping


def _limit_size(value: Affinity) -> Affinity:
    if len(value.model_dump_json(by_alias=True, exclude_none=True)) > MAX_OBJECT_BYTES:
        raise ValueError(f"write at most {MAX_OBJECT_BYTES // 1024} KiB: it is copied to every pod of the job")
    return value


_NO_RESERVED_KEYS = validations(cel(f"self.all(key, !key.matches('{RESERVED_KEYS}'))", RESERVED_KEYS_MESSAGE))


class Pod(Model):
    """How the training pods run on the cluster. `finetune run` ignores it."""

    image: Annotated[str, Field(min_length=1, max_length=1024, pattern=IMAGE)] | None = Field(
        default=None,
        description="Trainer image. If left out: the operator's default.",
        examples=["registry.example.com/finetune-trainer:0.1.0"],
    )
    image_pull_secrets: Annotated[Sequence[LocalObjectReference], Field(max_length=16)] | None = Field(
        default=None, description="Secrets to pull the image with."
    )
    resources: Resources | None = Field(default=None, description="CPU and memory of each pod.")
    node_selector: Annotated[dict[LabelKey, LabelValue], Field(max_length=64)] | None = Field(
        default=None, description="Labels that the nodes of the pods must have."
    )
    tolerations: Annotated[Sequence[Toleration], Field(max_length=64)] | None = Field(
        default=None, description="Taints of nodes that the pods tolerate."
    )
    affinity: Annotated[Affinity, pydantic.AfterValidator(_limit_size)] | None = Field(
        default=None,
        description="Affinity, with the fields of a pod's (kubectl explain pod.spec.affinity). An unknown field is rejected.",
    )
    topology_spread_constraints: Annotated[Sequence[SpreadConstraint], Field(max_length=8)] | None = Field(
        default=None, description="How the pods are spread over nodes. If left out: evenly, where possible."
    )
    priority_class_name: ObjectName | None = Field(default=None, description="PriorityClass of the pods.", examples=["batch-low"])
    scheduler_name: ObjectName | None = Field(
        default=None,
        description="Scheduler of the pods. If left out: the cluster's default. Volcano and schedulers with the coscheduling "
        "plugin get a PodGroup: they place all pods of an attempt, or none.",
        examples=["volcano"],
    )
    runtime_class_name: ObjectName | None = Field(
        default=None, description="RuntimeClass of the pods, if GPUs need one.", examples=["nvidia"]
    )
    security_context: PodSecurity | None = Field(default=None, description="User and groups of the training processes.")
    termination_grace_period_seconds: Annotated[int, Field(ge=1, le=3600)] = Field(
        default=60, description="Seconds that a pod has to save a checkpoint after it was asked to stop."
    )
    env: Annotated[Sequence[EnvironmentVariable], Field(max_length=64)] | None = Field(
        default=None, description="Additional variables of the trainer container, for example keys of tracking services."
    )
    volumes: Annotated[Sequence[PodVolume], Field(max_length=16)] | None = Field(
        default=None, description="Additional volumes of the trainer container: only claims and ConfigMaps."
    )
    labels: (
        Annotated[
            dict[LabelKey, LabelValue],
            Field(max_length=32, json_schema_extra=_NO_RESERVED_KEYS),
            pydantic.AfterValidator(_reject_reserved_keys),
        ]
        | None
    ) = Field(default=None, description="Additional labels of the pods.", examples=[{"team": "search"}])
    annotations: (
        Annotated[
            dict[LabelKey, Annotated[str, Field(max_length=4096)]],
            Field(max_length=32, json_schema_extra=_NO_RESERVED_KEYS),
            pydantic.AfterValidator(_reject_reserved_keys),
        ]
        | None
    ) = Field(default=None, description="Additional annotations of the pods.", examples=[{"sidecar.istio.io/inject": "false"}])
