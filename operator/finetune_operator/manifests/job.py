"""Builds the Indexed Job of one attempt, with one pod per node."""

from finetune_api import names
from finetune_operator.manifests.plan import Plan, build_attempt_labels, build_metadata, build_owner
from finetune_operator.manifests.pod import build_pod_spec
from finetune_operator.manifests.podgroup import build_pod_group_keys
from finetune_operator.observed import Manifest

# These keep cluster-autoscaler and Karpenter from evicting a pod, because all pods of the attempt would have to restart.
_DO_NOT_EVICT = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}


def build_job(plan: Plan) -> Manifest:
    """Return the Job. It never replaces a pod: if one fails, the attempt is over, and the next attempt is another Job.

    If the FineTuneJob names a queue, the Job belongs to the one that holds the place in it, and its pods run where Kueue says.
    """
    labels = build_attempt_labels(plan)
    pod, (group_labels, group_annotations) = plan.spec.pod, build_pod_group_keys(plan)
    metadata = build_metadata(plan, plan.attempt_name, labels)
    metadata["annotations"] = {names.ANNOTATION_GENERATION: str(plan.generation)}
    queue_labels, queue_annotations = _keys_of_queue(plan)
    if plan.queue is not None:
        place = build_owner("batch/v1", "Job", names.queue_job_name(plan.name), plan.queue.uid)
        metadata["ownerReferences"] = [place, {**metadata["ownerReferences"][0], "controller": False}]
    spec: Manifest = {
        "completionMode": "Indexed",
        "completions": plan.nodes,
        "parallelism": plan.nodes,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "template": {
            "metadata": {
                "labels": {**(pod.labels or {}), **group_labels, **queue_labels, **labels},
                "annotations": {
                    **_DO_NOT_EVICT,
                    **(pod.annotations or {}),
                    **group_annotations,
                    **plan.kueue_annotations,
                    **queue_annotations,
                    names.ANNOTATION_OWNER_UID: plan.uid,
                },
            },
            "spec": build_pod_spec(plan, labels),
        },
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def _keys_of_queue(plan: Plan) -> tuple[Manifest, Manifest]:
    """Return the labels and annotations by which Kueue knows the pods, for example to place them by topology."""
    metadata = plan.queue.template.get("metadata", {}) if plan.queue is not None else {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    return (
        {key: value for key, value in labels.items() if key.startswith(names.KUEUE_PREFIX)},
        {key: value for key, value in annotations.items() if key.startswith(names.KUEUE_PREFIX)},
    )
