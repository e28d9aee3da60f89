"""The admission policy on an API server: each message says what to write, and where the limit is set."""

import copy
import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from chart.rendering import CHART, helm, installed, only
from cluster.kube import Namespace, Object, kubectl

CRD = "finetunejobs.finetune.dev"
VALUES = (
    "policy.enabled=true",
    "policy.maxGPUsPerJob=8",
    "policy.allowedImages={registry.example.com/ml,ghcr.io/team/trainer:1}",
    "policy.allowedResources={rdma/*}",
    "policy.allowedPriorityClasses={batch-*}",
    "policy.allowedTolerationKeys={nvidia.com/gpu}",
    "policy.allowedNodeSelectorKeys={pool}",
    "policy.allowedAnnotationKeys={team.example.com/*}",
    "policy.allowedSchedulers={volcano}",
    "policy.allowedRuntimeClasses={nvidia}",
    "policy.allowedHubEndpoints={https://hub.example.com}",
    "policy.allowedVisibilities={Private}",
    "policy.allowedClaims={team-*}",
    "policy.allowedServiceAccounts={train-*}",
    "policy.allowedVolumeTypes={claim,configMap,csi,emptyDir,image,projected}",
    "policy.allowInitContainers=true",
    "trainerImage.repository=example.com/site-trainer,trainerImage.tag=v2",
)
# The API server usually needs a second or two to compile a new policy.
ACTIVE_SECONDS = 60
on_a_cluster = pytest.mark.skipif(not os.environ.get("KUBECONFIG"), reason="needs a cluster: set KUBECONFIG")


def job(name: str = "news", **spec: Any) -> Object:
    """Return a valid FineTuneJob."""
    content = {
        "task": "text-classification",
        "model": {"hub": {"name": "example/model"}},
        "datasets": [{"hub": {"name": "example/data"}}],
        **copy.deepcopy(spec),
    }
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}, "spec": content}


def rejection(namespace: Namespace, manifest: Object) -> str:
    """Create or change an object as a dry run. Return the API server's error, or an empty string if it accepts the object."""
    done = namespace.kubectl("apply", "--dry-run=server", "--filename", "-", stdin=json.dumps(manifest), check=False)
    return done.stderr if done.returncode else ""


def image(name: str) -> Object:
    return job(pod={"image": name})


def gpus(nodes: int, per_node: int) -> Object:
    return job(distributed={"nodes": nodes, "gpusPerNode": per_node})


def make_namespace(name: str, annotations: dict[str, str] | None = None) -> Namespace:
    namespace = Namespace(name)
    metadata = {"name": name, "annotations": annotations or {}}
    namespace.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    return namespace


class Environment:
    """Three namespaces with the policy: one without annotations, one with other limits, one with an invalid annotation."""

    def __init__(self, run: str) -> None:
        allowed = {
            "finetune.dev/max-gpus-per-job": "16",
            "finetune.dev/allowed-images": "registry.internal, other.example.com/, example.org/x",
        }
        self.plain = make_namespace(f"chart-{run}-plain")
        self.annotated = make_namespace(f"chart-{run}-annotated", allowed)
        self.broken = make_namespace(f"chart-{run}-broken", {"finetune.dev/max-gpus-per-job": "eight"})
        self.namespaces = (self.plain, self.annotated, self.broken)

    def apply(self, run: str) -> None:
        """Install the policy and wait until it is in force."""
        names = ",".join(namespace.name for namespace in self.namespaces)
        values = [f"--set={value}" for value in (*VALUES, f"watchNamespaces={{{names}}}")]
        options = ("--namespace", self.plain.name, "--show-only", "templates/policy.yaml", *values)
        text = helm("template", run, str(CHART), *options).stdout
        self.objects = [document for document in yaml.safe_load_all(text) if document]
        kubectl("apply", "--filename", "-", stdin=text)
        end = time.monotonic() + ACTIVE_SECONDS
        while not rejection(self.plain, image("elsewhere.example.com/x")):
            assert time.monotonic() < end, "the policy is not in force"
            time.sleep(0.5)

    def remove(self) -> None:
        for document in getattr(self, "objects", ()):
            kubectl("delete", document["kind"], document["metadata"]["name"], "--ignore-not-found", check=False)
        for namespace in self.namespaces:
            kubectl("delete", "namespace", namespace.name, "--wait=false", check=False)


