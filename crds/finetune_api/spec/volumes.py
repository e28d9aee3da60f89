"""``spec.pod.volumes``: what the training pods mount in addition to their own volumes. No volume reaches a path of the host."""

from collections.abc import Sequence
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from finetune_api.model import Model, cel, validations
from finetune_api.spec.common import (
    IMAGE,
    Claim,
    ClaimPath,
    Label,
    LocalObjectReference,
    Name,
    ObjectName,
    Size,
    exactly_one_of,
    require_exactly_one,
)


class KeyPath(Model):
    """A key of a Secret or a ConfigMap, and the file that it becomes."""

    key: Name = Field(description="Key.", examples=["api-key"])
    path: ClaimPath = Field(description="Path of the file, relative to the volume's root.", examples=["keys/api-key"])


class KeyFiles(Model):
    """A Secret or a ConfigMap, as one file per key."""

    name: ObjectName = Field(description="Name of the object, in the namespace of the job.", examples=["settings"])
    items: Annotated[Sequence[KeyPath], Field(min_length=1, max_length=32)] | None = Field(
        default=None, description="Keys to mount. If left out: all keys, in files of the same name."
    )


class EmptyDirectory(Model):
    """A directory that exists as long as the pod."""

    size_limit: Size | None = Field(
        default=None, description="Maximum size. The kubelet evicts a pod that exceeds it.", examples=["10Gi"]
    )
    medium: Literal["Memory"] | None = Field(
        default=None, description="Memory: in memory, which counts against the pod's limit. If left out: on the node's disk."
    )


class EphemeralVolume(Model):
    """A PersistentVolumeClaim of each pod. It is created and deleted with the pod."""

    size: Size = Field(description="Size of the volume.", examples=["200Gi"])
    storage_class_name: ObjectName | None = Field(
        default=None, description="StorageClass of the volume. If left out: the cluster's default.", examples=["local-nvme"]
    )
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"] | None = Field(
        default=None, description="Access mode. If left out: ReadWriteOnce."
    )


class ServiceAccountToken(Model):
    """A token of the pod's ServiceAccount for another system than Kubernetes. The kubelet renews it."""

    audience: Name = Field(description="System that accepts the token.", examples=["vault"])
    expiration_seconds: Annotated[int, Field(ge=600, le=4_294_967_296)] | None = Field(
        default=None, description="Seconds until the token expires. If left out: 3600.", examples=[3600]
    )
    path: ClaimPath = Field(description="Path of the file, relative to the volume's root.", examples=["token"])


_PROJECTIONS = ("secret", "config_map", "service_account_token")


class ProjectedSource(Model):
    """A part of a projected volume: exactly one of secret, configMap, serviceAccountToken."""

    model_config = pydantic.ConfigDict(json_schema_extra=validations(exactly_one_of(*_PROJECTIONS)))

    secret: KeyFiles | None = Field(default=None, description="Files from a Secret.")
    config_map: KeyFiles | None = Field(default=None, description="Files from a ConfigMap.")
    service_account_token: ServiceAccountToken | None = Field(default=None, description="A token of the pod's ServiceAccount.")

    @pydantic.model_validator(mode="after")
    def _union(self) -> "ProjectedSource":
        require_exactly_one(self, *_PROJECTIONS)
        return self


class ProjectedVolume(Model):
    """Several sources in one directory."""

    sources: Annotated[Sequence[ProjectedSource], Field(min_length=1, max_length=8)] = Field(description="The sources.")


class ImageVolume(Model):
    """The files of an image or an OCI artifact, read-only. Needs Kubernetes 1.33 or later."""

    reference: Annotated[str, Field(min_length=1, max_length=1024, pattern=IMAGE)] = Field(
        description="Image. It is pulled with imagePullSecrets.", examples=["registry.example.com/models/minilm:1"]
    )
    pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        default=None, description="When to pull. If left out: Always for the tag latest, IfNotPresent otherwise."
    )


class CSIVolume(Model):
    """A volume that a CSI driver creates for each pod, for example with secrets of a vault."""

    driver: ObjectName = Field(description="Name of the driver.", examples=["secrets-store.csi.k8s.io"])
    fs_type: Name | None = Field(default=None, description="File system. If left out: the driver's default.", examples=["ext4"])
    volume_attributes: Annotated[dict[Name, Annotated[str, Field(max_length=4096)]], Field(max_length=32)] | None = Field(
        default=None, description="Attributes that the driver defines.", examples=[{"secretProviderClass": "trainer"}]
    )
    node_publish_secret_ref: LocalObjectReference | None = Field(
        default=None, description="Secret of the job's namespace that the driver gets."
    )


_SOURCES = ("claim", "config_map", "secret", "empty_dir", "ephemeral", "projected", "image", "csi")
_NOT_USED = "nothing mounts this volume: write mountPath, or name it and mount it in initContainers"


class PodVolume(Model):
    """An additional volume: exactly one of claim, configMap, secret, emptyDir, ephemeral, projected, image, csi."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(exactly_one_of(*_SOURCES), cel("has(self.mountPath) || has(self.name)", _NOT_USED))
    )

    name: Label | None = Field(default=None, description="Name of the volume, for initContainers.", examples=["downloads"])
    mount_path: Annotated[str, Field(max_length=512, pattern=r"^/mnt(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+$")] | None = Field(
        default=None,
        description="Mount path in the trainer container, below /mnt. If left out: only initContainers mount the volume.",
        examples=["/mnt/reference"],
    )
    claim: Claim | None = Field(default=None, description="A claim, or a directory of it.")
    config_map: KeyFiles | None = Field(default=None, description="Files from a ConfigMap.")
    secret: KeyFiles | None = Field(default=None, description="Files from a Secret.")
    empty_dir: EmptyDirectory | None = Field(default=None, description="An empty directory on the node.")
    ephemeral: EphemeralVolume | None = Field(default=None, description="A claim of each pod, created and deleted with it.")
    projected: ProjectedVolume | None = Field(default=None, description="Several sources in one directory.")
    image: ImageVolume | None = Field(default=None, description="The files of an image.")
    csi: CSIVolume | None = Field(default=None, description="A volume of a CSI driver.")
    read_only: bool | None = Field(
        default=None,
        description="Whether the volume is mounted read-only. If left out: true, but false for emptyDir and ephemeral.",
        examples=[False],
    )

    @pydantic.model_validator(mode="after")
    def _union(self) -> "PodVolume":
        require_exactly_one(self, *_SOURCES)
        if self.mount_path is None and self.name is None:
            raise ValueError(_NOT_USED)
        return self

    @property
    def mounted_read_only(self) -> bool:
        """Whether containers mount it read-only if they do not say otherwise."""
        return self.read_only if self.read_only is not None else self.empty_dir is None and self.ephemeral is None
