"""Manifests that tests/golden does not cover: later attempts, and a volume that an earlier job left."""

import json
from typing import Any

import pytest

from finetune_api import names
from finetune_api.status import Resolved
from finetune_api.wire import RunConfig
from finetune_operator.defaults import OperatorDefaults, Proxy
from finetune_operator.manifests import Plan, build_children
from finetune_operator.observed import Manifest
from unit.operator.builders import IMAGE, KEY, UID, build_spec


def build(attempt: int = 1, **changes: Any) -> dict[str, Manifest]:
    """Return the children by kind."""
    values = {"namespace": KEY.namespace, "name": KEY.name, "uid": UID, "attempt": attempt, "image": IMAGE, **changes}
    plan = Plan(**{"nodes": changes["spec"].distributed.nodes, "restarts_left": 3, **values})
    return {manifest["kind"]: manifest for manifest in build_children(plan)}


def run_config(children: dict[str, Manifest]) -> RunConfig:
    content = json.loads(children["ConfigMap"]["data"][names.RUN_FILE_NAME])
    return RunConfig.model_validate(content, by_alias=True, by_name=False)


def test_pod_groups_can_be_turned_off_for_the_cluster() -> None:
    children = build(spec=build_spec(pod={"schedulerName": "volcano"}), nodes=2, defaults=OperatorDefaults(pod_groups=False))
    assert "PodGroup" not in children
    assert "scheduling.k8s.io/group-name" not in children["Job"]["spec"]["template"]["metadata"]["annotations"]


def test_a_job_that_may_run_on_fewer_nodes_is_placed_on_fewer() -> None:
    spec = build_spec(pod={"schedulerName": "volcano"}, distributed={"nodes": 4, "minNodes": 3})
    assert build(spec=spec)["PodGroup"]["spec"] == {"minMember": 3}


def test_pods_prefer_nodes_on_which_no_gpu_has_failed_and_keep_the_affinity_of_the_job() -> None:
    term = {"weight": 1, "preference": {"matchExpressions": [{"key": "pool", "operator": "Exists"}]}}
    affinity = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [term]}}
    template = build(spec=build_spec(pod={"affinity": affinity}), avoided_nodes=["node-1", "node-2"])["Job"]["spec"]["template"]
    # The API server takes one node per requirement.
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in ("node-1", "node-2")]
    assert template["spec"]["affinity"] == {
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [term, {"weight": 100, "preference": {"matchFields": fields}}]
        }
    }
    assert "affinity" not in build(spec=build_spec())["Job"]["spec"]["template"]["spec"]


def test_a_later_attempt_has_its_own_job_and_run_file_and_shares_the_rest() -> None:
    first, second = build(1, spec=build_spec()), build(2, spec=build_spec())
    assert [second[kind]["metadata"]["name"] for kind in ("Job", "ConfigMap")] == ["news-2", "news-2-11111111-1"]
    assert {kind for kind in first if first[kind] == second[kind]} == {"Service", "PersistentVolumeClaim"}
    template = second["Job"]["spec"]["template"]
    assert template["metadata"]["labels"][names.LABEL_ATTEMPT] == "2"
    environment = {item["name"]: item.get("value") for item in template["spec"]["containers"][0]["env"]}
    assert environment[names.ENV_RENDEZVOUS_HOST] == "news-2-0.news-gang.team.svc"


def test_the_run_file_contains_what_earlier_attempts_resolved() -> None:
    resolved = Resolved(model_revision="abc", dataset_revisions=["def"], image=IMAGE)
    assert run_config(build(2, spec=build_spec(), resolved=resolved)).resolved == resolved
    assert run_config(build(2, spec=build_spec(), resolved=resolved)).attempt == 2


def test_the_run_file_says_whether_an_earlier_job_left_the_volume() -> None:
    assert run_config(build(spec=build_spec(), adopted=True)).adopted
    assert not run_config(build(spec=build_spec())).adopted


