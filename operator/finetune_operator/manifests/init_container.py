"""Builds the containers of spec.pod.initContainers, with the same restrictions as the trainer container."""

from finetune_api import names
from finetune_api.spec import InitContainer
from finetune_operator.manifests.container import build_container_security, build_network_environment
from finetune_operator.manifests.plan import Plan
from finetune_operator.manifests.volumes import SCRATCH, build_mount
from finetune_operator.observed import Manifest

_TMP = "/tmp"  # noqa: S108 - a directory of the pod's own scratch volume


def build_init_container(plan: Plan, container: InitContainer) -> Manifest:
    """Return an init container, or a sidecar if its restartPolicy is Always."""
    return {
        "name": container.name,
        "image": plan.image,
        "imagePullPolicy": "IfNotPresent",
        **container.to_wire(),
        "env": _environment(plan, container),
        "volumeMounts": _mounts(plan, container),
        "securityContext": build_container_security(),
    }


def _environment(plan: Plan, container: InitContainer) -> list[Manifest]:
    """Return the variables of the site, then those of the job, which replace them."""
    own = [variable.to_wire() for variable in container.env or ()]
    given = {variable["name"] for variable in own}
    site = [{"name": "HOME", "value": _TMP}, *build_network_environment(plan)]
    return [*(variable for variable in site if variable["name"] not in given), *own]


def _mounts(plan: Plan, container: InitContainer) -> list[Manifest]:
    volumes = {volume.name: volume for volume in plan.spec.pod.volumes or () if volume.name is not None}
    mounts = [
        build_mount(plan, volume, mount.mount_path, volume.mounted_read_only if mount.read_only is None else mount.read_only)
        for mount in container.volume_mounts or ()
        for volume in [volumes[mount.name]]
    ]
    paths = {mount["mountPath"] for mount in mounts}
    if plan.defaults.ca_bundle is not None:
        path = f"{names.CONFIG_DIR}/{names.CA_FILE_NAME}"
        mounts.append({"name": "config", "mountPath": path, "subPath": names.CA_FILE_NAME, "readOnly": True})
    if _TMP not in paths:
        mounts.append({"name": SCRATCH, "mountPath": _TMP, "subPath": container.name})
    return mounts
