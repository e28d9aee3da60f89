"""Builds the trainer container of a training pod."""

from finetune_api import names
from finetune_operator.manifests.plan import Plan
from finetune_operator.manifests.volumes import build_mounts
from finetune_operator.observed import Manifest

# Requests of a pod without spec.pod.resources, so that the scheduler reserves some room for it. There is no limit.
_DEFAULT_REQUESTS: dict[str, int | str] = {"cpu": "500m", "memory": "1Gi"}

_PROBE_PERIOD_SECONDS = 30
# A launcher that works reports a stall itself, with the stacks of its processes. It gets this much more time to do so.
_PROBE_MARGIN_SECONDS = 120
# A pod has this much time to start to answer, also on a slow node.
_MIN_PROBE_SECONDS = 300


def build_container(plan: Plan) -> Manifest:
    """Return the container."""
    return {
        "name": names.TRAINER_CONTAINER,
        "image": plan.image,
        "imagePullPolicy": "IfNotPresent",
        "terminationMessagePath": names.TERMINATION_LOG,
        "terminationMessagePolicy": "File",
        "env": _environment(plan),
        "ports": [
            {"name": "telemetry", "containerPort": names.PORT_TELEMETRY},
            {"name": "rendezvous", "containerPort": names.PORT_RENDEZVOUS},
        ],
        **_liveness_probe(plan),
        "resources": _resources(plan),
        "securityContext": build_container_security(),
        "volumeMounts": build_mounts(plan),
    }


def build_container_security() -> Manifest:
    """Return the security context of every container, with the least privileges."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def _liveness_probe(plan: Plan) -> Manifest:
    """Return the probe with which the kubelet ends a pod whose launcher no longer works, and so can't detect a stall itself.

    The launcher answers in every phase, so the probe can begin at once.
    """
    allowed = plan.spec.recovery.stall_timeout_seconds
    if not allowed:
        return {}
    seconds = max(_MIN_PROBE_SECONDS, allowed + _PROBE_MARGIN_SECONDS)
    probe = {
        "httpGet": {"path": "/healthz", "port": "telemetry"},
        "periodSeconds": _PROBE_PERIOD_SECONDS,
        "timeoutSeconds": 10,
        "failureThreshold": -(-seconds // _PROBE_PERIOD_SECONDS),
    }
    return {"livenessProbe": probe}


def _environment(plan: Plan) -> list[Manifest]:
    """Return our variables, then those of the job, which can't have the same names (spec.containers.RESERVED_VARIABLES)."""
    rendezvous = f"{names.pod_host_name(plan.name, plan.attempt, 0)}.{plan.service_domain}"
    environment: list[Manifest] = [
        {"name": names.ENV_RUN_FILE, "value": f"{names.CONFIG_DIR}/{names.RUN_FILE_NAME}"},
        {"name": names.ENV_RENDEZVOUS_HOST, "value": rendezvous},
        {"name": names.ENV_POD_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": names.ENV_RESTARTS_LEFT, "value": str(plan.restarts_left)},
        {"name": names.ENV_NODE_NAME, "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {
            "name": names.ENV_CPU_REQUEST,
            "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu", "divisor": "1m"}},
        },
        {"name": "HOME", "value": "/tmp"},  # noqa: S108 - an emptyDir of the pod's own
        {"name": "HF_HOME", "value": "/tmp/huggingface"},  # noqa: S108
    ]
    if plan.cache_claim is not None:
        environment.append({"name": names.ENV_CACHE_DIR, "value": names.CACHE_DIR})
    return [
        *environment,
        *_hub_environment(plan),
        *build_network_environment(plan),
        *(item.to_wire() for item in plan.spec.pod.env or ()),
    ]


def _hub_environment(plan: Plan) -> list[Manifest]:
    hub, environment = plan.spec.hub, list[Manifest]()
    if endpoint := hub.endpoint or plan.defaults.hub_endpoint:
        environment.append({"name": names.ENV_HUB_ENDPOINT, "value": endpoint})
    if hub.token_secret_ref is not None:
        reference = {"name": hub.token_secret_ref.name, "key": hub.token_secret_ref.key}
        environment.append({"name": names.ENV_HUB_TOKEN, "valueFrom": {"secretKeyRef": reference}})
    return environment


def build_network_environment(plan: Plan) -> list[Manifest]:
    """Return the variables with the site's proxy and certificates."""
    proxy, bundle = plan.defaults.proxy, f"{names.CONFIG_DIR}/{names.CA_FILE_NAME}"
    proxies = {"HTTP_PROXY": "httpProxy", "HTTPS_PROXY": "httpsProxy", "NO_PROXY": "noProxy"}
    from_secret = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": proxy.secret_name, "key": key, "optional": key == "noProxy"}}}
        for name, key in proxies.items()
        if proxy.secret_name
    ]
    values = {
        **{name: proxy.to_wire().get(key) for name, key in proxies.items() if not proxy.secret_name},
        # Python's ssl and the Hub's client read the first variable, other libraries the second.
        "SSL_CERT_FILE": bundle if plan.defaults.ca_bundle else None,
        "REQUESTS_CA_BUNDLE": bundle if plan.defaults.ca_bundle else None,
    }
    return from_secret + [{"name": name, "value": value} for name, value in values.items() if value]


def _resources(plan: Plan) -> Manifest:
    """Return spec.pod.resources, spec.pod.resourceClaims and the GPUs.

    The request of an extended resource must equal its limit.
    """
    requested = plan.spec.pod.resources
    requests = dict((requested.requests or {}) if requested is not None else _DEFAULT_REQUESTS)
    limits = dict(requested.limits or {}) if requested is not None else {}
    distributed = plan.spec.distributed
    if distributed.gpus_per_node > 0 and distributed.gpu_resource_claim is None:
        requests[distributed.gpu_resource_name] = distributed.gpus_per_node
        limits[distributed.gpu_resource_name] = distributed.gpus_per_node
    claims = [{"name": claim.name} for claim in plan.spec.pod.resource_claims or ()]
    return {name: value for name, value in (("requests", requests), ("limits", limits), ("claims", claims)) if value}
