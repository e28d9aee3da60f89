"""Cases about the volumes, containers and devices of ``spec.pod``."""

from typing import Any

from unit.api.cases import Case, changed


def _volumes(*volumes: dict[str, Any]) -> dict[str, Any]:
    return changed("pod.volumes", list(volumes))


def _containers(*containers: dict[str, Any]) -> dict[str, Any]:
    return changed("pod.initContainers", list(containers))


def _gpus(claims: list[dict[str, Any]], **distributed: Any) -> dict[str, Any]:
    return changed("distributed", {"gpuResourceClaim": "gpus", **distributed}, changed("pod.resourceClaims", claims))


_GPUS = {"name": "gpus", "resourceClaimTemplateName": "eight-gpus"}
_EMPTY = {"mountPath": "/mnt/a", "emptyDir": {}}

ACCEPTED = [
    Case("empty directory", _volumes(_EMPTY)),
    Case("GPUs of a resource claim", _gpus([_GPUS], gpusPerNode=8)),
    Case("init container of the trainer image", _containers({"name": "a"})),
    Case(
        "sidecar with a variable that the trainer can't have", _containers({"name": "a", "env": [{"name": "PATH", "value": "x"}]})
    ),
]
_SOURCES = "write exactly one of claim, configMap, secret, emptyDir, ephemeral, projected, image and csi"
_UNIQUE = "names must be unique: rename one of them"
_MOUNTS = "initContainers: a name in volumeMounts must be the name of one of the volumes: correct it, or add name to the volume"

REFUSED = [
    Case("volume without a source", _volumes({"mountPath": "/mnt/a"}), "spec.pod.volumes[0]", _SOURCES),
    Case("volume with two sources", _volumes({**_EMPTY, "secret": {"name": "a"}}), "spec.pod.volumes[0]", _SOURCES),
    Case(
        "volume that nothing mounts",
        _volumes({"emptyDir": {}}),
        "spec.pod.volumes[0]",
        "nothing mounts this volume: write mountPath, or name it and mount it in initContainers",
    ),
    Case(
        "two volumes of one name",
        _volumes({"name": "a", "emptyDir": {}}, _EMPTY, {"name": "a", "secret": {"name": "b"}}),
        "spec.pod.volumes",
        _UNIQUE,
    ),
    Case(
        "projected source without a source",
        _volumes({"mountPath": "/mnt/a", "projected": {"sources": [{}]}}),
        "spec.pod.volumes[0].projected.sources[0]",
        "write exactly one of secret, configMap and serviceAccountToken",
    ),
    Case(
        "key outside of the volume",
        _volumes({"mountPath": "/mnt/a", "secret": {"name": "a", "items": [{"key": "k", "path": "../x"}]}}),
        "path",
    ),
    Case("memory of another medium", _volumes({"mountPath": "/mnt/a", "emptyDir": {"medium": "HugePages"}}), "medium"),
    Case(
        "container named like the trainer",
        _containers({"name": "trainer"}),
        "spec.pod.initContainers[0]",
        "this is the name of the operator's own container: write another one",
    ),
    Case("two containers of one name", _containers({"name": "a"}, {"name": "a"}), "spec.pod.initContainers", _UNIQUE),
    Case(
        "container that mounts another volume",
        _containers({"name": "a", "volumeMounts": [{"name": "b", "mountPath": "/b"}]}),
        "spec.pod",
        _MOUNTS,
    ),
    *(
        Case(f"init container with {field}", _containers({"name": "a", field: value}), f"spec.pod.initContainers[0].{field}")
        for field, value in (
            ("securityContext", {"privileged": True}),
            ("restartPolicy", "Never"),
            ("image", "a b"),
            ("volumeDevices", []),
            ("ports", [{"hostPort": 80}]),
            ("lifecycle", {}),
            ("envFrom", []),
        )
    ),
    *(
        Case(
            f"init container that mounts {path}",
            _containers({"name": "a", "volumeMounts": [{"name": "b", "mountPath": path}]}),
            "spec.pod.initContainers[0].volumeMounts[0].mountPath",
        )
        for path in ("/", "a", "/a/../b", "/a:b", "/.a")
    ),
    Case(
        "resource claim without a source",
        changed("pod.resourceClaims", [{"name": "gpus"}]),
        "spec.pod.resourceClaims[0]",
        "write exactly one of resourceClaimName and resourceClaimTemplateName",
    ),
    Case("two resource claims of one name", changed("pod.resourceClaims", [_GPUS, _GPUS]), "spec.pod.resourceClaims", _UNIQUE),
    Case(
        "GPUs of no resource claim",
        _gpus([{**_GPUS, "name": "network"}], gpusPerNode=8),
        "spec",
        "distributed.gpuResourceClaim must be the name of an entry of pod.resourceClaims: correct it, or add the entry",
    ),
    Case(
        "an unknown number of GPUs",
        _gpus([_GPUS]),
        "spec.distributed",
        "gpuResourceClaim needs gpusPerNode: write how many GPUs the claim of a pod has",
    ),
    Case("gate with a space", changed("pod.schedulingGates", [{"name": "a b"}]), "spec.pod.schedulingGates[0].name"),
    Case(
        "two gates of one name",
        changed("pod.schedulingGates", [{"name": "a"}, {"name": "a"}]),
        "spec.pod.schedulingGates",
        _UNIQUE,
    ),
    Case(
        "service account of another namespace", changed("pod.serviceAccountName", "team-b/admin"), "spec.pod.serviceAccountName"
    ),
]
