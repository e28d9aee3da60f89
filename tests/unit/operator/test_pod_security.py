"""Pods of every valid spec pass Pod Security "restricted" and keep the fields that the operator relies on."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from finetune_api import names
from finetune_api.resource import parse_spec
from finetune_operator.defaults import OperatorDefaults
from finetune_operator.manifests import Plan, build_children
from finetune_operator.observed import Manifest
from unit.operator.pod_security import violations
from unit.operator.random_specs import specs

UID = "11111111-aaaa-bbbb-cccc-000000000000"
DEFAULTS = OperatorDefaults.model_validate(
    {
        "trainerImage": "trainer:1",
        "imagePullSecrets": [{"name": "registry"}],
        "cacheClaim": "cache",
        "hubEndpoint": "https://hub.example.com",
        "caBundle": "-----BEGIN CERTIFICATE-----",
        "proxy": {"httpProxy": "http://proxy:3128", "httpsProxy": "http://proxy:3128", "noProxy": ".svc"},
        "securityContext": {},
        "networkPolicy": {"enabled": True},
    },
    by_alias=True,
)
ANY = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


def children_of(spec: dict[str, Any], defaults: OperatorDefaults) -> list[Manifest]:
    parsed = parse_spec(spec)
    return build_children(Plan("team", "news", UID, 3, parsed, parsed.distributed.nodes, "trainer:1", 3, defaults=defaults))


def template_of(children: list[Manifest]) -> Manifest:
    [job] = [child for child in children if child["kind"] == "Job"]
    template: Manifest = job["spec"]["template"]
    return template


@pytest.mark.parametrize("defaults", [OperatorDefaults(), DEFAULTS], ids=["no defaults", "all defaults"])
@ANY
@given(spec=specs())
def test_pods_of_any_valid_spec_pass_pod_security_and_keep_the_fields_of_the_operator(
    defaults: OperatorDefaults, spec: dict[str, Any]
) -> None:
    template = template_of(children_of(spec, defaults))
    assert violations(template) == []
    check_isolation(template)
    check_identity(template, defaults)


def check_isolation(template: Manifest) -> None:
    """Check more than "restricted" does: no credentials of the cluster, and only volumes that a training needs."""
    spec = template["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in spec
    assert spec["enableServiceLinks"] is False
    assert "hostAliases" not in spec
    assert "nodeName" not in spec
    [container] = spec["containers"]
    assert "initContainers" not in spec
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert not {"command", "args", "envFrom", "lifecycle"} & set(container)
    assert {kind for volume in spec["volumes"] for kind in volume} - {"name"} <= {
        "configMap",
        "emptyDir",
        "persistentVolumeClaim",
        "projected",
    }
    projected = [source for volume in spec["volumes"] for source in volume.get("projected", {}).get("sources", ())]
    assert {kind for source in projected for kind in source} <= {"configMap"}


def check_identity(template: Manifest, defaults: OperatorDefaults) -> None:
    """Check that a job can't change anything that the operator relies on."""
    labels, annotations = template["metadata"]["labels"], template["metadata"]["annotations"]
    assert (labels[names.LABEL_JOB], labels[names.LABEL_ATTEMPT], labels[names.LABEL_MANAGED_BY]) == (
        "news",
        "3",
        names.MANAGED_BY,
    )
    assert annotations[names.ANNOTATION_OWNER_UID] == UID
    assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    [container] = template["spec"]["containers"]
    assert container["name"] == names.TRAINER_CONTAINER
    assert container["terminationMessagePath"] == names.TERMINATION_LOG
    variables = [item["name"] for item in container["env"]]
    assert len(variables) == len(set(variables)), "if a variable is set twice, the second value wins"
    values = {item["name"]: item.get("value") for item in container["env"]}
    assert values[names.ENV_RUN_FILE] == f"{names.CONFIG_DIR}/{names.RUN_FILE_NAME}"
    assert values[names.ENV_RENDEZVOUS_HOST] == "news-3-0.news-gang.team.svc"
    assert values["HOME"] == "/tmp"
    paths = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert len(paths) == len(set(paths))
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in template["spec"]["volumes"]}