@pytest.fixture(scope="module")
def environment(custom_resource_definition: None) -> Iterator[Environment]:
    run = secrets.token_hex(3)
    environment = Environment(run)
    try:
        # This job exists before the policy and breaks each of its rules.
        pod = {"image": "elsewhere.example.com/x", "env": [{"name": "OPENSSL_CONF", "value": "/mnt/x"}], "priorityClassName": "x"}
        old = {"pod": pod, "distributed": {"nodes": 4, "gpusPerNode": 8}}
        environment.plain.apply(job("old", model={"hub": {"name": "example/model"}, "trustRemoteCode": True}, **old))
        environment.apply(f"policy-{run}")
        yield environment
    finally:
        environment.remove()


@on_a_cluster
def test_the_api_server_finds_no_type_error_in_the_rules(environment: Environment) -> None:
    name = only(environment.objects, "ValidatingAdmissionPolicy")["metadata"]["name"]
    end = time.monotonic() + ACTIVE_SECONDS
    while not (status := json.loads(kubectl("get", "validatingadmissionpolicy", name, "-o", "json").stdout).get("status")):
        assert time.monotonic() < end, "the API server has not checked the types of the rules"
        time.sleep(0.5)
    assert status["typeChecking"] == {}


@on_a_cluster
@pytest.mark.parametrize(
    "manifest",
    [
        job(),
        image("registry.example.com/ml"),
        image("registry.example.com/ml/trainer:1"),
        image("registry.example.com/ml:2"),
        image("registry.example.com/ml@sha256:" + 64 * "0"),
        image("ghcr.io/team/trainer:1@sha256:" + 64 * "0"),
        image("example.com/site-trainer:v2"),
        gpus(1, 8),
        gpus(8, 1),
        gpus(1000, 0),
        job(pod={"resources": {"limits": {"memory": "8Gi", "ephemeral-storage": "1Gi", "rdma/hca": 1}}}),
        job(model={"hub": {"name": "example/model"}, "trustRemoteCode": False}),
        job(
            model={"claim": {"claimName": "team-models"}},
            datasets=[{"claim": {"claimName": "team-data"}}, {"hub": {"name": "example/data"}}],
            output={"claim": {"claimName": "team-output"}},
            cache={"claimName": "team-cache"},
            hub={"endpoint": "https://hub.example.com"},
            publish={"repository": "team/news", "visibility": "Private"},
            pod={
                "env": [{"name": "WANDB_PROJECT", "value": "x"}, {"name": "NCCL_IB_HCA", "value": "mlx5"}],
                "priorityClassName": "batch-low",
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
                "nodeSelector": {"pool": "a"},
                "annotations": {"team.example.com/cost-center": "7"},
                "schedulerName": "volcano",
                "runtimeClassName": "nvidia",
                "volumes": [
                    {"mountPath": "/mnt/x", "claim": {"claimName": "team-x"}},
                    {"mountPath": "/mnt/y", "emptyDir": {}},
                    {"mountPath": "/mnt/z", "image": {"reference": "registry.example.com/ml/words:1"}},
                ],
                "serviceAccountName": "train-a",
                "initContainers": [{"name": "a", "image": "registry.example.com/ml:2", "resources": {"limits": {"cpu": 1}}}],
            },
        ),
    ],
)
def test_an_allowed_job_is_accepted(environment: Environment, manifest: Object) -> None:
    assert rejection(environment.plain, manifest) == ""


@on_a_cluster
@pytest.mark.parametrize(
    "name",
    [
        "registry.example.com/mlevil/x",
        "registry.example.com",
        "evil.com/registry.example.com/ml",
        "ghcr.io/team/trainer:10",
    ],
)
def test_another_image_is_refused(environment: Environment, name: str) -> None:
    message = rejection(environment.plain, image(name))
    assert f"spec.pod: the image {name} is not allowed here; remove it to use the default image, or write one" in message
    assert (
        "registry.example.com/ml, ghcr.io/team/trainer:1, example.com/site-trainer:v2. The limit is policy.allowedImages"
        in message
    )
    assert f"in namespace {environment.plain.name}" in message


