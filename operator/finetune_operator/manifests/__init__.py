"""What the operator creates, as pure functions: a plan goes in, manifests come out. One builder per kind."""

from finetune_operator.manifests.configmap import build_config_map
from finetune_operator.manifests.job import build_job
from finetune_operator.manifests.networkpolicy import build_network_policy
from finetune_operator.manifests.plan import Plan
from finetune_operator.manifests.service import build_service
from finetune_operator.manifests.storage import build_output_claim
from finetune_operator.observed import Manifest

__all__ = ["Plan", "build_children"]


def build_children(plan: Plan) -> list[Manifest]:
    """Everything that one attempt needs, in the order in which it is created.

    Run file and output claim come after the Job, whose pods wait for them: a Job that the API server refuses must not leave a
    run file behind, which would be taken for that of a spec that was changed since, nor a claim that nobody wrote to and that
    is retained for ever.
    """
    policy, claim = build_network_policy(plan), build_output_claim(plan)
    before, after = ([policy] if policy else []), ([claim] if claim else [])
    return [build_service(plan), *before, build_job(plan), build_config_map(plan), *after]
