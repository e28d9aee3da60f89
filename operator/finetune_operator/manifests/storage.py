"""Builds the output claim, for checkpoints, model, history and report."""

from finetune_api import names
from finetune_api.spec import OutputVolume, Retention
from finetune_operator.manifests.plan import Plan, build_labels, build_metadata
from finetune_operator.observed import Manifest


def build_output_claim(plan: Plan) -> Manifest | None:
    """Return the claim of output.volume, or None if the spec names a claim. A claim to retain has no owner reference."""
    output = plan.spec.output
    if output.claim is not None:
        return None
    volume = output.volume or OutputVolume()
    retention = output.retention or Retention()
    metadata = build_metadata(plan, names.output_claim_name(plan.name), build_labels(plan))
    metadata["annotations"] = {names.ANNOTATION_OWNER_UID: plan.uid, names.ANNOTATION_GENERATION: str(plan.generation)}
    if retention.when_deleted == "Retain":
        del metadata["ownerReferences"]
    default_mode = "ReadWriteMany" if plan.spec.distributed.nodes > 1 else "ReadWriteOnce"
    storage_class = {"storageClassName": volume.storage_class_name} if volume.storage_class_name else {}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata,
        "spec": {
            "accessModes": [volume.access_mode or default_mode],
            "resources": {"requests": {"storage": volume.size}},
            **storage_class,
        },
    }
