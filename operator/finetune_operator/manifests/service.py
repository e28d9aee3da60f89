"""Builds the headless Service that gives the training pods their DNS names."""

from finetune_api import names
from finetune_operator.manifests.plan import Plan, build_labels, build_metadata
from finetune_operator.observed import Manifest


def build_service(plan: Plan) -> Manifest:
    """Return one Service for all attempts. It publishes pods that are not ready, because the rendezvous needs their names."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": build_metadata(plan, names.service_name(plan.name), build_labels(plan)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {names.LABEL_JOB: plan.name},
            "ports": [
                {"name": "telemetry", "port": names.PORT_TELEMETRY, "targetPort": "telemetry"},
                {"name": "rendezvous", "port": names.PORT_RENDEZVOUS, "targetPort": "rendezvous"},
            ],
        },
    }
