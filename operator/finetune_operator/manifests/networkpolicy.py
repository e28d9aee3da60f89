"""The NetworkPolicy around a gang, where the site asks for one: rendezvous and /progress know no passwords."""

from finetune_api import names
from finetune_operator.manifests.plan import Plan, build_labels, build_metadata
from finetune_operator.observed import Manifest


def build_network_policy(plan: Plan) -> Manifest | None:
    """The pods of the gang reach each other on every port; operator and Prometheus reach the telemetry port; nobody else."""
    policy = plan.site.network_policy
    if not policy.enabled:
        return None
    gang = {"podSelector": {"matchLabels": {names.LABEL_JOB: plan.name}}}
    readers = [*([policy.operator_peer] if policy.operator_peer else []), *policy.metrics_from]
    telemetry = [{"from": readers, "ports": [{"port": names.PORT_TELEMETRY, "protocol": "TCP"}]}] if readers else []
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": build_metadata(plan, names.network_policy_name(plan.name), build_labels(plan)),
        "spec": {**gang, "policyTypes": ["Ingress"], "ingress": [{"from": [gang]}, *telemetry]},
    }
