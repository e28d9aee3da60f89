"""The training pod. It passes Pod Security "restricted", and holds no credentials of the cluster."""

from typing import Any

from finetune_api import names
from finetune_operator.manifests.container import build_container
from finetune_operator.manifests.plan import Plan
from finetune_operator.manifests.volumes import build_volumes
from finetune_operator.observed import Manifest

# How long a pod stays on a node that is in trouble. Kubernetes' own default is five minutes, lost for the whole gang. A kubelet
# that says that its node is not ready lives, and as a rule waits for its container runtime to come back, which does the pod no
# harm. One that is silent was so for the node controller's own grace period already.
_TOLERATED_SECONDS = {"node.kubernetes.io/not-ready": 30, "node.kubernetes.io/unreachable": 5}


def build_pod_spec(plan: Plan, labels: dict[str, str]) -> Manifest:
    """Everything of the template but its metadata; what is None is left out. labels: those by which the gang is known."""
    pod, site = plan.spec.pod, plan.site
    secrets = {secret.name: None for secret in (*(pod.image_pull_secrets or ()), *site.image_pull_secrets)}
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "subdomain": names.service_name(plan.name),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": pod.termination_grace_period_seconds,
        "securityContext": _security_context(plan),
        "imagePullSecrets": [{"name": name} for name in secrets] or None,
        "nodeSelector": {**site.node_selector, **(pod.node_selector or {})} or None,
        "tolerations": _tolerations(plan),
        "affinity": pod.affinity or None,
        "topologySpreadConstraints": _spread(plan, labels) or None,
        "priorityClassName": pod.priority_class_name,
        "schedulerName": pod.scheduler_name,
        "runtimeClassName": pod.runtime_class_name,
        "containers": [build_container(plan)],
        "volumes": build_volumes(plan),
    }
    return {name: value for name, value in spec.items() if value is not None}


def _security_context(plan: Plan) -> Manifest:
    """What the job says, else the site; where both are silent the cluster chooses, as OpenShift does."""
    users = {
        **plan.site.security_context.to_wire(),
        **(plan.spec.pod.security_context or type(plan.site.security_context)()).to_wire(),
    }
    group = {"fsGroupChangePolicy": "OnRootMismatch"} if "fsGroup" in users else {}
    return {"runAsNonRoot": True, **users, **group, "seccompProfile": {"type": "RuntimeDefault"}}


def _tolerations(plan: Plan) -> list[Manifest]:
    asked = [*(plan.spec.pod.tolerations or ()), *plan.site.tolerations]
    tolerations = [toleration.to_wire() for toleration in asked]
    given = {toleration.get("key") for toleration in tolerations}
    return tolerations + [
        {"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}
        for taint, seconds in _TOLERATED_SECONDS.items()
        if taint not in given
    ]


def _spread(plan: Plan, labels: dict[str, str]) -> list[Manifest]:
    """Over machines where possible, unless the job says how.

    The attempt counts, or pods of the last one that still end would push the new ones away.
    """
    selector = {"matchLabels": {name: labels[name] for name in (names.LABEL_JOB, names.LABEL_ATTEMPT)}}
    asked = plan.spec.pod.topology_spread_constraints
    if asked is not None:
        return [{**constraint.to_wire(), "labelSelector": selector} for constraint in asked]
    if plan.nodes == 1:
        return []
    default = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
    return [{**default, "labelSelector": selector}]
