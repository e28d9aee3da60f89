"""The chart: lint, safe installation without values, the generated CRD, and the effect of each value."""

import pathlib
import subprocess
import sys
from typing import Any

import yaml

import finetune_api
from chart.rendering import CHART, NAMESPACE, ROOT, defaults_text, helm, installed, only, pod_of, render
from finetune_api import crd, names
from finetune_operator.__main__ import _parser as operator_parser
from finetune_operator.defaults import OperatorDefaults, read_defaults

RESTRICTED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def kinds(*arguments: str) -> list[str]:
    return sorted(document["kind"] for document in installed(*arguments))


def read(tmp_path: pathlib.Path, *arguments: str) -> OperatorDefaults:
    """Render the operator's defaults file and parse it with the operator's own function."""
    file = tmp_path / "site.yaml"
    file.write_text(defaults_text(installed(*arguments)), encoding="utf-8")
    return read_defaults(file, "the operator's own default")


def test_it_lints() -> None:
    helm("lint", "--strict", str(CHART))


def test_it_installs_with_no_values() -> None:
    cluster = ["ClusterRole", "ClusterRole", "ClusterRole", "ClusterRoleBinding", "ConfigMap", "CustomResourceDefinition"]
    assert kinds() == [*cluster, "Deployment", "NetworkPolicy", "Role", "RoleBinding", "ServiceAccount"]


def test_its_crd_template_is_the_generated_one() -> None:
    generated = subprocess.run(
        [sys.executable, str(ROOT / "charts/generate.py")],
        check=True, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "crds")},
    ).stdout  # fmt: skip
    assert (CHART / "templates/crd.yaml").read_text(encoding="utf-8") == generated, "run make generate"


def test_its_crd_is_the_generated_one_and_an_uninstall_keeps_it() -> None:
    rendered = only(render(), "CustomResourceDefinition")
    assert rendered["spec"] == crd.custom_resource_definition()["spec"]
    assert rendered["metadata"]["name"] == f"{names.PLURAL}.{names.GROUP}"
    assert rendered["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_values_delete_its_crd_at_an_uninstall_or_leave_it_out() -> None:
    assert "annotations" not in only(render("--set", "crds.keep=false"), "CustomResourceDefinition")["metadata"]
    assert "CustomResourceDefinition" not in kinds("--set", "crds.enabled=false")


def test_every_pod_passes_pod_security_restricted() -> None:
    pods = [pod_of(render()), only(render(), "Pod")["spec"]]
    for pod in pods:
        assert {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}.items() <= pod["securityContext"].items()
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert {kind for volume in pod["volumes"] for kind in volume} == {"name", "configMap", "emptyDir"}
        for container in pod["containers"]:
            assert container["securityContext"] == RESTRICTED
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])


def test_only_pods_that_need_a_token_have_one() -> None:
    accounts = [document for document in render() if document["kind"] == "ServiceAccount"]
    assert [account["automountServiceAccountToken"] for account in accounts] == [False, False]
    assert pod_of(render())["automountServiceAccountToken"] is True


def test_it_passes_the_operator_its_lease_its_defaults_file_and_its_pod() -> None:
    [container] = pod_of(render("--set", "watchNamespaces={team-a,team-b}"))["containers"]
    assert container["args"] == [
        "run",
        "--lease=finetune-operator",
        "--site-file=/etc/finetune-operator/site.yaml",
        "--log-format=Text",
        "--log-level=INFO",
        "--namespace=team-a",
        "--namespace=team-b",
    ]
    assert {entry["name"]: entry["valueFrom"]["fieldRef"]["fieldPath"] for entry in container["env"]} == {
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
    }


def test_the_rollout_strategy_is_the_same_for_any_number_of_replicas() -> None:
    for replicas in ("1", "2"):
        strategy = only(render("--set", f"replicas={replicas}"), "Deployment")["spec"]["strategy"]
        assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}


