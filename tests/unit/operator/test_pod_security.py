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
    check_isolation(template, spec)
    check_identity(template, defaults)


def check_isolation(template: Manifest, job: dict[str, Any]) -> None:
    """Check more than "restricted" does: only the credentials and volumes that the spec of the job names."""
    spec, pod = template["spec"], job.get("pod", {})
    assert spec["automountServiceAccountToken"] is pod.get("automountServiceAccountToken", False)
    assert spec.get("serviceAccountName") == pod.get("serviceAccountName")
    assert spec["enableServiceLinks"] is False
    assert "hostAliases" not in spec
    assert "nodeName" not in spec
    [container] = spec["containers"]
    assert not {"command", "args", "envFrom", "lifecycle"} & set(container)
    init_containers = spec.get("initContainers", [])
    assert [item["name"] for item in init_containers] == [item["name"] for item in pod.get("initContainers", ())]
    for item in (container, *init_containers):
        assert item["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
        assert not {"envFrom", "lifecycle", "ports", "volumeDevices"} & (set(item) if item is not container else set())
    check_volumes(spec["volumes"], init_containers, pod.get("volumes", []))


def check_volumes(volumes: list[Manifest], init_containers: list[Manifest], requested: list[Manifest]) -> None:
    """Check that a pod has the volumes that its job names, and init containers none of the operator's own."""
    own = {"persistentVolumeClaim", "configMap", "emptyDir", "projected"}
    kinds = {kind for volume in volumes for kind in volume} - {"name"}
    assert kinds - own <= {kind for volume in requested for kind in volume}
    projected = [source for volume in volumes for source in volume.get("projected", {}).get("sources", ())]
    named = [source for volume in requested for source in volume.get("projected", {}).get("sources", ())]
    assert [source for source in projected if "configMap" not in source] == [
        source for source in named if "configMap" not in source
    ]
    shared = {volume["name"] for volume in volumes if not volume["name"].startswith("extra-")}
    claims = {item["claim"]["claimName"] for item in requested if "claim" in item}
    shared -= {item["name"] for item in volumes if item.get("persistentVolumeClaim", {}).get("claimName") in claims}
    for container in init_containers:
        own_mounts = [mount for mount in container["volumeMounts"] if mount["name"] in shared]
        assert {(mount["name"], mount["subPath"]) for mount in own_mounts} <= {
            ("scratch", container["name"]),
            ("config", names.CA_FILE_NAME),
        }


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
    containers = [container, *template["spec"].get("initContainers", ())]
    mounted = {mount["name"] for item in containers for mount in item["volumeMounts"]}
    volumes = [volume["name"] for volume in template["spec"]["volumes"]]
    assert len(volumes) == len(set(volumes))
    assert mounted <= set(volumes)
    for item in containers:
        paths = [mount["mountPath"] for mount in item["volumeMounts"]]
        assert len(paths) == len(set(paths))
