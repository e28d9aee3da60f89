"""Builds the volumes of a training pod: its configuration, scratch space, and what the job names, but no paths of the host."""

from finetune_api import names
from finetune_api.spec import PodVolume
from finetune_api.spec.volumes import EphemeralVolume, KeyFiles
from finetune_operator.manifests.plan import Plan
from finetune_operator.observed import Manifest

# Each init container has a directory of this volume as its own /tmp, because its root file system is read-only.
SCRATCH = "scratch"


def _claim_volumes(plan: Plan) -> dict[str, str]:
    """Return claim name → volume name. Each claim has one volume, because not every cluster allows two for one claim in a pod."""
    output = plan.spec.output.claim
    volumes = {output.claim_name if output is not None else names.output_claim_name(plan.name): "output"}
    for index, claim in enumerate(plan.spec.claim_names()):
        volumes.setdefault(claim, f"claim-{index}")
    if plan.cache_claim is not None:
        volumes.setdefault(plan.cache_claim, "cache")
    for index, volume in enumerate(plan.spec.pod.volumes or ()):
        if volume.claim is not None:
            volumes.setdefault(volume.claim.claim_name, f"extra-{index}")
    return volumes


def build_mounts(plan: Plan) -> list[Manifest]:
    """Return the volume mounts of the trainer container."""
    volumes = _claim_volumes(plan)
    mounts: list[Manifest] = [
        {"name": "config", "mountPath": names.CONFIG_DIR, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108
        {"name": "output", "mountPath": names.OUTPUT_DIR},
        *(
            {"name": volumes[claim], "mountPath": f"{names.CLAIMS_DIR}/{claim}", "readOnly": True}
            for claim in plan.spec.claim_names()
        ),
    ]
    if plan.cache_claim is not None:
        mounts.append({"name": volumes[plan.cache_claim], "mountPath": names.CACHE_DIR})
    return mounts + [
        build_mount(plan, volume, volume.mount_path, volume.mounted_read_only)
        for volume in plan.spec.pod.volumes or ()
        if volume.mount_path is not None
    ]


def build_mount(plan: Plan, volume: PodVolume, path: str, read_only: bool) -> Manifest:
    """Return the mount of a volume of spec.pod.volumes."""
    if volume.claim is None:
        return {"name": _extra_name(plan, volume), "mountPath": path, "readOnly": read_only}
    mount = {"name": _claim_volumes(plan)[volume.claim.claim_name], "mountPath": path, "readOnly": read_only}
    return {**mount, "subPath": volume.claim.path} if volume.claim.path else mount


def _extra_name(plan: Plan, volume: PodVolume) -> str:
    return f"extra-{list(plan.spec.pod.volumes or ()).index(volume)}"


def _config_volume(plan: Plan) -> Manifest:
    """Return the volume with the files of the attempt's ConfigMap and, if there are any, the CA certificates."""
    if plan.ca_bundle_name is None:
        return {"name": "config", "configMap": {"name": plan.unique_name}}
    sources = [{"configMap": {"name": name}} for name in (plan.unique_name, plan.ca_bundle_name)]
    return {"name": "config", "projected": {"sources": sources}}


def build_volumes(plan: Plan) -> list[Manifest]:
    """Return the volumes for these mounts."""
    pod = plan.spec.pod
    return [
        _config_volume(plan),
        {"name": "tmp", "emptyDir": {}},
        # The container runtime's default /dev/shm has 64 MiB, which is too little for data loaders and NCCL.
        {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        *([{"name": SCRATCH, "emptyDir": {}}] if pod.init_containers else []),
        *({"name": volume, "persistentVolumeClaim": {"claimName": claim}} for claim, volume in _claim_volumes(plan).items()),
        *({"name": _extra_name(plan, volume), **_source(volume)} for volume in pod.volumes or () if volume.claim is None),
    ]


def _source(volume: PodVolume) -> Manifest:
    """Return the source of a volume that is not a claim, as in a pod."""
    if volume.secret is not None:
        return {"secret": _secret(volume.secret)}
    if volume.ephemeral is not None:
        return {"ephemeral": {"volumeClaimTemplate": {"spec": _claim_spec(volume.ephemeral)}}}
    if volume.projected is not None:
        return {"projected": volume.projected.to_wire()}
    if volume.csi is not None:
        return {"csi": {**volume.csi.to_wire(), "readOnly": volume.mounted_read_only}}
    sources = {"configMap": volume.config_map, "emptyDir": volume.empty_dir, "image": volume.image}
    return {kind: source.to_wire() for kind, source in sources.items() if source is not None}


def _secret(files: KeyFiles) -> Manifest:
    """Return the source. A volume of a Secret has another name for the name than all others."""
    fields = files.to_wire()
    return {"secretName": fields.pop("name"), **fields}


def _claim_spec(volume: EphemeralVolume) -> Manifest:
    storage_class = {"storageClassName": volume.storage_class_name} if volume.storage_class_name is not None else {}
    return {
        "accessModes": [volume.access_mode or "ReadWriteOnce"],
        "resources": {"requests": {"storage": volume.size}},
        **storage_class,
    }