def test_a_volume_is_deleted_with_its_job_only_if_the_spec_says_so() -> None:
    kept = build(spec=build_spec())["PersistentVolumeClaim"]["metadata"]
    deleted = build(spec=build_spec(output={"retention": {"whenDeleted": "Delete"}}))["PersistentVolumeClaim"]["metadata"]
    assert ("ownerReferences" in kept, deleted["ownerReferences"][0]["uid"]) == (False, UID)
    assert kept["annotations"] == deleted["annotations"]
    assert kept["annotations"][names.ANNOTATION_OWNER_UID] == UID


def test_labels_of_kueue_do_not_replace_labels_of_the_operator() -> None:
    labels = {names.LABEL_JOB: "another", names.LABEL_KUEUE_QUEUE: "gpus"}
    assert build(spec=build_spec(), kueue_labels=labels)["Job"]["metadata"]["labels"][names.LABEL_JOB] == "news"


def test_pods_never_start_with_the_run_file_of_an_earlier_job_of_the_same_name() -> None:
    """The old run file may await garbage collection when the Job is created, and the new one is created after the Job."""
    first, second = (build(spec=build_spec(), uid=f"{number}" * 36) for number in (1, 2))
    run_files = [children["ConfigMap"]["metadata"]["name"] for children in (first, second)]
    assert run_files[0] != run_files[1]
    for children, name in zip((first, second), run_files, strict=True):
        assert {"name": "config", "configMap": {"name": name}} in children["Job"]["spec"]["template"]["spec"]["volumes"]


@pytest.mark.parametrize("left", [0, 2])
def test_a_pod_gets_the_number_of_restarts_in_place_that_are_left(left: int) -> None:
    [container] = build(spec=build_spec(), restarts_left=left)["Job"]["spec"]["template"]["spec"]["containers"]
    assert {"name": names.ENV_RESTARTS_LEFT, "value": str(left)} in container["env"]


def test_a_pod_leaves_an_unreachable_node_sooner_than_a_node_that_is_not_ready() -> None:
    tolerations = build(spec=build_spec())["Job"]["spec"]["template"]["spec"]["tolerations"]
    seconds = {item["key"].rpartition("/")[2]: item["tolerationSeconds"] for item in tolerations}
    assert seconds == {"not-ready": 30, "unreachable": 5}


def test_only_the_pods_of_several_nodes_get_a_key_and_only_by_the_config_map() -> None:
    key = "0123456789abcdef"
    children = build(spec=build_spec(distributed={"nodes": 2}), rendezvous_key=key)
    assert children["ConfigMap"]["data"][names.RENDEZVOUS_KEY_FILE_NAME] == key
    assert key not in json.dumps(children["Job"])
    assert key not in children["ConfigMap"]["data"][names.RUN_FILE_NAME]
    alone = build(spec=build_spec(distributed={"nodes": 1}), rendezvous_key=key)
    assert key not in json.dumps(list(alone.values())), "a single pod makes its own"


def test_the_node_selector_of_the_site_takes_precedence() -> None:
    defaults = OperatorDefaults(node_selector={"pool": "team-a"})
    spec = build_spec(pod={"nodeSelector": {"pool": "team-b", "zone": "x"}})
    pod = build(spec=spec, defaults=defaults)["Job"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "team-a", "zone": "x"}


def test_a_proxy_with_a_password_comes_from_a_secret() -> None:
    proxy = Proxy(secret_name="proxy", https_proxy="http://unused")
    job = build(spec=build_spec(), defaults=OperatorDefaults(proxy=proxy))["Job"]
    [container] = job["spec"]["template"]["spec"]["containers"]
    found = {item["name"]: item for item in container["env"] if item["name"].endswith("_PROXY")}
    assert {name: item["valueFrom"]["secretKeyRef"] for name, item in found.items()} == {
        "HTTP_PROXY": {"name": "proxy", "key": "httpProxy", "optional": False},
        "HTTPS_PROXY": {"name": "proxy", "key": "httpsProxy", "optional": False},
        "NO_PROXY": {"name": "proxy", "key": "noProxy", "optional": True},
    }