def test_one_replica_has_no_disruption_budget_and_two_have_one_and_are_spread() -> None:
    assert "PodDisruptionBudget" not in kinds()
    assert "topologySpreadConstraints" not in pod_of(render())
    objects = installed("--set", "replicas=2")
    budget, deployment = only(objects, "PodDisruptionBudget")["spec"], only(objects, "Deployment")["spec"]
    assert deployment["replicas"] == 2
    assert budget["minAvailable"] == 1
    assert budget["selector"] == deployment["selector"]
    spread = deployment["template"]["spec"]["topologySpreadConstraints"]
    assert [(entry["topologyKey"], entry["whenUnsatisfiable"]) for entry in spread] == [
        ("kubernetes.io/hostname", "ScheduleAnyway"),
        ("topology.kubernetes.io/zone", "ScheduleAnyway"),
    ]
    own = [{"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}]
    assert pod_of(render("--set", "replicas=2", "--set-json", f"topologySpreadConstraints={own}".replace("'", '"')))[
        "topologySpreadConstraints"
    ] == own  # fmt: skip


def test_the_values_for_the_operator_s_pod_are_in_its_template() -> None:
    template = only(
        render(
            "--set", "priorityClassName=high", "--set", "podAnnotations.a=b", "--set", "podLabels.team=ml",
            "--set", "podLabels.app\\.kubernetes\\.io/name=mine", "--set-json", 'env=[{"name":"TZ","value":"UTC"}]',
            "--set", "nodeSelector.pool=system", "--set-json", 'affinity={"nodeAffinity":{}}',
            "--set-json", 'tolerations=[{"key":"system","operator":"Exists"}]', "--set", "log.format=JSON,log.level=DEBUG",
        ),
        "Deployment",
    )["spec"]["template"]  # fmt: skip
    assert template["metadata"]["annotations"]["a"] == "b"
    assert template["metadata"]["labels"]["team"] == "ml"
    assert template["metadata"]["labels"]["app.kubernetes.io/name"] == "finetune-operator", (
        "podLabels do not override the selector's labels"
    )
    pod = template["spec"]
    assert pod["containers"][0]["env"][-1] == {"name": "TZ", "value": "UTC"}
    assert {"--log-format=JSON", "--log-level=DEBUG"} <= set(pod["containers"][0]["args"])
    assert (pod["priorityClassName"], pod["nodeSelector"]) == ("high", {"pool": "system"})
    assert (pod["affinity"], pod["tolerations"]) == ({"nodeAffinity": {}}, [{"key": "system", "operator": "Exists"}])


def test_the_operator_has_an_id_above_10000_and_limits_its_files_unless_a_value_says_otherwise() -> None:
    pod = pod_of(render())
    assert min(pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) > 10_000
    assert {"requests", "limits"} == {
        kind for kind, amounts in pod["containers"][0]["resources"].items() if "ephemeral-storage" in amounts
    }
    ids = ("--set", "podSecurityContext.runAsUser=null", "--set", "podSecurityContext.runAsGroup=null")
    assert set(pod_of(render(*ids))["securityContext"]) == {"runAsNonRoot", "seccompProfile"}


def test_values_set_the_operator_s_options_and_probes() -> None:
    values = "workers=64,pollSeconds=10,extraArgs={--namespace=x},livenessProbe.failureThreshold=9,readinessProbe.periodSeconds=7"
    [container] = pod_of(render("--set", values))["containers"]
    assert container["args"][-3:] == ["--workers=64", "--poll-seconds=10", "--namespace=x"]
    options = operator_parser().parse_args(container["args"])
    assert (options.workers, options.poll_seconds, options.namespace) == (64, 10.0, ["x"])
    assert container["livenessProbe"] == {
        "httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 9,
    }  # fmt: skip
    assert container["readinessProbe"]["periodSeconds"] == 7


def test_its_annotations_name_its_images_and_its_resource() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    images = yaml.safe_load(chart["annotations"]["artifacthub.io/images"])
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert [image["image"] for image in images] == [
        f"{values[name]['repository']}:{chart['appVersion']}" for name in ("image", "trainerImage")
    ]
    [resource] = yaml.safe_load(chart["annotations"]["artifacthub.io/crds"])
    definition = crd.custom_resource_definition()
    assert (resource["name"], resource["kind"]) == (definition["metadata"]["name"], definition["spec"]["names"]["kind"])
    assert resource["version"] == definition["spec"]["versions"][0]["name"]
    assert yaml.safe_load(chart["annotations"]["artifacthub.io/changes"])


def test_common_labels_are_on_every_object_and_replace_none_of_the_chart_s_own() -> None:
    own = {"app.kubernetes.io/name": "finetune-operator"}
    values = (
        "--set",
        "commonLabels.team=ml,replicas=2,commonLabels.app\\.kubernetes\\.io/name=mine,policy.enabled=true,podMonitors.enabled=true",
    )
    objects = installed(*values)
    assert {document["metadata"]["labels"]["team"] for document in objects} == {"ml"}
    assert all(own.items() <= document["metadata"]["labels"].items() for document in objects)
    assert only(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]["team"] == "ml"


def test_values_change_the_disruption_budget() -> None:
    values = ["--set", "replicas=3,podDisruptionBudget.maxUnavailable=50%"]
    budget = only(installed(*values), "PodDisruptionBudget")["spec"]
    assert (budget["maxUnavailable"], "minAvailable" in budget) == ("50%", False)
    assert "PodDisruptionBudget" not in kinds("--set", "replicas=3,podDisruptionBudget.enabled=false")


def test_a_service_monitor_finds_the_port_of_the_service() -> None:
    objects = installed("--set", "metrics.serviceMonitor.enabled=true,metrics.service.annotations.a=b")
    service, monitor = only(objects, "Service"), only(objects, "ServiceMonitor")
    [port], [endpoint] = service["spec"]["ports"], monitor["spec"]["endpoints"]
    assert (endpoint["port"], port["targetPort"], service["metadata"]["annotations"]) == (port["name"], "http", {"a": "b"})
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    [container] = pod_of(objects)["containers"]
    assert {"name": "http", "containerPort": port["port"]} in container["ports"]
    assert "PodMonitor" not in [document["kind"] for document in objects]
    assert kinds("--set", "metrics.service.enabled=true").count("Service") == 1


def test_its_images_have_its_version_unless_a_value_overrides_it() -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["appVersion"]
    digest = "sha256:" + "0" * 64

    def images(*arguments: str) -> tuple[str, str]:
        objects = installed(*arguments)
        return pod_of(objects)["containers"][0]["image"], yaml.safe_load(defaults_text(objects))["trainerImage"]

    assert images() == (f"finetunedev/finetune-operator:{version}", f"finetunedev/finetune-trainer:{version}")
    assert images(
        "--set", "image.repository=localhost/o,image.tag=dev", "--set", "trainerImage.repository=localhost/t,trainerImage.tag=x"
    ) == ("localhost/o:dev", "localhost/t:x")  # fmt: skip
    assert images("--set", f"image.digest={digest},trainerImage.digest={digest}") == (
        f"finetunedev/finetune-operator@{digest}",
        f"finetunedev/finetune-trainer@{digest}",
    )


def test_its_version_is_that_of_the_python_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == chart["version"] == finetune_api.__version__


def test_empty_defaults_are_left_out() -> None:
    defaults = yaml.safe_load(defaults_text(render_defaults()))
    assert set(defaults) == {"trainerImage", "securityContext", "networkPolicy"}
    assert defaults["securityContext"] == {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}


def render_defaults(*arguments: str) -> list[dict[str, Any]]:
    return installed("--show-only", "templates/site.yaml", *arguments)


def test_the_operator_reads_all_defaults(tmp_path: pathlib.Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", encoding="utf-8")
    peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    values = tmp_path / "values.yaml"
    content = {
        "imagePullSecrets": [{"name": "registry"}],
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "nodeSelector": {"pool": "gpu"},
        "cacheClaim": "cache",
        "hubEndpoint": "https://hub.example.com",
        "proxy": {"httpsProxy": "http://proxy.example.com:3128", "noProxy": ".svc,10.0.0.0/8"},
        "networkPolicy": {"enabled": True, "metricsFrom": [peer]},
        "podGroups": False,
    }
    values.write_text(yaml.safe_dump({"site": content}), encoding="utf-8")
    defaults = read(tmp_path, "--values", str(values), "--set-file", f"site.caBundle={bundle}")
    wire = defaults.to_wire()
    assert wire.pop("trainerImage").startswith("finetunedev/finetune-trainer:")
    assert wire.pop("securityContext") == {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
    assert wire.pop("caBundle") == bundle.read_text(encoding="utf-8")
    selector = only(render(), "Deployment")["spec"]["selector"]
    operator_peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}}, "podSelector": selector}
    assert wire.pop("networkPolicy") == {"enabled": True, "metricsFrom": [peer], "operatorPeer": operator_peer}
    assert wire == {key: value for key, value in content.items() if key != "networkPolicy"}


def test_ids_can_be_left_to_the_cluster_and_large_ids_stay_integers(tmp_path: pathlib.Path) -> None:
    null = ("--set", "site.securityContext.runAsUser=null", "--set", "site.securityContext.runAsGroup=null")
    assert read(tmp_path, *null, "--set", "site.securityContext.fsGroup=1000660000").security_context.to_wire() == {
        "fsGroup": 1000660000
    }
    assert read(tmp_path, "--set", "site.securityContext=null").security_context.to_wire() == {}


def test_a_change_of_the_defaults_starts_new_pods() -> None:
    def checksum(*arguments: str) -> str:
        template = only(render(*arguments), "Deployment")["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/site"])

    assert checksum() == checksum("--set", "podLabels.a=b")
    assert checksum() != checksum("--set", "site.cacheClaim=cache")


