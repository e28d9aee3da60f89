"""Builds the objects that the operator creates. Each kind has one builder, a pure function from a plan to a manifest."""

from finetune_operator.manifests.configmap import build_config_map
from finetune_operator.manifests.job import build_job
from finetune_operator.manifests.networkpolicy import build_network_policy
from finetune_operator.manifests.plan import Plan
from finetune_operator.manifests.service import build_service
from finetune_operator.manifests.storage import build_output_claim
from finetune_operator.observed import Manifest

__all__ = ["Plan", "build_children"]


def build_children(plan: Plan) -> list[Manifest]:
    """Return all objects of one attempt, in the order of their creation.

    The ConfigMap and the output claim are created after the Job. Its pods wait for them. If the API server refuses the Job,
    they are not created. Otherwise a job whose spec has changed since could get the old ConfigMap, and an unused claim would be
    retained for ever.
    """
    policy, claim = build_network_policy(plan), build_output_claim(plan)
    before, after = ([policy] if policy else []), ([claim] if claim else [])
    return [build_service(plan), *before, build_job(plan), build_config_map(plan), *after]