@on_a_cluster
def test_more_gpus_are_refused(environment: Environment) -> None:
    message = rejection(environment.plain, gpus(2, 8))
    assert "nodes × gpusPerNode = 2 × 8 = 16 GPUs, and a job may have 8 here; write fewer nodes or gpusPerNode" in message
    assert "The limit is policy.maxGPUsPerJob of the Helm release" in message


@on_a_cluster
@pytest.mark.parametrize(
    "resource",
    [
        "nvidia.com/gpu",
        "nvidia.com/mig-1g.5gb",
        "amd.com/gpu",
        "google.com/tpu",
        "aws.amazon.com/neuroncore",
        "huawei.com/Ascend910",
        "volcano.sh/vgpu-number",
        "intel.com/gaudi",
    ],
)
def test_gpus_that_are_not_counted_are_refused(environment: Environment, resource: str) -> None:
    message = rejection(environment.plain, job(pod={"resources": {"limits": {resource: 8, "memory": "1Gi"}}}))
    assert f"spec.pod.resources: {resource} is not allowed here" in message
    assert "write spec.distributed.gpusPerNode" in message


CLAIM = {"claim": {"claimName": "other"}}
# Each breaks one rule. The beginning of the message, and the value that sets the limit.
REFUSED = [
    ({"pod": {"env": [{"name": name, "value": "/mnt/x"}]}}, f"spec.pod.env: {name} is", "allowedEnvironment")
    for name in (
        *("OPENSSL_CONF", "GCONV_PATH", "CC", "BASH_ENV", "NCCL_NET_PLUGIN", "NCCL_PROFILER_PLUGIN", "CUDA_INJECTION64_PATH"),
        *("OMP_TOOL_LIBRARIES", "HF_MODULES_CACHE", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TRITON_CACHE_DIR"),
        *("TORCHINDUCTOR_CACHE_DIR", "WANDB__EXECUTABLE", "MATPLOTLIBRC", "GIT_SSH_COMMAND"),
    )
] + [
    ({"pod": {"priorityClassName": "high"}}, "spec.pod.priorityClassName: high is", "allowedPriorityClasses"),
    ({"pod": {"tolerations": [{"operator": "Exists"}]}}, "tolerations: a toleration without a key is", "allowedTolerationKeys"),
    ({"pod": {"tolerations": [{"key": "control"}]}}, "spec.pod.tolerations: control is", "allowedTolerationKeys"),
    ({"pod": {"nodeSelector": {"zone": "a"}}}, "spec.pod.nodeSelector: zone is", "allowedNodeSelectorKeys"),
    ({"pod": {"affinity": {"nodeAffinity": {}}}}, "affinity, which selects nodes by any label, is", "allowedNodeSelectorKeys"),
    ({"pod": {"annotations": {"inject": "x"}}}, "spec.pod.annotations: inject is", "allowedAnnotationKeys"),
    ({"pod": {"schedulerName": "mine"}}, "spec.pod.schedulerName: mine is", "allowedSchedulers"),
    ({"pod": {"runtimeClassName": "mine"}}, "spec.pod.runtimeClassName: mine is", "allowedRuntimeClasses"),
    ({"hub": {"endpoint": "https://other.com"}}, "spec.hub.endpoint: https://other.com is", "allowedHubEndpoints"),
    ({"publish": {"repository": "a/b", "visibility": "Public"}}, "spec.publish.visibility: Public is", "allowedVisibilities"),
    ({"model": CLAIM}, "claimName: other is", "allowedClaims"),
    ({"datasets": [CLAIM]}, "claimName: other is", "allowedClaims"),
    ({"output": CLAIM}, "claimName: other is", "allowedClaims"),
    ({"cache": {"claimName": "other"}}, "claimName: other is", "allowedClaims"),
    ({"pod": {"volumes": [{"mountPath": "/mnt/x", **CLAIM}]}}, "claimName: other is", "allowedClaims"),
    ({"pod": {"serviceAccountName": "admin"}}, "spec.pod.serviceAccountName: admin is", "allowedServiceAccounts"),
    ({"pod": {"volumes": [{"mountPath": "/mnt/x", "secret": {"name": "a"}}]}}, "volumes: secret is", "allowedVolumeTypes"),
    (
        {"pod": {"volumes": [{"mountPath": "/mnt/x", "projected": {"sources": [{"secret": {"name": "a"}}]}}]}},
        "spec.pod.volumes: secret is",
        "allowedVolumeTypes",
    ),
]  # fmt: skip


@on_a_cluster
def test_what_is_not_in_a_list_is_refused_and_the_message_names_the_list(environment: Environment) -> None:
    for spec, message, value in REFUSED:
        refused = rejection(environment.plain, job(**spec))
        assert f"{message} not allowed here; remove it, or write one of: " in refused, spec
        assert f"The limit is policy.{value} of the Helm release" in refused, spec


TOKEN = {"sources": [{"serviceAccountToken": {"audience": "vault", "path": "token"}}]}
# What the policy refuses unless its values allow it. The limit is in the message.
CLOSED = [
    (
        {"resourceClaims": [{"name": "a", "resourceClaimTemplateName": "b"}]},
        "resourceClaims: b is not allowed here; remove it. ",
        "allowedResourceClaims",
    ),
    (
        {"volumes": [{"mountPath": "/mnt/x", "csi": {"driver": "d.io"}}]},
        "csi.driver: d.io is not allowed here; remove it. ",
        "allowedCSIDrivers",
    ),
    (
        {"automountServiceAccountToken": True},
        "a token of a ServiceAccount may not be mounted here; remove",
        "allowServiceAccountTokens",
    ),
    (
        {"volumes": [{"mountPath": "/mnt/x", "projected": TOKEN}]},
        "a token of a ServiceAccount may not be mounted here",
        "allowServiceAccountTokens",
    ),
]


@on_a_cluster
@pytest.mark.parametrize(("pod", "message", "value"), CLOSED)
def test_what_reaches_further_is_refused_unless_it_is_allowed(
    environment: Environment, pod: Object, message: str, value: str
) -> None:
    refused = rejection(environment.plain, job(pod=pod))
    assert message in refused
    assert f"The limit is policy.{value} of the Helm release" in refused


@on_a_cluster
@pytest.mark.parametrize(
    "pod",
    [
        {"initContainers": [{"name": "a", "image": "evil.com/x"}]},
        {"volumes": [{"mountPath": "/mnt/x", "image": {"reference": "evil.com/x"}}]},
    ],
)
def test_images_of_other_containers_and_volumes_are_limited_as_the_trainer_s(environment: Environment, pod: Object) -> None:
    assert "spec.pod: the image evil.com/x is not allowed here" in rejection(environment.plain, job(pod=pod))


@on_a_cluster
def test_gpus_of_init_containers_are_refused(environment: Environment) -> None:
    container = {"name": "a", "resources": {"limits": {"nvidia.com/gpu": 8}}}
    assert "spec.pod.resources: nvidia.com/gpu is not allowed" in rejection(
        environment.plain, job(pod={"initContainers": [container]})
    )


def test_init_containers_are_refused_unless_the_values_allow_them() -> None:
    def rules(*values: str) -> str:
        options = [f"--set={value}" for value in ("policy.enabled=true", *values)]
        return helm("template", "x", str(CHART), "--show-only", "templates/policy.yaml", *options).stdout

    assert "The limit is policy.allowInitContainers" in rules()
    assert "newContainers" not in rules("policy.allowInitContainers=true")


@on_a_cluster
def test_classes_of_the_cluster_s_own_pods_are_always_refused(environment: Environment) -> None:
    refused = rejection(environment.plain, job(pod={"priorityClassName": "system-node-critical"}))
    assert "the classes system-* are for the cluster's own pods" in refused


@on_a_cluster
@pytest.mark.parametrize(("name", "allowed"), [("batch-low", True), ("high", False)])
def test_a_priority_class_of_kueue_is_limited_as_one_of_kubernetes(environment: Environment, name: str, allowed: bool) -> None:
    manifest = job()
    manifest["metadata"]["labels"] = {"kueue.x-k8s.io/priority-class": name}
    refused = rejection(environment.plain, manifest)
    assert (refused == "") == allowed
    assert allowed or f"{name} is not allowed here" in refused


@on_a_cluster
def test_remote_code_is_refused(environment: Environment) -> None:
    message = rejection(environment.plain, job(model={"hub": {"name": "example/model"}, "trustRemoteCode": True}))
    assert "spec.model.trustRemoteCode: code of a model's repository may not run here; remove it" in message
    assert "The limit is policy.allowTrustRemoteCode of the Helm release" in message


@on_a_cluster
def test_an_annotation_of_the_namespace_overrides_the_limit_of_the_values(environment: Environment) -> None:
    assert rejection(environment.annotated, gpus(2, 8)) == ""
    assert rejection(environment.annotated, image("other.example.com/any")) == ""
    assert rejection(environment.annotated, image("example.org/x:1")) == ""
    assert rejection(environment.annotated, image("registry.internal/ml/x:1")) == ""
    assert "is not allowed here" in rejection(environment.annotated, image("registry.internal:5000/evil")), "another registry"
    owner = f"the annotation finetune.dev/max-gpus-per-job of the namespace {environment.annotated.name}"
    assert f"3 × 8 = 24 GPUs, and a job may have 16 here; write fewer nodes or gpusPerNode. The limit is {owner}" in rejection(
        environment.annotated, gpus(3, 8)
    )
    owner = f"the annotation finetune.dev/allowed-images of the namespace {environment.annotated.name}"
    assert (
        f"one of these or one below them: registry.internal, other.example.com/, example.org/x. The limit is {owner}"
        in rejection(environment.annotated, image("registry.example.com/ml"))
    )


@on_a_cluster
def test_an_annotation_that_is_not_a_number_is_named_in_the_message(environment: Environment) -> None:
    message = rejection(environment.broken, gpus(1, 1))
    assert (
        f'finetune.dev/max-gpus-per-job of the namespace {environment.broken.name} is "eight", which is not a whole number'
        in message
    )
    assert 'to write one, for example "8", or to remove it' in message
    assert rejection(environment.broken, gpus(4, 0)) == "", "a job without GPUs needs no limit"


@on_a_cluster
def test_other_fields_of_a_job_from_before_the_rules_can_still_be_changed(environment: Environment) -> None:
    def patched(spec: Object) -> subprocess.CompletedProcess[str]:
        options = ("--type=merge", "--patch", json.dumps({"spec": spec}), "--dry-run=server")
        return environment.plain.kubectl("patch", "finetunejob", "old", *options, check=False)

    assert patched({"suspend": True}).returncode == 0
    assert patched({"distributed": {"nodes": 2}}).returncode == 0, "fewer GPUs than before"
    assert "40 GPUs" in patched({"distributed": {"nodes": 5}}).stderr
    assert "spec.pod: the image elsewhere" in patched({"pod": {"image": "elsewhere.example.com/y"}}).stderr


def policy(*values: str) -> list[Object]:
    return installed("--set=policy.enabled=true", *(f"--set={value}" for value in values))


def test_there_is_no_policy_by_default() -> None:
    assert not [document for document in installed() if document["kind"].startswith("ValidatingAdmission")]
    assert "matchResources" not in only(policy(), "ValidatingAdmissionPolicyBinding")["spec"]


def test_the_rules_apply_in_the_watched_and_selected_namespaces() -> None:
    values = ("watchNamespaces={team-a}", "policy.namespaceSelector.matchLabels.tier=prod", "policy.actions={Warn,Audit}")
    spec = only(policy(*values), "ValidatingAdmissionPolicyBinding")["spec"]
    assert spec["validationActions"] == ["Warn", "Audit"]
    assert spec["matchResources"]["namespaceSelector"] == {
        "matchLabels": {"tier": "prod"},
        "matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["team-a"]}],
    }


def test_remote_code_is_a_rule_only_where_it_is_not_allowed() -> None:
    def rules(*values: str) -> int:
        return len(only(policy(*values), "ValidatingAdmissionPolicy")["spec"]["validations"])

    assert rules("policy.allowTrustRemoteCode=true") == rules() - 1
