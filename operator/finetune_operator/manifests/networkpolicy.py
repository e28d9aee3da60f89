"""Builds the NetworkPolicy of a job's pods, if the defaults enable it. Without it every pod can read /progress, and disturb."""

from finetune_api import names
from finetune_operator.manifests.plan import Plan, build_labels, build_metadata
from finetune_operator.observed import Manifest


def build_network_policy(plan: Plan) -> Manifest | None:
    """Admit the pods of the job on every port, and operator and Prometheus on the telemetry port. Deny all other ingress."""
    policy = plan.defaults.network_policy
    if not policy.enabled:
        return None
    pods_of_job = {"podSelector": {"matchLabels": {names.LABEL_JOB: plan.name}}}
    readers = [*([policy.operator_peer] if policy.operator_peer else []), *policy.metrics_from]
    telemetry = [{"from": readers, "ports": [{"port": names.PORT_TELEMETRY, "protocol": "TCP"}]}] if readers else []
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": build_metadata(plan, names.network_policy_name(plan.name), build_labels(plan)),
        "spec": {**pods_of_job, "policyTypes": ["Ingress"], "ingress": [{"from": [pods_of_job]}, *telemetry]},
    }