@pytest.mark.parametrize(
    ("pod", "nodes", "api", "spec", "label", "annotation"),
    [
        ({"schedulerName": "volcano"}, 2, "scheduling.volcano.sh/v1beta1", {"minMember": 2}, None, "news-gang"),
        (
            {
                "schedulerName": "volcano",
                "priorityClassName": "low",
                "annotations": {"scheduling.volcano.sh/queue-name": "research"},
            },
            2,
            "scheduling.volcano.sh/v1beta1",
            {"minMember": 2, "queue": "research", "priorityClassName": "low"},
            None,
            "news-gang",
        ),
        (
            {"schedulerName": "scheduler-plugins-scheduler"},
            3,
            "scheduling.x-k8s.io/v1alpha1",
            {"minMember": 3},
            "news-gang",
            None,
        ),
        ({"schedulerName": "volcano"}, 1, None, None, None, None),
        ({"schedulerName": "default-scheduler"}, 2, None, None, None, None),
        ({}, 2, None, None, None, None),
    ],
)
def test_schedulers_with_pod_groups_get_theirs_for_several_pods(
    pod: dict[str, Any], nodes: int, api: str | None, spec: dict[str, Any] | None, label: str | None, annotation: str | None
) -> None:
    children = build(spec=build_spec(pod=pod, distributed={"nodes": nodes}), nodes=nodes)
    group = children.get("PodGroup", {})
    assert (group.get("apiVersion"), group.get("spec")) == (api, spec)
    metadata = children["Job"]["spec"]["template"]["metadata"]
    assert metadata["labels"].get("scheduling.x-k8s.io/pod-group") == label
    assert metadata["annotations"].get("scheduling.k8s.io/group-name") == annotation
    if group:
        assert [owner["uid"] for owner in group["metadata"]["ownerReferences"]] == [UID]


@pytest.mark.parametrize("pod", [{}, {"schedulerName": "default-scheduler", "priorityClassName": "low"}])
def test_pods_of_the_default_scheduler_get_a_pod_group_of_kubernetes_if_it_has_them(pod: dict[str, Any]) -> None:
    children = build(spec=build_spec(pod=pod), scheduling_groups=True)
    group = children["PodGroup"]
    assert (group["apiVersion"], group["spec"]) == (
        "scheduling.k8s.io/v1alpha2",
        {"schedulingPolicy": {"gang": {"minCount": 2}}},
    )
    assert group["metadata"]["name"] == "news-1-11111111-1"
    template = children["Job"]["spec"]["template"]
    assert template["spec"]["schedulingGroup"] == {"podGroupName": group["metadata"]["name"]}
    assert group["metadata"]["ownerReferences"] == children["ConfigMap"]["metadata"]["ownerReferences"]
    assert list(children).index("Job") < list(children).index("PodGroup") < list(children).index("ConfigMap")
    fewer = build_spec(distributed={"nodes": 4, "minNodes": 3})
    assert build(spec=fewer, scheduling_groups=True)["PodGroup"]["spec"]["schedulingPolicy"]["gang"] == {"minCount": 3}


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        ({}, {"scheduling_groups": False}),
        ({}, {"defaults": OperatorDefaults(pod_groups=False)}),
        ({"distributed": {"nodes": 1}}, {}),
        ({"distributed": {"nodes": 2, "gangScheduling": "None"}}, {}),
        ({"distributed": {"nodes": 2, "gangScheduling": "None"}, "pod": {"schedulerName": "volcano"}}, {}),
    ],
)
def test_other_pods_get_no_pod_group(spec: dict[str, Any], changes: dict[str, Any]) -> None:
    children = build(spec=build_spec(**spec), **{"scheduling_groups": True, **changes})
    template = children["Job"]["spec"]["template"]
    assert ("PodGroup" in children, "schedulingGroup" in template["spec"]) == (False, False)
    assert "scheduling.k8s.io/group-name" not in template["metadata"]["annotations"]


