"""Builds the Indexed Job of one attempt, with one pod per node."""

from finetune_api import names
from finetune_operator.manifests.plan import Plan, build_attempt_labels, build_metadata
from finetune_operator.manifests.pod import build_pod_spec
from finetune_operator.manifests.podgroup import build_pod_group_keys
from finetune_operator.observed import Manifest

# These keep cluster-autoscaler and Karpenter from evicting a pod, because all pods of the attempt would have to restart.
_DO_NOT_EVICT = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}


def build_job(plan: Plan) -> Manifest:
    """Return the Job. It never replaces a pod: if one fails, the attempt is over, and the next attempt is another Job.

    If the FineTuneJob names a queue, the Job is created suspended. Only Kueue resumes it.
    """
    labels = build_attempt_labels(plan)
    pod, (group_labels, group_annotations) = plan.spec.pod, build_pod_group_keys(plan)
    metadata = build_metadata(plan, plan.attempt_name, {**plan.kueue_labels, **labels})
    metadata["annotations"] = {**plan.kueue_annotations, names.ANNOTATION_GENERATION: str(plan.generation)}
    spec: Manifest = {
        "completionMode": "Indexed",
        "completions": plan.nodes,
        "parallelism": plan.nodes,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "template": {
            "metadata": {
                "labels": {**(pod.labels or {}), **group_labels, **labels},
                "annotations": {
                    **_DO_NOT_EVICT,
                    **(pod.annotations or {}),
                    **group_annotations,
                    **plan.kueue_annotations,
                    names.ANNOTATION_OWNER_UID: plan.uid,
                },
            },
            "spec": build_pod_spec(plan, labels),
        },
    }
    if names.LABEL_KUEUE_QUEUE in plan.kueue_labels:
        spec["suspend"] = True
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}
