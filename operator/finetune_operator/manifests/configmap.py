"""Builds the ConfigMap with the run file of an attempt: everything that the pods need to know.

It holds no secret of the user. The key of the rendezvous is worth nothing outside of the attempt.
"""

import json

from finetune_api import names
from finetune_api.spec import Pod
from finetune_api.wire import RunConfig
from finetune_operator.manifests.plan import Plan, build_attempt_labels, build_metadata
from finetune_operator.observed import Manifest


def build_run_config(plan: Plan) -> RunConfig:
    """Return what the launcher reads: the spec without spec.pod, which it does not need, and where the claims are mounted."""
    claim = plan.spec.output.claim
    path = claim.path if claim is not None else None
    return RunConfig(
        name=plan.name,
        namespace=plan.namespace,
        attempt=plan.attempt,
        spec=plan.spec.model_copy(update={"pod": Pod()}),
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
    """Return an immutable ConfigMap: an attempt never changes, and kubelets need not watch it."""
    ca_files = {names.CA_FILE_NAME: plan.defaults.ca_bundle} if plan.defaults.ca_bundle else {}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": build_metadata(plan, plan.run_file_name, build_attempt_labels(plan)),
        "immutable": True,
        "data": {
            names.RUN_FILE_NAME: _dump(build_run_config(plan)),
            **({names.RENDEZVOUS_KEY_FILE_NAME: plan.rendezvous_key} if plan.nodes > 1 else {}),
            **ca_files,
        },
    }