def test_the_pods_do_not_read_how_they_are_placed() -> None:
    spec = build_spec(distributed={"nodes": 2, "gangScheduling": "None"})
    assert "gangScheduling" not in build(spec=spec)["ConfigMap"]["data"][names.RUN_FILE_NAME]


def pod_of(spec: dict[str, Any], **changes: Any) -> Manifest:
    template: Manifest = build(spec=build_spec(**spec), **changes)["Job"]["spec"]["template"]["spec"]
    return template


def test_gpus_of_a_resource_claim_are_not_requested_a_second_time_and_the_pods_do_not_read_its_name() -> None:
    distributed = {"gpusPerNode": 8, "gpuResourceName": "amd.com/gpu"}
    [container] = pod_of({"distributed": distributed})["containers"]
    assert container["resources"]["limits"] == {"amd.com/gpu": 8}
    spec = {
        "distributed": {**distributed, "gpuResourceClaim": "gpus"},
        "pod": {"resourceClaims": [{"name": "gpus", "resourceClaimTemplateName": "eight"}]},
    }
    [container] = pod_of(spec)["containers"]
    assert "amd.com/gpu" not in str(container)
    assert container["resources"]["claims"] == [{"name": "gpus"}]
    config = run_config(build(spec=build_spec(**spec)))
    assert (config.spec.distributed.gpus_per_node, config.spec.distributed.gpu_resource_claim) == (8, None)


def test_init_containers_reach_the_network_as_the_trainer_does_unless_the_job_says_otherwise() -> None:
    defaults = OperatorDefaults(proxy=Proxy(http_proxy="http://site", https_proxy="http://site"), ca_bundle="PEM")
    variables = [{"name": "HTTP_PROXY", "value": "http://own"}, {"name": "HOME", "value": "/data"}]
    [container] = pod_of({"pod": {"initContainers": [{"name": "a", "env": variables}]}}, defaults=defaults)["initContainers"]
    values = {item["name"]: item["value"] for item in container["env"]}
    assert len(values) == len(container["env"])
    assert (values["HOME"], values["HTTP_PROXY"], values["HTTPS_PROXY"]) == ("/data", "http://own", "http://site")
    [certificates, scratch] = container["volumeMounts"]
    assert (values["SSL_CERT_FILE"], scratch["mountPath"]) == (certificates["mountPath"], "/tmp")


def test_a_directory_of_the_job_replaces_an_init_container_s_own_tmp() -> None:
    volume = {"name": "tmp", "emptyDir": {}}
    container = {"name": "a", "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}]}
    [built] = pod_of({"pod": {"volumes": [volume], "initContainers": [container]}})["initContainers"]
    assert [(mount["name"], mount["readOnly"]) for mount in built["volumeMounts"]] == [("extra-0", False)]


def test_a_claim_that_the_training_uses_too_has_one_volume_in_the_pod() -> None:
    volume = {"name": "output", "claim": {"claimName": "mine", "path": "run"}, "readOnly": False}
    sidecar = {"name": "a", "restartPolicy": "Always", "volumeMounts": [{"name": "output", "mountPath": "/out"}]}
    pod = pod_of({"output": {"claim": {"claimName": "mine"}}, "pod": {"volumes": [volume], "initContainers": [sidecar]}})
    assert [item["name"] for item in pod["volumes"] if item.get("persistentVolumeClaim") == {"claimName": "mine"}] == ["output"]
    mount = pod["initContainers"][0]["volumeMounts"][0]
    assert mount == {"name": "output", "mountPath": "/out", "readOnly": False, "subPath": "run"}
