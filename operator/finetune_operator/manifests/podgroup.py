"""Builds the PodGroup with which a scheduler places all pods of an attempt or none of them.

With minNodes, the group may be placed without some of its pods: the operator sees how many, and continues with these.
"""

from finetune_api import names
from finetune_operator.manifests.plan import UID_OF_JOB, Plan, build_attempt_labels, build_metadata, build_owner
from finetune_operator.observed import Manifest

_DEFAULT_SCHEDULER, _VOLCANO = "default-scheduler", "volcano"
_VOLCANO_QUEUE = "scheduling.volcano.sh/queue-name"  # an annotation of pods


def build_pod_group(plan: Plan) -> Manifest | None:
    """Return the PodGroup of another scheduler than the default one, or None if the pods have none.

    Schedulers other than Volcano that know pod groups share one API. A cluster without it ignores the label of the pods.
    """
    if not _is_gang(plan) or _has_default_scheduler(plan):
        return None
    metadata = build_metadata(plan, names.pod_group_name(plan.name), build_attempt_labels(plan))
    size = {"minMember": _min_pods(plan)}
    if plan.spec.pod.scheduler_name != _VOLCANO:
        return {"apiVersion": "scheduling.x-k8s.io/v1alpha1", "kind": "PodGroup", "metadata": metadata, "spec": size}
    queue, priority_class = (plan.spec.pod.annotations or {}).get(_VOLCANO_QUEUE), plan.spec.pod.priority_class_name
    options = {name: value for name, value in (("queue", queue), ("priorityClassName", priority_class)) if value}
    volcano = {"apiVersion": "scheduling.volcano.sh/v1beta1", "kind": "PodGroup"}
    return {**volcano, "metadata": metadata, "spec": {**size, **options}}


def build_pod_group_keys(plan: Plan) -> tuple[dict[str, str], dict[str, str]]:
    """Return the labels and the annotations that make a pod a member of that PodGroup."""
    if not _is_gang(plan) or _has_default_scheduler(plan):
        return {}, {}
    name = names.pod_group_name(plan.name)
    if plan.spec.pod.scheduler_name == _VOLCANO:
        return {}, {"scheduling.k8s.io/group-name": name}
    return {"scheduling.x-k8s.io/pod-group": name}, {}


def build_scheduling_group(plan: Plan) -> Manifest | None:
    """Return the PodGroup of Kubernetes itself, or None if the pods have none.

    It is deleted with the attempt's Job. The Job comes first: its pods wait until their PodGroup exists.
    """
    if build_group_reference(plan) is None:
        return None
    metadata = build_metadata(plan, plan.unique_name, build_attempt_labels(plan))
    metadata["ownerReferences"] = [build_owner("batch/v1", "Job", plan.attempt_name, UID_OF_JOB)]
    policy = {"gang": {"minCount": _min_pods(plan)}}
    return {
        "apiVersion": "scheduling.k8s.io/v1alpha2",
        "kind": "PodGroup",
        "metadata": metadata,
        "spec": {"schedulingPolicy": policy},
    }


def build_group_reference(plan: Plan) -> Manifest | None:
    """Return the field of a pod that makes it a member of that PodGroup, or None."""
    if not (plan.scheduling_groups and _is_gang(plan) and _has_default_scheduler(plan)):
        return None
    return {"podGroupName": plan.unique_name}


def _is_gang(plan: Plan) -> bool:
    return plan.defaults.pod_groups and plan.nodes > 1 and plan.spec.distributed.gang_scheduling == "Auto"


def _has_default_scheduler(plan: Plan) -> bool:
    return plan.spec.pod.scheduler_name in (None, _DEFAULT_SCHEDULER)


def _min_pods(plan: Plan) -> int:
    return min(plan.nodes, plan.spec.distributed.min_nodes or plan.nodes)
