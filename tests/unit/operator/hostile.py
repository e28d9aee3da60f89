"""Specs of a malicious user. Each is either refused with a sentence or accepted and harmless."""

import dataclasses
from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]
MINIMAL: Object = {
    "task": "text-classification",
    "model": {"hub": {"name": "a/b"}},
    "datasets": [{"hub": {"name": "c/d"}}],
    "distributed": {"nodes": 2},
}
VARIABLES = (
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "PATH",
    "HOME",
    "MASTER_ADDR",
    "MASTER_PORT",
    "PET_RDZV_ENDPOINT",
    "RANK",
    "WORLD_SIZE",
    "HF_ENDPOINT",
    "HF_TOKEN",
    "FINETUNE_RUN_FILE",
    "FINETUNE_RENDEZVOUS_HOST",
    "JOB_COMPLETION_INDEX",
    "POD_IP",
    "KUBERNETES_SERVICE_HOST",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "HTTPS_PROXY",
    "NVIDIA_VISIBLE_DEVICES",
)
KEYS = (
    "finetune.dev/finetunejob",
    "finetune.dev/attempt",
    "finetune.dev/owner-uid",
    "app.kubernetes.io/managed-by",
    "batch.kubernetes.io/job-name",
    "batch.kubernetes.io/controller-uid",
    "controller-uid",
    "job-name",
    "pod-security.kubernetes.io/enforce",
    "kueue.x-k8s.io/queue-name",
)


@dataclasses.dataclass(frozen=True)
class Hostile:
    """A malicious spec. says: text that the refusal must contain, or None if the spec is accepted and harmless."""

    name: str
    spec: Object
    says: str | None


def _pod(name: str, pod: Object, says: str | None) -> Hostile:
    return Hostile(name, {**MINIMAL, "pod": pod}, says)


