"""The helper pod that reads a job's output from its volume. It has the settings of a training pod and a read-only mount."""

from typing import Any

from finetune_api import names
from finetune_api.spec import FineTuneJobSpec
from finetune_client.errors import PullError
from finetune_client.records import JobRecord, PodRecord

CONTAINER = "reader"
LABEL_PULL = f"{names.GROUP}/pull"
# Kubernetes ends the pod after this time, even if the client has died. A longer transfer continues with the next call.
DEADLINE_SECONDS = 6 * 3600
# The pod has requests and limits, because a quota of the namespace may require either. Hashing and sending use one core.
_RESOURCES = {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}}
# The fields copied from a training pod: they decide where the pod may run, and as which user.
_COPIED_FIELDS = ("securityContext", "imagePullSecrets", "nodeSelector", "tolerations", "runtimeClassName")


def output_claim(job: JobRecord) -> tuple[str, str]:
    """Return the name of the claim that the job writes to, and the directory of the output in a pod that mounts it."""
    claim = job.spec.output.claim if job.spec is not None else None
    if claim is None:
        return names.output_claim_name(job.name), names.OUTPUT_DIR
    return claim.claim_name, f"{names.OUTPUT_DIR}/{claim.path}" if claim.path else names.OUTPUT_DIR


def build_helper_pod(job: JobRecord, last_pod: PodRecord | None) -> dict[str, Any]:
    """Return a pod that mounts the output read-only and sleeps. It passes Pod Security "restricted" and is deleted with the job.

    last_pod: the training pod whose settings, including the operator's defaults, are copied. If None, those of the spec are used.
    """
    spec = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": DEADLINE_SECONDS,
        "terminationGracePeriodSeconds": 1,  # The pod has nothing to save.
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        **_settings(job, last_pod),
        "affinity": _node_affinity(last_pod),
        "containers": [
            {
                "name": CONTAINER,
                "image": _image(job, last_pod),
                "imagePullPolicy": "IfNotPresent",
                "command": ["sleep", str(DEADLINE_SECONDS)],
                "resources": _RESOURCES,
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": True,
                },
                "volumeMounts": [{"name": "output", "mountPath": names.OUTPUT_DIR, "readOnly": True}],
            }
        ],
        # Only the mount is read-only: some drivers can't attach a volume read-only while it is attached for writing.
        "volumes": [{"name": "output", "persistentVolumeClaim": {"claimName": output_claim(job)[0]}}],
    }
    owner = {"apiVersion": names.API_VERSION, "kind": names.KIND, "name": job.name, "uid": job.uid}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{job.name}-pull-",
            "namespace": job.namespace,
            # The pod lacks the label of training pods, because the operator would count it as one of them.
            "labels": {LABEL_PULL: job.name},
            "ownerReferences": [{**owner, "controller": False, "blockOwnerDeletion": False}],
        },
        "spec": {name: value for name, value in spec.items() if value is not None},
    }


def _settings(job: JobRecord, last_pod: PodRecord | None) -> dict[str, Any]:
    if last_pod is not None:
        copied = last_pod.manifest["spec"]
        return {name: copied[name] for name in _COPIED_FIELDS if copied.get(name)}
    pod = (job.spec or _unreadable(job)).pod.to_wire()
    security = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, **pod.pop("securityContext", {})}
    return {"securityContext": security, **{name: pod[name] for name in _COPIED_FIELDS if pod.get(name)}}


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


def _node_affinity(last_pod: PodRecord | None) -> dict[str, Any] | None:
    """Prefer the node of the last training pod, because the volume may still be attached there."""
    if last_pod is None or last_pod.node is None:
        return None
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [last_pod.node]}]}
    return {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": term}]}}