def test_the_operator_s_network_policy_allows_the_traffic_that_it_needs() -> None:
    assert "NetworkPolicy" not in kinds("--set", "networkPolicy.enabled=false")
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    spec = only(installed(), "NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    assert spec["ingress"] == [{"ports": [{"port": "http", "protocol": "TCP"}], "from": [monitoring]}]
    spec = only(installed("--set", "networkPolicy.apiServerPorts={443,6443}"), "NetworkPolicy")["spec"]
    assert spec["podSelector"] == only(render(), "Deployment")["spec"]["selector"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    ports = {rule["ports"][0]["port"]: rule.get("to") for rule in spec["egress"]}
    to_pods = ports.pop(names.PORT_TELEMETRY)
    assert ports == {53: None, 443: None}
    expression = {"key": names.LABEL_JOB, "operator": "Exists"}
    assert to_pods == [{"namespaceSelector": {}, "podSelector": {"matchExpressions": [expression]}}]
    peers = '[{"podSelector":{}}]'
    narrowed = installed("--set", "networkPolicy.enabled=true", "--set-json", f"networkPolicy.metricsFrom={peers}")
    assert only(narrowed, "NetworkPolicy")["spec"]["ingress"][0]["from"] == [{"podSelector": {}}]


def test_its_names_come_from_the_release_or_from_values() -> None:
    def name(release: str, *arguments: str) -> str:
        text = helm("template", release, str(CHART), "--show-only", "templates/deployment.yaml", *arguments).stdout
        return str(yaml.safe_load(text)["metadata"]["name"])

    assert name("ml") == "ml-finetune-operator"
    assert name("finetune-operator-blue") == "finetune-operator-blue"
    assert name("ml", "--set", "nameOverride=ft") == "ml-ft"
    assert name("ml", "--set", "fullnameOverride=trainer") == "trainer"


def test_an_existing_service_account_can_be_used() -> None:
    objects = installed("--set", "serviceAccount.create=false,serviceAccount.name=mine")
    assert "ServiceAccount" not in {document["kind"] for document in objects}
    assert pod_of(objects)["serviceAccountName"] == "mine"
    subjects = [document["subjects"][0]["name"] for document in objects if document["kind"].endswith("Binding")]
    assert subjects == ["mine", "mine"]


def test_the_notes_name_the_next_command_for_this_release() -> None:
    def notes(*arguments: str) -> str:
        options = ("--namespace", "ml-system", "--dry-run=client", *arguments)
        return helm("install", "ml", str(CHART), *options).stdout.partition("NOTES:")[2]

    assert "helm test ml --namespace ml-system --logs --timeout 12m" in notes()
    assert "FineTuneJobs of every namespace" in notes()
    narrowed = notes("--set", "watchNamespaces={team-a,team-b},test.enabled=false")
    assert "FineTuneJobs of team-a, team-b" in narrowed
    assert "kubectl --namespace ml-system rollout status deployment/ml-finetune-operator" in narrowed
    assert "kubectl --namespace team-a apply --filename job.yaml" in narrowed
    assert "deletes every FineTuneJob" in notes("--set", "crds.keep=false")
    assert "--show-only templates/crd.yaml" in notes("--set", "crds.enabled=false")
