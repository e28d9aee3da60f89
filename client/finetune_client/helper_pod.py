"""The helper pods: one reads a job's output from its volume, the other one writes files into a claim.

Both have the settings of training pods and pass Pod Security "restricted".
"""

from collections.abc import Mapping
from typing import Any

from finetune_api import names
from finetune_api.spec import FineTuneJobSpec
from finetune_client.errors import PullError
from finetune_client.records import JobRecord, PodRecord

CONTAINER = "helper"
LABEL_PULL = f"{names.GROUP}/pull"
LABEL_PUT = f"{names.GROUP}/put"
# The claim in a pod that writes to it.
PUT_DIR = "/finetune/claim"
# Kubernetes ends the pod after this time, even if the client has died. A longer transfer continues with the next call.
DEADLINE_SECONDS = 6 * 3600
# Image and user of a pod that writes to a claim if the namespace has no job to take them from. The scripts need Python only; the
# user is that of the trainer's image.
PUT_IMAGE = "python:3.11-slim"
_USER = 1000
# The pod has requests and limits, because a quota of the namespace may require either. Hashing and sending use one core.
_RESOURCES = {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}}
# The fields copied from a training pod: they decide where the pod may run, and as which user.
_COPIED_FIELDS = ("securityContext", "imagePullSecrets", "nodeSelector", "tolerations", "runtimeClassName")
_IDS = ("runAsUser", "runAsGroup", "fsGroup")
_SECURITY = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def output_claim(job: JobRecord) -> tuple[str, str]:
    """Return the name of the claim that the job writes to, and the directory of the output in a pod that mounts it."""
    claim = job.spec.output.claim if job.spec is not None else None
    if claim is None:
        return names.output_claim_name(job.name), names.OUTPUT_DIR
    return claim.claim_name, f"{names.OUTPUT_DIR}/{claim.path}" if claim.path else names.OUTPUT_DIR


def build_helper_pod(job: JobRecord, last_pod: PodRecord | None) -> dict[str, Any]:
    """Return a pod that mounts the output read-only and sleeps. It is deleted with the job.

    last_pod: the training pod whose settings, including the operator's defaults, are copied. If None, those of the spec are used.
    """
    settings = _settings(job, last_pod)
    if last_pod is None:
        settings["securityContext"] = _SECURITY | settings.get("securityContext", {})
    # Only the mount is read-only: some drivers can't attach a volume read-only while it is attached for writing.
    mount = {"mountPath": names.OUTPUT_DIR, "readOnly": True}
    spec = _spec(settings, _image(job, last_pod), output_claim(job)[0], mount, last_pod.node if last_pod else None)
    owner = {"apiVersion": names.API_VERSION, "kind": names.KIND, "name": job.name, "uid": job.uid}
    # The pod lacks the label of training pods, because the operator would count it as one of them.
    return _pod(f"{job.name}-pull-", job.namespace, {LABEL_PULL: job.name}, owner, spec)


def build_put_pod(
    claim: Mapping[str, Any],
    job: JobRecord | None,
    last_pod: PodRecord | None,
    image: str | None,
    user: int | None,
    node: str | None,
) -> dict[str, Any]:
    """Return a pod that mounts the claim and sleeps. It is deleted with the claim.

    job, last_pod: a job whose image and settings are copied, and its last pod. image, user: in place of theirs. node: preferred,
    because the volume is attached there.
    """
    settings = _settings(job, last_pod) if job is not None else {}
    default = dict.fromkeys(_IDS, _USER) if last_pod is None else {}
    given = dict.fromkeys(_IDS, user) if user is not None else {}
    settings["securityContext"] = _SECURITY | default | settings.get("securityContext", {}) | given
    image = image or (_image(job, last_pod) if job is not None else PUT_IMAGE)
    name = claim["metadata"]["name"]
    owner = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": name, "uid": claim["metadata"]["uid"]}
    spec = _spec(settings, image, name, {"mountPath": PUT_DIR}, node)
    return _pod(f"{put_label(name)}-put-", claim["metadata"]["namespace"], {LABEL_PUT: put_label(name)}, owner, spec)


def put_label(claim: str) -> str:
    """Return the value of LABEL_PUT, which is also the beginning of the pod's name. Names of claims may be longer than either."""
    return claim[:50].rstrip("-.")


def _pod(prefix: str, namespace: str, labels: dict[str, str], owner: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": prefix,
            "namespace": namespace,
            "labels": labels,
            "ownerReferences": [{**owner, "controller": False, "blockOwnerDeletion": False}],
        },
        "spec": spec,
    }


def _spec(settings: dict[str, Any], image: str, claim: str, mount: dict[str, Any], node: str | None) -> dict[str, Any]:
    container = {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", str(DEADLINE_SECONDS)],
        "resources": _RESOURCES,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [{"name": "claim", **mount}],
    }
    return {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": DEADLINE_SECONDS,
        "terminationGracePeriodSeconds": 1,  # The pod has nothing to save.
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        **settings,
        **({"affinity": _prefer(node)} if node is not None else {}),
        "containers": [container],
        "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": claim}}],
    }


def _settings(job: JobRecord, last_pod: PodRecord | None) -> dict[str, Any]:
    copied = last_pod.manifest["spec"] if last_pod is not None else (job.spec or _unreadable(job)).pod.to_wire()
    return {name: copied[name] for name in _COPIED_FIELDS if copied.get(name)}


def _unreadable(job: JobRecord) -> FineTuneJobSpec:
    raise PullError(
        f"the spec of {job.name} needs a later version of this client: upgrade it with pip install -U 'finetune-operator[client]'"
    )


def _image(job: JobRecord, last_pod: PodRecord | None) -> str:
    if last_pod is not None:
        return str(last_pod.manifest["spec"]["containers"][0]["image"])
    resolved = job.status.resolved.image if job.status.resolved is not None else None
    image = resolved or (job.spec.pod.image if job.spec is not None else None)
    if image is None:
        raise PullError(
            f"{job.name} has never started, so there is nothing to fetch; "
            f"`kubectl finetune why {job.name}{job.flags}` shows what it waits for"
        )
    return image


def _prefer(node: str) -> dict[str, Any]:
    """Prefer a node where the volume is, or may still be, attached."""
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    return {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": term}]}}
