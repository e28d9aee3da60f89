"""Builds the volumes of a training pod: its configuration, scratch space, claims and ConfigMaps, but no paths of the host."""

from finetune_api import names
from finetune_operator.manifests.plan import Plan
from finetune_operator.observed import Manifest


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
    for index, volume in enumerate(plan.spec.pod.volumes or ()):
        mount: Manifest = {"name": f"extra-{index}", "mountPath": volume.mount_path, "readOnly": volume.read_only}
        if volume.claim is not None:
            mount["name"] = volumes[volume.claim.claim_name]
            if volume.claim.path:
                mount["subPath"] = volume.claim.path
        mounts.append(mount)
    return mounts


def _config_volume(plan: Plan) -> Manifest:
    """Return the volume with the files of the attempt's ConfigMap and, if there are any, the CA certificates."""
    if plan.ca_bundle_name is None:
        return {"name": "config", "configMap": {"name": plan.run_file_name}}
    sources = [{"configMap": {"name": name}} for name in (plan.run_file_name, plan.ca_bundle_name)]
    return {"name": "config", "projected": {"sources": sources}}


def build_volumes(plan: Plan) -> list[Manifest]:
    """Return the volumes for these mounts."""
    extra = enumerate(plan.spec.pod.volumes or ())
    return [
        _config_volume(plan),
        {"name": "tmp", "emptyDir": {}},
        # The container runtime's default /dev/shm has 64 MiB, which is too little for data loaders and NCCL.
        {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        *({"name": volume, "persistentVolumeClaim": {"claimName": claim}} for claim, volume in _claim_volumes(plan).items()),
        *({"name": f"extra-{index}", "configMap": item.config_map.to_wire()} for index, item in extra if item.config_map),
    ]
