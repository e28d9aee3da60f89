"""The headless Service that gives the gang's pods their DNS names."""

from finetune_api import names
from finetune_operator.manifests.plan import Plan, build_labels, build_metadata
from finetune_operator.observed import Manifest


def build_service(plan: Plan) -> Manifest:
    """One Service for all attempts. Not-ready addresses are published: the rendezvous is what makes pods ready."""
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