def hostile_specs() -> Iterator[Hostile]:
    """Yield all hostile specs."""
    yield _pod("privileged", {"privileged": True}, "privileged")
    yield _pod("privileged in the security context", {"securityContext": {"privileged": True}}, "privileged")
    yield _pod("capabilities", {"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}, "capabilities")
    yield _pod("no seccomp", {"securityContext": {"seccompProfile": {"type": "Unconfined"}}}, "seccompProfile")
    yield _pod("root", {"securityContext": {"runAsUser": 0}}, "runAsUser")
    yield _pod("root group", {"securityContext": {"runAsGroup": 0}}, "runAsGroup")
    for field in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        yield _pod(field, {field: True}, field)
    yield _pod("a service account of another namespace", {"serviceAccountName": "kube-system/admin"}, "serviceAccountName")
    yield _pod("a chosen node", {"nodeName": "control-plane"}, "nodeName")
    yield _pod("another container", {"containers": [{"name": "x", "image": "x"}]}, "containers")
    yield from _containers()
    yield _pod("another command", {"command": ["sh"]}, "command")
    yield _pod("additional host aliases", {"hostAliases": [{"ip": "10.0.0.1", "hostnames": ["huggingface.co"]}]}, "hostAliases")
    yield from _volumes()
    for name in VARIABLES:
        yield _pod(f"variable {name}", {"env": [{"name": name, "value": "/mnt/evil.so"}]}, "the operator sets this variable")
    yield _pod("a variable with a newline in its name", {"env": [{"name": "A\nLD_PRELOAD", "value": "x"}]}, "name")
    yield _pod(
        "a variable of the downward API", {"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]}, "fieldRef"
    )
    for key in KEYS:
        yield _pod(f"label {key}", {"labels": {key: "x"}}, "reserved")
        yield _pod(f"annotation {key}", {"annotations": {key: "x"}}, "reserved")
    apparmor = "container.apparmor.security.beta.kubernetes.io/trainer"
    yield _pod("no AppArmor", {"annotations": {apparmor: "unconfined"}}, "reserved")
    yield from _excessive_values()


def _volumes() -> Iterator[Hostile]:
    for kind, value in (
        ("hostPath", {"path": "/"}),
        ("secret", {"secretName": "of-somebody"}),
        ("projected", {"sources": [{"downwardAPI": {}}]}),
        ("csi", {"driver": "x\n"}),
        ("nfs", {"server": "10.0.0.1", "path": "/"}),
    ):
        yield _pod(f"volume of type {kind}", {"volumes": [{"mountPath": "/mnt/x", kind: value}]}, kind)
    for path in ("/", "/etc/finetune", "/tmp", "/mnt", "/mnt/../etc", "/finetune/output", "/mnt/a:b", "mnt/x"):
        yield _pod(f"volume at {path}", {"volumes": [{"mountPath": path, "configMap": {"name": "x"}}]}, "mountPath")
    climbing = {"mountPath": "/mnt/x", "claim": {"claimName": "x", "path": "../.."}}
    yield _pod("a path that leaves the claim", {"volumes": [climbing]}, "path")


def _containers() -> Iterator[Hostile]:
    for field, value in (
        ("securityContext", {"privileged": True}),
        ("ports", [{"containerPort": 80, "hostPort": 80}]),
        ("volumeDevices", [{"name": "x", "devicePath": "/dev/sda"}]),
        ("lifecycle", {"postStart": {"exec": {"command": ["sh"]}}}),
        ("envFrom", [{"secretRef": {"name": "of-somebody"}}]),
    ):
        yield _pod(f"an init container with {field}", {"initContainers": [{"name": "x", field: value}]}, field)
    yield _pod(
        "an init container named like the trainer", {"initContainers": [{"name": "trainer"}]}, "the operator's own container"
    )
    for volume in ("output", "config", "tmp", "scratch"):
        mount = {"name": volume, "mountPath": "/x"}
        says = "the name of one of the volumes"
        yield _pod(f"the operator's volume {volume}", {"initContainers": [{"name": "x", "volumeMounts": [mount]}]}, says)
    sidecar = {"name": "x", "restartPolicy": "Always", "command": ["sleep", "infinity"], "env": [{"name": "PATH", "value": "/x"}]}
    yield _pod("a sidecar", {"initContainers": [sidecar]}, None)


def _excessive_values() -> Iterator[Hostile]:
    yield Hostile("a million nodes", {**MINIMAL, "distributed": {"nodes": 10**6}}, "nodes")
    yield Hostile("a million GPUs", {**MINIMAL, "distributed": {"gpusPerNode": 10**6}}, "gpusPerNode")
    yield Hostile("a sample of a megabyte", {**MINIMAL, "samples": [{"text": "x" * 2**20}]}, "text")
    yield Hostile("a thousand samples", {**MINIMAL, "samples": [{"text": "x"}] * 1000}, "samples")
    yield _pod("ten thousand variables", {"env": [{"name": f"A{number}", "value": "x"} for number in range(10_000)]}, "env")
    yield _pod("a variable of a megabyte", {"env": [{"name": "A", "value": "x" * 2**20}]}, "value")
    yield _pod("an annotation of a megabyte", {"annotations": {"a": "x" * 2**20}}, "annotations")
    yield Hostile("control characters in a repository", {**MINIMAL, "model": {"hub": {"name": "a/b\u0007"}}}, "name")
    yield Hostile("a new line in a repository", {**MINIMAL, "model": {"hub": {"name": "a/b\n"}}}, "name")
    yield Hostile("control characters in an address", {**MINIMAL, "hub": {"endpoint": "http://a\r\nX: b"}}, "endpoint")
    yield _pod(
        "control characters in a claim's name", {"volumes": [{"mountPath": "/mnt/x", "claim": {"claimName": "a\n"}}]}, "claimName"
    )
    yield _pod("control characters in a label", {"labels": {"a": "b\u0000"}}, "labels")
    # These specs only look dangerous.
    yield Hostile("control characters in a sample", {**MINIMAL, "samples": [{"text": "\u0001\u0007\u001b[2J"}]}, None)
    yield Hostile(
        "a column named like a path", {**MINIMAL, "datasets": [{"hub": {"name": "c/d"}, "columns": {"text": "../x\n"}}]}, None
    )
    yield _pod("every taint tolerated", {"tolerations": [{"operator": "Exists"}]}, None)
