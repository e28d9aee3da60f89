"""``spec.pod.env``, ``resources`` and ``initContainers``: the containers of the training pods."""

import re
from collections.abc import Sequence
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from finetune_api.model import Model, cel, validations
from finetune_api.names import TRAINER_CONTAINER
from finetune_api.spec.common import IMAGE, Label, Name, ObjectName, require_exactly_one

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

Quantity = Annotated[int | str, Field(json_schema_extra={"x-kubernetes-int-or-string": True})]


class Resources(Model):
    """Requests and limits of a container, as in a pod."""

    requests: Annotated[dict[str, Quantity], Field(max_length=32)] | None = Field(
        default=None, description="Resources that the scheduler reserves."
    )
    limits: Annotated[dict[str, Quantity], Field(max_length=32)] | None = Field(
        default=None, description="Resources that the pod may use at most."
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


_VALUE_OR_SOURCE = cel("has(self.value) != has(self.valueFrom)", "write exactly one of value and valueFrom")


class Variable(Model):
    """A variable of a container, as in a pod: exactly one of value, valueFrom."""

    model_config = pydantic.ConfigDict(json_schema_extra=validations(_VALUE_OR_SOURCE))

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
    def _alternatives(self) -> "Variable":
        require_exactly_one(self, "value", "value_from")
        return self


class EnvironmentVariable(Variable):
    """A variable of the trainer container, as in a pod: exactly one of value, valueFrom."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(
            _VALUE_OR_SOURCE, cel(f"!self.name.matches('{RESERVED_VARIABLES}')", RESERVED_VARIABLES_MESSAGE)
        )
    )

    @pydantic.model_validator(mode="after")
    def _not_reserved(self) -> "EnvironmentVariable":
        if re.search(RESERVED_VARIABLES, self.name):
            raise ValueError(RESERVED_VARIABLES_MESSAGE)
        return self


Argument = Annotated[str, Field(max_length=4096)]


class VolumeMount(Model):
    """Where a container mounts a volume of spec.pod.volumes."""

    name: Label = Field(description="Name of the volume.", examples=["downloads"])
    mount_path: Annotated[str, Field(max_length=512, pattern=r"^(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+$")] = Field(
        description="Mount path.", examples=["/mnt/downloads"]
    )
    read_only: bool | None = Field(
        default=None, description="Whether the mount is read-only. If left out: as in spec.pod.volumes.", examples=[True]
    )


_TRAINER = "this is the name of the operator's own container: write another one"


class InitContainer(Model):
    """A container that runs before the trainer, or beside it with restartPolicy: Always (a sidecar)."""

    model_config = pydantic.ConfigDict(json_schema_extra=validations(cel(f"self.name != '{TRAINER_CONTAINER}'", _TRAINER)))

    name: Label = Field(description="Name of the container.", examples=["download"])
    image: Annotated[str, Field(min_length=1, max_length=1024, pattern=IMAGE)] | None = Field(
        default=None, description="Image. If left out: the trainer image.", examples=["registry.example.com/rclone:1.70"]
    )
    command: Annotated[Sequence[Argument], Field(max_length=64)] | None = Field(
        default=None, description="Program and its first arguments. If left out: those of the image.", examples=[["sh", "-c"]]
    )
    args: Annotated[Sequence[Argument], Field(max_length=64)] | None = Field(
        default=None, description="Arguments of the program.", examples=[["copy", "bucket:", "/mnt/downloads"]]
    )
    env: Annotated[Sequence[Variable], Field(max_length=64)] | None = Field(default=None, description="Variables.")
    resources: Resources | None = Field(default=None, description="CPU and memory of the container.")
    restart_policy: Literal["Always"] | None = Field(
        default=None,
        description="Always: a sidecar. It starts before the trainer and is restarted if it ends. The kubelet stops it when the "
        "trainer has ended. If left out: the container must succeed before the next one starts; if it fails, the attempt fails.",
    )
    volume_mounts: Annotated[Sequence[VolumeMount], Field(max_length=16)] | None = Field(
        default=None, description="Volumes of spec.pod.volumes that the container mounts."
    )

    @pydantic.model_validator(mode="after")
    def _not_the_trainer(self) -> "InitContainer":
        if self.name == TRAINER_CONTAINER:
            raise ValueError(_TRAINER)
        return self
