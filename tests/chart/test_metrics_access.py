"""The operator's metrics with TLS: rights, Service, ServiceMonitor, NetworkPolicy and certificate."""

import pathlib
from typing import Any

from chart.rendering import CHART, NAMESPACE, helm, installed, only
from finetune_api import names
from finetune_operator.__main__ import _parser

SECURE = ("--set", "metrics.secure=true,podMonitors.enabled=true")
PREFIX = f"finetune-operator-{NAMESPACE}-metrics"


def rules(objects: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = only(objects, "ClusterRole", name)["rules"]
    return found


def test_without_the_value_there_is_nothing_of_it() -> None:
    objects = installed("--set", "podMonitors.enabled=true")
    assert not [document for document in objects if document["kind"] in ("Service", "ServiceMonitor")]
    assert not [document for document in objects if document["metadata"]["name"].startswith(PREFIX)]
    [container] = only(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert not [argument for argument in container["args"] if "metrics" in argument]


def test_the_operator_may_send_reviews_and_readers_may_get_the_metrics() -> None:
    reader = "metrics.readers[0].kind=ServiceAccount,metrics.readers[0].name=prometheus,metrics.readers[0].namespace=monitoring"
    objects = installed(*SECURE, "--set", reader)
    assert rules(objects, f"{PREFIX}-auth") == [
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
        {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
    ]
    assert rules(objects, f"{PREFIX}-reader") == [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]
    subjects = {
        document["roleRef"]["name"]: document["subjects"] for document in objects if document["kind"] == "ClusterRoleBinding"
    }
    account = {"kind": "ServiceAccount", "name": "finetune-operator", "namespace": NAMESPACE}
    assert subjects[f"{PREFIX}-auth"] == [account]
    assert subjects[f"{PREFIX}-reader"] == [{"kind": "ServiceAccount", "name": "prometheus", "namespace": "monitoring"}]
    bound = {document["metadata"]["name"] for document in installed(*SECURE) if document["kind"] == "ClusterRoleBinding"}
    assert f"{PREFIX}-reader" not in bound, "nobody by default"


def test_the_monitor_finds_the_service_and_the_service_finds_the_pods() -> None:
    objects = installed(*SECURE)
    service, pods = only(objects, "Service"), only(objects, "Deployment")["spec"]["template"]
    monitor = only(objects, "ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert service["spec"]["selector"].items() <= pods["metadata"]["labels"].items()
    assert [document["metadata"]["name"] for document in objects if document["kind"] == "PodMonitor"] == [
        "finetune-operator-jobs"
    ]
    [endpoint] = monitor["endpoints"]
    [port] = service["spec"]["ports"]
    assert (endpoint["port"], endpoint["scheme"], endpoint["honorLabels"]) == (port["name"], "https", True)
    assert endpoint["bearerTokenFile"].endswith("/serviceaccount/token")
    assert endpoint["tlsConfig"] == {"insecureSkipVerify": True}
    ports = {port["name"]: port["containerPort"] for port in pods["spec"]["containers"][0]["ports"]}
    assert ports == {"http": names.PORT_OPERATOR, port["targetPort"]: names.PORT_OPERATOR_METRICS}


def test_the_network_policy_lets_prometheus_reach_the_metrics_and_anybody_the_probes() -> None:
    probes, metrics = only(installed(*SECURE), "NetworkPolicy")["spec"]["ingress"]
    assert probes == {"ports": [{"port": "http", "protocol": "TCP"}]}
    assert metrics["ports"] == [{"port": "metrics", "protocol": "TCP"}]
    assert metrics["from"]


def test_a_certificate_comes_from_a_secret() -> None:
    objects = installed(*SECURE, "--set", "metrics.certificateSecretName=metrics-tls")
    pod = only(objects, "Deployment")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    options = _parser().parse_args(container["args"])
    assert options.metrics_port == names.PORT_OPERATOR_METRICS
    [mount] = [mount for mount in container["volumeMounts"] if pathlib.Path(mount["mountPath"]) == options.metrics_certificate]
    [volume] = [volume for volume in pod["volumes"] if volume["name"] == mount["name"]]
    assert volume["secret"]["secretName"] == "metrics-tls"
    assert [item["path"] for item in volume["secret"]["items"]] == ["tls.crt", "tls.key"]
    [endpoint] = only(objects, "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["tlsConfig"] == {
        "ca": {"secret": {"name": "metrics-tls", "key": "ca.crt"}},
        "serverName": f"{only(objects, 'Service')['metadata']['name']}.{NAMESPACE}.svc",
    }


def test_it_lints() -> None:
    helm("lint", "--strict", str(CHART), *SECURE, "--set", "metrics.certificateSecretName=metrics-tls")
