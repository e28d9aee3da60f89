"""Builds the ConfigMap with the run file of an attempt, everything that its pods need to know, and that of the CA certificates.

They hold no secret of the user. The key of the rendezvous is worth nothing outside of the attempt.
"""

import json

from finetune_api import names
from finetune_api.spec import Pod
from finetune_api.wire import RunConfig
from finetune_operator.manifests.plan import UID_OF_JOB, Plan, build_attempt_labels, build_metadata, build_owner
from finetune_operator.observed import Manifest


def build_run_config(plan: Plan) -> RunConfig:
    """Return what the launcher reads: the spec, and where the claims are mounted.

    It needs neither spec.pod nor the name of one of its resourceClaims, nor how its pods are placed, nor who manages the job.
    """
    distributed = plan.spec.distributed.model_copy(update={"gpu_resource_claim": None, "gang_scheduling": "Auto"})
    claim = plan.spec.output.claim
    path = claim.path if claim is not None else None
    return RunConfig(
        name=plan.name,
        namespace=plan.namespace,
        attempt=plan.attempt,
        spec=plan.spec.model_copy(update={"pod": Pod(), "distributed": distributed, "managed_by": None}),
        nodes=plan.nodes,
        processes_per_node=plan.spec.processes_per_node,
        claims={name: f"{names.CLAIMS_DIR}/{name}" for name in plan.spec.claim_names()},
        output=f"{names.OUTPUT_DIR}/{path}" if path else names.OUTPUT_DIR,
        resolved=plan.resolved,
        adopted=plan.adopted,
        job_uid=plan.uid if plan.adopted else None,
    )


def _dump(config: RunConfig) -> str:
    """Return the run file as JSON, with only those fields of the spec that differ from the defaults.

    The image of a started job may be older than the operator. It must not fail because of an unknown field that is not even set.
    """
    content = config.to_wire() | {"spec": config.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def build_config_map(plan: Plan) -> Manifest:
    """Return the ConfigMap of the attempt, which is deleted with the attempt's Job.

    It is immutable: an attempt never changes, and kubelets need not watch it.
    """
    metadata = build_metadata(plan, plan.unique_name, build_attempt_labels(plan))
    metadata["ownerReferences"] = [build_owner("batch/v1", "Job", plan.attempt_name, UID_OF_JOB)]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "immutable": True,
        "data": {
            names.RUN_FILE_NAME: _dump(build_run_config(plan)),
            **({names.RENDEZVOUS_KEY_FILE_NAME: plan.rendezvous_key} if plan.nodes > 1 else {}),
        },
    }


def build_ca_bundle(plan: Plan) -> Manifest | None:
    """Return the ConfigMap with the CA certificates of the operator defaults, or None if there are none.

    All jobs of a namespace share it, so it has no owner: it stays until somebody deletes it, or the namespace.
    """
    if plan.ca_bundle_name is None:
        return None
    metadata = {"name": plan.ca_bundle_name, "namespace": plan.namespace, "labels": names.CA_BUNDLE_LABELS}
    data = {names.CA_FILE_NAME: plan.defaults.ca_bundle}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "immutable": True, "data": data}
