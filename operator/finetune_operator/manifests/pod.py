"""Builds the training pod. It passes Pod Security "restricted", and has no credentials of the cluster unless the job asks."""

from typing import Any

from finetune_api import names
from finetune_operator.manifests.container import build_container
from finetune_operator.manifests.init_container import build_init_container
from finetune_operator.manifests.plan import Plan
from finetune_operator.manifests.podgroup import build_group_reference
from finetune_operator.manifests.volumes import build_volumes
from finetune_operator.observed import Manifest

# How long a pod stays on a node with a problem. Kubernetes' default is five minutes, in which all pods of the attempt would
# wait. If the kubelet reports its node as not ready, it is alive. Usually it waits for its container runtime, which does not
# harm the pod. A node becomes unreachable only after it has not answered for the node controller's own grace period.
_TOLERATION_SECONDS = {"node.kubernetes.io/not-ready": 30, "node.kubernetes.io/unreachable": 5}


def build_pod_spec(plan: Plan, labels: dict[str, str]) -> Manifest:
    """Return the spec of the pod template, without fields that are None. labels: those of the attempt's pods."""
    pod, defaults, place = plan.spec.pod, plan.defaults, _placed_by_queue(plan)
    secrets = {secret.name: None for secret in (*(pod.image_pull_secrets or ()), *defaults.image_pull_secrets)}
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "subdomain": names.service_name(plan.name),
        "serviceAccountName": pod.service_account_name,
        "automountServiceAccountToken": pod.automount_service_account_token,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": pod.termination_grace_period_seconds,
        "securityContext": _security_context(plan),
        "imagePullSecrets": [{"name": name} for name in secrets] or None,
        "nodeSelector": {**(pod.node_selector or {}), **defaults.node_selector, **place.get("nodeSelector", {})} or None,
        "tolerations": _tolerations(plan, place.get("tolerations", [])),
        "affinity": _affinity(plan) or None,
        "topologySpreadConstraints": _topology_spread(plan, labels) or None,
        "priorityClassName": pod.priority_class_name,
        "schedulerName": pod.scheduler_name,
        "runtimeClassName": pod.runtime_class_name,
        "schedulingGates": place.get("schedulingGates") or [gate.to_wire() for gate in pod.scheduling_gates or ()] or None,
        "schedulingGroup": build_group_reference(plan),
        "resourceClaims": [claim.to_wire() for claim in pod.resource_claims or ()] or None,
        "initContainers": [build_init_container(plan, container) for container in pod.init_containers or ()] or None,
        "containers": [build_container(plan)],
        "volumes": build_volumes(plan),
    }
    return {name: value for name, value in spec.items() if value is not None}


def _security_context(plan: Plan) -> Manifest:
    """Return the values of the job, else those of the operator defaults. The cluster may set the rest, as OpenShift does."""
    context = {
        **plan.defaults.security_context.to_wire(),
        **(plan.spec.pod.security_context or type(plan.defaults.security_context)()).to_wire(),
    }
    group = {"fsGroupChangePolicy": "OnRootMismatch"} if "fsGroup" in context else {}
    return {"runAsNonRoot": True, **context, **group, "seccompProfile": {"type": "RuntimeDefault"}}


def _placed_by_queue(plan: Plan) -> Manifest:
    """Return the pod spec into which Kueue wrote the node selector, tolerations and gates of the flavor that it chose."""
    spec: Manifest = plan.queue.template.get("spec", {}) if plan.queue is not None else {}
    return spec


def _tolerations(plan: Plan, of_flavor: list[Manifest]) -> list[Manifest]:
    requested = [*(plan.spec.pod.tolerations or ()), *plan.defaults.tolerations]
    tolerations = [toleration.to_wire() for toleration in requested]
    tolerated_taints = {toleration.get("key") for toleration in tolerations}
    tolerations += [
        {"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}
        for taint, seconds in _TOLERATION_SECONDS.items()
        if taint not in tolerated_taints
    ]
    return tolerations + [toleration for toleration in of_flavor if toleration not in tolerations]


def _affinity(plan: Plan) -> Manifest:
    """Return the affinity of the job. It also prefers nodes on which no GPU has failed.

    A preference, because a job that has one node only would wait for ever, and not all such failures are of the node.
    """
    affinity: Manifest = plan.spec.pod.affinity.to_wire() if plan.spec.pod.affinity else {}
    if not plan.avoided_nodes:
        return affinity
    other_nodes = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in plan.avoided_nodes]
    of_nodes = affinity.get("nodeAffinity", {})
    name = "preferredDuringSchedulingIgnoredDuringExecution"
    preferred = [*of_nodes.get(name, ()), {"weight": 100, "preference": {"matchFields": other_nodes}}]
    return {**affinity, "nodeAffinity": {**of_nodes, name: preferred}}


def _topology_spread(plan: Plan, labels: dict[str, str]) -> list[Manifest]:
    """Spread the pods over nodes if possible, unless the job sets constraints.

    The selector contains the attempt. Otherwise pods of the last attempt that are still ending would keep new pods off their
    nodes.
    """
    selector = {"matchLabels": {name: labels[name] for name in (names.LABEL_JOB, names.LABEL_ATTEMPT)}}
    requested = plan.spec.pod.topology_spread_constraints
    if requested is not None:
        return [{**constraint.to_wire(), "labelSelector": selector} for constraint in requested]
    if plan.nodes == 1:
        return []
    default = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
    return [{**default, "labelSelector": selector}]
