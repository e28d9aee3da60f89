"""Builds the PodGroup with which Volcano and the coscheduling plugin place all pods of an attempt or none of them."""

from finetune_api import names
from finetune_operator.manifests.plan import Plan, build_attempt_labels, build_metadata
from finetune_operator.observed import Manifest

_DEFAULT_SCHEDULER, _VOLCANO = "default-scheduler", "volcano"
_VOLCANO_QUEUE = "scheduling.volcano.sh/queue-name"  # an annotation of pods


def build_pod_group(plan: Plan) -> Manifest | None:
    """Return the PodGroup of the attempt, or None if the scheduler has none or there is one pod only.

    Schedulers other than Volcano that know pod groups share one API. A cluster without it ignores the label of the pods.
    With minNodes, the group may be placed without some of its pods: the operator sees how many, and continues with these.
    """
    if not _has_pod_group(plan):
        return None
    metadata = build_metadata(plan, names.pod_group_name(plan.name), build_attempt_labels(plan))
    size = {"minMember": min(plan.nodes, plan.spec.distributed.min_nodes or plan.nodes)}
    if plan.spec.pod.scheduler_name != _VOLCANO:
        return {"apiVersion": "scheduling.x-k8s.io/v1alpha1", "kind": "PodGroup", "metadata": metadata, "spec": size}
    queue, priority_class = (plan.spec.pod.annotations or {}).get(_VOLCANO_QUEUE), plan.spec.pod.priority_class_name
    options = {name: value for name, value in (("queue", queue), ("priorityClassName", priority_class)) if value}
    volcano = {"apiVersion": "scheduling.volcano.sh/v1beta1", "kind": "PodGroup"}
    return {**volcano, "metadata": metadata, "spec": {**size, **options}}


def build_pod_group_keys(plan: Plan) -> tuple[dict[str, str], dict[str, str]]:
    """Return the labels and the annotations that make a pod a member of the PodGroup."""
    if not _has_pod_group(plan):
        return {}, {}
    name = names.pod_group_name(plan.name)
    if plan.spec.pod.scheduler_name == _VOLCANO:
        return {}, {"scheduling.k8s.io/group-name": name}
    return {"scheduling.x-k8s.io/pod-group": name}, {}


def _has_pod_group(plan: Plan) -> bool:
    other_scheduler = plan.spec.pod.scheduler_name not in (None, _DEFAULT_SCHEDULER)
    return plan.defaults.pod_groups and plan.nodes > 1 and other_scheduler
