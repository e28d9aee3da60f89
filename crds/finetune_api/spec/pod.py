"""``spec.pod``: how the training pods run on the cluster, and what they may not do."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from finetune_api.model import Model, cel, validations
from finetune_api.spec.affinity import Affinity
from finetune_api.spec.common import IMAGE, Label, LocalObjectReference, Name, ObjectName, exactly_one_of, require_exactly_one
from finetune_api.spec.containers import EnvironmentVariable, InitContainer, Resources
from finetune_api.spec.volumes import PodVolume

# Keys by which controllers and this operator select pods. A job must not make its pods look like other pods.
RESERVED_KEYS = r"(^|[.])(finetune[.]dev|kubernetes[.]io|k8s[.]io|kueue[.]x-k8s[.]io)/|^(job-name|controller-uid)$"
RESERVED_KEYS_MESSAGE = (
    "keys of finetune.dev, kubernetes.io, k8s.io and kueue.x-k8s.io, job-name and controller-uid are reserved: remove them "
    "(write Kueue's labels and annotations into the metadata of the FineTuneJob)"
)

MAX_OBJECT_BYTES = 65_536
_QUALIFIED_NAME = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"


class Toleration(Model):
    """A toleration, as in a pod."""

    key: str | None = Field(default=None, description="Taint key.", examples=["nvidia.com/gpu"])
    operator: Literal["Exists", "Equal"] | None = Field(default=None, description="Exists or Equal.")
    value: str | None = Field(default=None, description="Taint value.", examples=["true"])
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(default=None, description="Taint effect.")
    toleration_seconds: int | None = Field(default=None, description="For NoExecute: seconds that the pod stays.", examples=[30])


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


class PodResourceClaim(Model):
    """Devices of dynamic resource allocation: exactly one of resourceClaimName, resourceClaimTemplateName."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(exactly_one_of("resource_claim_name", "resource_claim_template_name"))
    )

    name: Label = Field(description="Name of the claim in this job.", examples=["gpus"])
    resource_claim_name: ObjectName | None = Field(
        default=None, description="ResourceClaim that all pods share.", examples=["shared-gpus"]
    )
    resource_claim_template_name: ObjectName | None = Field(
        default=None, description="ResourceClaimTemplate from which each pod gets a claim of its own.", examples=["eight-gpus"]
    )

    @pydantic.model_validator(mode="after")
    def _union(self) -> "PodResourceClaim":
        require_exactly_one(self, "resource_claim_name", "resource_claim_template_name")
        return self


class SchedulingGate(Model):
    """A scheduling gate, as in a pod."""

    name: Annotated[str, Field(min_length=1, max_length=316, pattern=_QUALIFIED_NAME)] = Field(
        description="Name of the gate.", examples=["example.com/approved"]
    )


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
_UNIQUE_NAMES = "names must be unique: rename one of them"
_KNOWN_MOUNTS = (
    "initContainers: a name in volumeMounts must be the name of one of the volumes: correct it, or add name to the volume"
)


def _have_unique_names(items: Sequence[Any]) -> Sequence[Any]:
    names = [item.name for item in items if item.name is not None]
    if len(names) != len(set(names)):
        raise ValueError(_UNIQUE_NAMES)
    return items


# Two lists: of objects that all have a name, and of objects that may have one.
_NAMED = validations(cel("self.all(a, self.exists_one(b, b.name == a.name))", _UNIQUE_NAMES))
_SOME_NAMED = validations(cel("self.all(a, !has(a.name) || self.exists_one(b, has(b.name) && b.name == a.name))", _UNIQUE_NAMES))
_unique_names = pydantic.AfterValidator(_have_unique_names)


class Pod(Model):
    """How the training pods run on the cluster. `finetune run` ignores it."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(
            cel(
                "!has(self.initContainers) || self.initContainers.all(c, !has(c.volumeMounts) || c.volumeMounts.all(m, "
                "has(self.volumes) && self.volumes.exists(v, has(v.name) && v.name == m.name)))",
                _KNOWN_MOUNTS,
            )
        )
    )

    image: Annotated[str, Field(min_length=1, max_length=1024, pattern=IMAGE)] | None = Field(
        default=None,
        description="Trainer image. If left out: the operator's default.",
        examples=["registry.example.com/finetune-trainer:0.1.0"],
    )
    image_pull_secrets: Annotated[Sequence[LocalObjectReference], Field(max_length=16)] | None = Field(
        default=None, description="Secrets to pull the image with."
    )
    service_account_name: ObjectName | None = Field(
        default=None,
        description="ServiceAccount of the pods, for example for access to a cloud's storage. If left out: default.",
        examples=["trainer"],
    )
    automount_service_account_token: bool = Field(
        default=False,
        description="Mount the token of the ServiceAccount, with which the pods can call the Kubernetes API. Access to a cloud "
        "usually does not need it.",
    )
    resources: Resources | None = Field(
        default=None, description="CPU and memory of the trainer container. distributed.gpusPerNode requests the GPUs."
    )
    resource_claims: (
        Annotated[Sequence[PodResourceClaim], Field(max_length=8, json_schema_extra=_NAMED), _unique_names] | None
    ) = Field(
        default=None,
        description="Devices of dynamic resource allocation for the trainer container. distributed.gpuResourceClaim says which "
        "entry has the GPUs.",
    )
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
    volumes: Annotated[Sequence[PodVolume], Field(max_length=16, json_schema_extra=_SOME_NAMED), _unique_names] | None = Field(
        default=None, description="Additional volumes, for the trainer container and initContainers."
    )
    init_containers: Annotated[Sequence[InitContainer], Field(max_length=8, json_schema_extra=_NAMED), _unique_names] | None = (
        Field(
            default=None,
            description="Containers that run before the trainer, one after the other, and sidecars (restartPolicy: Always). "
            "They have the same restrictions as the trainer.",
        )
    )
    scheduling_gates: Annotated[Sequence[SchedulingGate], Field(max_length=8, json_schema_extra=_NAMED), _unique_names] | None = (
        Field(
            default=None,
            description="Gates that another controller must remove from each pod before it is scheduled. This time counts as "
            "waiting for a node.",
        )
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

    @pydantic.model_validator(mode="after")
    def _check_mounts(self) -> "Pod":
        known = {volume.name for volume in self.volumes or ()}
        mounts = [mount for container in self.init_containers or () for mount in container.volume_mounts or ()]
        if any(mount.name not in known for mount in mounts):
            raise ValueError(_KNOWN_MOUNTS)
        return self
