"""The training pod. It passes Pod Security "restricted", and holds no credentials of the cluster."""

from typing import Any

from finetune_api import names
from finetune_operator.manifests.plan import Plan
from finetune_operator.observed import Manifest

# The trainer image's user; also the group that new files on the volumes belong to.
_USER_ID = 1000
# How long a pod stays on a node that does not answer. Kubernetes' own default is five minutes, lost for the whole gang.
_UNREACHABLE_SECONDS = 30
_UNREACHABLE_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
# What a pod asks for if spec.pod.resources is silent: enough to be scheduled apart from other work, no limit.
_DEFAULT_REQUESTS: dict[str, int | str] = {"cpu": "500m", "memory": "1Gi"}


def build_pod_spec(plan: Plan, labels: dict[str, str]) -> Manifest:
    """Everything of the template but its metadata; what is None is left out."""
    pod = plan.spec.pod
    secrets = [secret.to_wire() for secret in pod.image_pull_secrets or ()]
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "subdomain": names.service_name(plan.name),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": pod.termination_grace_period_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER_ID,
            "runAsGroup": _USER_ID,
            "fsGroup": _USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "imagePullSecrets": secrets or None,
        "nodeSelector": pod.node_selector or None,
        "tolerations": _tolerations(plan),
        "topologySpreadConstraints": _spread(labels) if plan.spec.distributed.nodes > 1 else None,
        "containers": [_container(plan)],
        "volumes": _volumes(plan),
    }
    return {name: value for name, value in spec.items() if value is not None}


def _container(plan: Plan) -> Manifest:
    return {
        "name": names.TRAINER_CONTAINER,
        "image": plan.image,
        "imagePullPolicy": "IfNotPresent",
        "terminationMessagePath": names.TERMINATION_LOG,
        "terminationMessagePolicy": "File",
        "env": _environment(plan),
        "ports": [
            {"name": "telemetry", "containerPort": names.PORT_TELEMETRY},
            {"name": "rendezvous", "containerPort": names.PORT_RENDEZVOUS},
        ],
        "resources": _resources(plan),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": _mounts(plan),
    }


def _environment(plan: Plan) -> list[Manifest]:
    hub = plan.spec.hub
    rendezvous = f"{names.pod_host_name(plan.name, plan.attempt, 0)}.{plan.service_domain}"
    environment: list[Manifest] = [
        {"name": names.ENV_RUN_FILE, "value": f"{names.CONFIG_DIR}/{names.RUN_FILE_NAME}"},
        {"name": names.ENV_RENDEZVOUS_HOST, "value": rendezvous},
        {"name": names.ENV_POD_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": names.ENV_NODE_NAME, "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "HOME", "value": "/tmp"},  # noqa: S108 - an emptyDir of the pod's own
        {"name": "HF_HOME", "value": "/tmp/huggingface"},  # noqa: S108
    ]
    if hub.endpoint is not None:
        environment.append({"name": names.ENV_HUB_ENDPOINT, "value": hub.endpoint})
    if hub.token_secret_ref is not None:
        reference = {"name": hub.token_secret_ref.name, "key": hub.token_secret_ref.key}
        environment.append({"name": names.ENV_HUB_TOKEN, "valueFrom": {"secretKeyRef": reference}})
    return environment


def _resources(plan: Plan) -> Manifest:
    """spec.pod.resources, and the GPUs: an extended resource's request must equal its limit."""
    asked = plan.spec.pod.resources
    requests = dict((asked.requests or {}) if asked is not None else _DEFAULT_REQUESTS)
    limits = dict(asked.limits or {}) if asked is not None else {}
    distributed = plan.spec.distributed
    if distributed.gpus_per_node > 0:
        requests[distributed.gpu_resource_name] = distributed.gpus_per_node
        limits[distributed.gpu_resource_name] = distributed.gpus_per_node
    return {name: value for name, value in (("requests", requests), ("limits", limits)) if value}


def _claim_volumes(plan: Plan) -> dict[str, str]:
    """Claim name → name of its volume, each claim once: two volumes of one claim may not be on one pod everywhere."""
    output = plan.spec.output.claim
    volumes = {output.claim_name if output is not None else names.output_claim_name(plan.name): "output"}
    for index, claim in enumerate(plan.spec.claim_names()):
        volumes.setdefault(claim, f"claim-{index}")
    return volumes


def _mounts(plan: Plan) -> list[Manifest]:
    volumes = _claim_volumes(plan)
    return [
        {"name": "config", "mountPath": names.CONFIG_DIR, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108
        {"name": "output", "mountPath": names.OUTPUT_DIR},
        *(
            {"name": volumes[claim], "mountPath": f"{names.CLAIMS_DIR}/{claim}", "readOnly": True}
            for claim in plan.spec.claim_names()
        ),
    ]


def _volumes(plan: Plan) -> list[Manifest]:
    return [
        {"name": "config", "configMap": {"name": plan.attempt_name}},
        {"name": "tmp", "emptyDir": {}},
        # The container runtime's own /dev/shm has 64 MiB, too little for data loaders and NCCL.
        {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        *({"name": volume, "persistentVolumeClaim": {"claimName": claim}} for claim, volume in _claim_volumes(plan).items()),
    ]


def _tolerations(plan: Plan) -> list[Manifest]:
    tolerations = [toleration.to_wire() for toleration in plan.spec.pod.tolerations or ()]
    given = {toleration.get("key") for toleration in tolerations}
    return tolerations + [
        {"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": _UNREACHABLE_SECONDS}
        for taint in _UNREACHABLE_TAINTS
        if taint not in given
    ]


def _spread(labels: dict[str, str]) -> list[Manifest]:
    """Over machines where possible; the attempt counts, or pods of the last one that still end would push the new ones away."""
    selector = {name: labels[name] for name in (names.LABEL_JOB, names.LABEL_ATTEMPT)}
    return [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector},
        }
    ]
