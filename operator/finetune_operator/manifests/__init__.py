"""Builds the objects that the operator creates. Each kind has one builder, a pure function from a plan to a manifest."""

from finetune_operator.manifests.configmap import build_ca_bundle, build_config_map
from finetune_operator.manifests.job import build_job
from finetune_operator.manifests.networkpolicy import build_network_policy
from finetune_operator.manifests.plan import Plan, QueuePlace
from finetune_operator.manifests.podgroup import build_pod_group, build_scheduling_group
from finetune_operator.manifests.queue import build_queue_job
from finetune_operator.manifests.service import build_service
from finetune_operator.manifests.storage import build_output_claim
from finetune_operator.observed import Manifest

__all__ = ["Plan", "QueuePlace", "build_children", "build_queue_job"]


def build_children(plan: Plan) -> list[Manifest]:
    """Return all objects of one attempt, in the order of their creation.

    ConfigMap and PodGroup of Kubernetes, which the Job owns, and the output claim are created after the Job. Its pods wait for
    them. If the API server refuses the Job, they are not created. Otherwise an unused claim would be retained for ever.
    """
    optional_before = [build_network_policy(plan), build_ca_bundle(plan), build_pod_group(plan)]
    after = [build_scheduling_group(plan), build_config_map(plan), build_output_claim(plan)]
    children = [build_service(plan), *optional_before, build_job(plan), *after]
    return [child for child in children if child is not None]
