"""The pod through which a job's output leaves its volume: one of the job's own, but for what it runs and what it may write."""

from typing import Any

from finetune_api import names
from finetune_api.spec import FineTuneJobSpec
from finetune_client.errors import PullError
from finetune_client.records import JobRecord, PodRecord

CONTAINER = "reader"
LABEL_PULL = f"{names.GROUP}/pull"
# After so long Kubernetes ends the pod, whatever became of whoever started it; a transfer that takes longer is taken up again.
DEADLINE_SECONDS = 6 * 3600
# Both, as a quota of the namespace may ask for either. Hashing and sending keep one core busy.
_RESOURCES = {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}}
# What a pod of the job had that decides where it may run, and as whom.
_KEPT = ("securityContext", "imagePullSecrets", "nodeSelector", "tolerations", "runtimeClassName")


def output_claim(job: JobRecord) -> tuple[str, str]:
    """Name of the claim that the job writes to, and the directory of its output in a pod that mounts it."""
    claim = job.spec.output.claim if job.spec is not None else None
    if claim is None:
        return names.output_claim_name(job.name), names.OUTPUT_DIR
    return claim.claim_name, f"{names.OUTPUT_DIR}/{claim.path}" if claim.path else names.OUTPUT_DIR


def build_helper_pod(job: JobRecord, last_pod: PodRecord | None) -> dict[str, Any]:
    """A pod that mounts the output for reading and waits; it passes Pod Security "restricted", and goes when the job goes.

    last_pod: one of the job's own, whose settings include those of the site; without one the spec has to do.
    """
    spec = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": DEADLINE_SECONDS,
        "terminationGracePeriodSeconds": 1,  # there is nothing to save
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        **_settings(job, last_pod),
        "affinity": _near(last_pod),
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
        # Read-only in the mount alone: some drivers refuse a volume that is attached for writing at the same time.
        "volumes": [{"name": "output", "persistentVolumeClaim": {"claimName": output_claim(job)[0]}}],
    }
    owner = {"apiVersion": names.API_VERSION, "kind": names.KIND, "name": job.name, "uid": job.uid}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{job.name}-pull-",
            "namespace": job.namespace,
            # Not the label of training pods: the operator would take it for one.
            "labels": {LABEL_PULL: job.name},
            "ownerReferences": [{**owner, "controller": False, "blockOwnerDeletion": False}],
        },
        "spec": {name: value for name, value in spec.items() if value is not None},
    }


def _settings(job: JobRecord, last_pod: PodRecord | None) -> dict[str, Any]:
    if last_pod is not None:
        given = last_pod.manifest["spec"]
        return {name: given[name] for name in _KEPT if given.get(name)}
    pod = (job.spec or _unreadable(job)).pod.to_wire()
    security = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, **pod.pop("securityContext", {})}
    return {"securityContext": security, **{name: pod[name] for name in _KEPT if pod.get(name)}}


def _unreadable(job: JobRecord) -> FineTuneJobSpec:
    raise PullError(
        f"the spec of {job.name} is of a later version than this client: upgrade it, pip install -U 'finetune[client]'"
    )


def _image(job: JobRecord, last_pod: PodRecord | None) -> str:
    if last_pod is not None:
        return str(last_pod.manifest["spec"]["containers"][0]["image"])
    resolved = job.status.resolved.image if job.status.resolved is not None else None
    image = resolved or (job.spec.pod.image if job.spec is not None else None)
    if image is None:
        raise PullError(
            f"{job.name} has never started, so there is nothing to fetch; "
            f"`kubectl finetune why {job.name}{job.place}` says what it waits for"
        )
    return image


def _near(last_pod: PodRecord | None) -> dict[str, Any] | None:
    """On the machine where the volume was attached last, if there is room: it may be attached there still."""
    if last_pod is None or last_pod.node is None:
        return None
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [last_pod.node]}]}
    return {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": term}]}}
