"""The chart: it lints, installs with no values, gives no verb on secrets, and its CRD is the generated one."""

import pathlib
import shutil
import subprocess
import sys
from typing import Any

import pytest
import yaml

from finetune_api import crd, names

ROOT = pathlib.Path(__file__).parents[2]
CHART = ROOT / "charts/finetune-operator"
HELM = shutil.which("helm")
pytestmark = pytest.mark.skipif(HELM is None, reason="helm is not on the PATH")


def helm(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(HELM), *arguments], check=check, capture_output=True, text=True)


def render(*arguments: str) -> list[dict[str, Any]]:
    """Every object of the chart as Helm renders it."""
    text = helm("template", "finetune-operator", str(CHART), "--namespace", "finetune-system", *arguments).stdout
    return [document for document in yaml.safe_load_all(text) if document]


def only(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    [found] = [document for document in objects if document["kind"] == kind]
    return found


def test_it_lints() -> None:
    helm("lint", "--strict", str(CHART))


def test_it_installs_with_no_values() -> None:
    kinds = [document["kind"] for document in render()]
    assert sorted(kinds) == ["ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "Deployment", "ServiceAccount"]


def test_its_crd_template_is_the_generated_one() -> None:
    generated = subprocess.run(
        [sys.executable, str(ROOT / "charts/generate.py")],
        check=True, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "crds")},
    ).stdout  # fmt: skip
    assert (CHART / "templates/crd.yaml").read_text(encoding="utf-8") == generated, "run make generate"


def test_its_crd_is_the_generated_one_and_stays_when_the_chart_goes() -> None:
    rendered = only(render(), "CustomResourceDefinition")
    assert rendered["spec"] == crd.custom_resource_definition()["spec"]
    assert rendered["metadata"]["name"] == f"{names.PLURAL}.{names.GROUP}"
    assert rendered["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_its_crd_can_be_given_up_and_left_out() -> None:
    assert "annotations" not in only(render("--set", "crds.keep=false"), "CustomResourceDefinition")["metadata"]
    assert "CustomResourceDefinition" not in {document["kind"] for document in render("--set", "crds.enabled=false")}


def test_it_gives_no_verb_on_secrets_and_none_by_wildcard() -> None:
    rules = [rule for document in render() if document["kind"] in {"ClusterRole", "Role"} for rule in document["rules"]]
    assert rules
    for rule in rules:
        assert not {"*", "secrets"} & {resource.partition("/")[0] for resource in rule["resources"]}
        assert "*" not in rule["verbs"]
        assert "*" not in rule["apiGroups"]


def test_it_has_rights_in_the_watched_namespaces_only() -> None:
    objects = render("--set", "watchNamespaces={team-a,team-b}")
    bindings = [document for document in objects if document["kind"].endswith("Binding")]
    assert [(binding["kind"], binding["metadata"]["namespace"]) for binding in bindings] == [
        ("RoleBinding", "team-a"),
        ("RoleBinding", "team-b"),
    ]
    [container] = only(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["run", "--namespace=team-a", "--namespace=team-b"]


def test_its_pod_passes_pod_security_restricted() -> None:
    pod = only(render(), "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    for container in pod["containers"]:
        security = container["securityContext"]
        assert security == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def test_its_images_are_those_of_its_version_unless_a_value_says_otherwise() -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["appVersion"]

    def images(*arguments: str) -> tuple[str, str]:
        container = only(render(*arguments), "Deployment")["spec"]["template"]["spec"]["containers"][0]
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        return container["image"], environment["FINETUNE_TRAINER_IMAGE"]

    assert images() == (f"finetunedev/finetune-operator:{version}", f"finetunedev/finetune-trainer:{version}")
    assert images(
        "--set", "image.repository=localhost/o,image.tag=dev", "--set", "trainerImage.repository=localhost/t,trainerImage.tag=x"
    ) == ("localhost/o:dev", "localhost/t:x")  # fmt: skip


def test_its_version_is_the_program_s() -> None:
    import finetune_api

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == chart["version"] == finetune_api.__version__


@pytest.mark.parametrize("value", ["image.tga=1", "trainerimage.tag=1", "crds.keep=yes please", "image.pullPolicy=Sometimes"])
def test_a_value_with_a_typo_is_refused(value: str) -> None:
    refused = helm("template", "x", str(CHART), "--set", value, check=False)
    assert refused.returncode != 0
    assert "values don't meet the specifications of the schema" in refused.stderr
