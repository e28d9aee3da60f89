"""A release on a real cluster: install, upgrade, uninstall and a second install do not disturb the jobs."""

import contextlib
import dataclasses
import http.client
import json
import os
import pathlib
import re
import secrets
import ssl
import subprocess
from collections.abc import Iterator

import pytest

from chart.rendering import CHART, helm
from cluster.kube import Namespace, Object, kubectl
from finetune_api import names

RELEASE = "finetune-operator"
CRD = "finetunejobs.finetune.dev"
DEPLOYMENT = f"deployment/{RELEASE}"
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not os.environ.get("KUBECONFIG"), reason="needs a cluster that has both images: set KUBECONFIG"),
]


@dataclasses.dataclass(frozen=True)
class Release:
    """The chart in one namespace, with an operator that watches another. Both enforce Pod Security "restricted"."""

    system: Namespace
    jobs: Namespace
    values: tuple[str, ...]

    def helm(self, command: str, *arguments: str) -> str:
        chart = (str(CHART), "--wait", "--timeout=120s", *self.values) if command in ("install", "upgrade") else ()
        return helm(command, RELEASE, *chart, "--namespace", self.system.name, *arguments).stdout

    def replicas(self) -> list[Object]:
        return self.system.objects("pods", f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/name=finetune-operator")

    def leader(self) -> str:
        lease = self.system.get("lease", RELEASE)
        return str(lease["spec"].get("holderIdentity") or "") if lease else ""


def make_namespace(name: str) -> Namespace:
    namespace = Namespace(name)
    # warn: the API server also warns about a Deployment whose pods would not pass.
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    namespace.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    namespace.wait_for("its service account", lambda: namespace.get("serviceaccount", "default"), 30)
    return namespace


@pytest.fixture(scope="module")
def release(without_crd: None) -> Iterator[Release]:
    run = secrets.token_hex(3)
    system, jobs = make_namespace(f"chart-{run}-system"), make_namespace(f"chart-{run}-jobs")
    images = {
        "image": os.environ.get("OPERATOR_IMAGE", "localhost/finetune-operator:dev"),
        "trainerImage": os.environ.get("TRAINER_IMAGE", "localhost/finetune-trainer:dev"),
    }
    brought_crd = not kubectl("get", "crd", CRD, "--ignore-not-found").stdout.strip()
    values = [f"watchNamespaces={{{jobs.name}}}", "replicas=2", "policy.enabled=true", f"crds.enabled={str(brought_crd).lower()}"]
    values += ["networkPolicy.enabled=true", "site.networkPolicy.enabled=true", "test.resources.requests.cpu=100m"]
    values += ["metrics.secure=true", "metrics.readers[0].kind=ServiceAccount", "metrics.readers[0].name=reader"]
    values += [f"metrics.readers[0].namespace={jobs.name}"]
    for key, image in images.items():
        repository, _, tag = image.rpartition(":")
        values += [f"{key}.repository={repository}", f"{key}.tag={tag}"]
    release = Release(system, jobs, tuple(f"--set={value}" for value in values))
    try:
        release.helm("install")
        yield release
    finally:
        helm("uninstall", RELEASE, "--namespace", system.name, "--ignore-not-found", "--wait", check=False)
        for namespace in (jobs, system):
            kubectl("delete", "namespace", namespace.name, "--wait=false", check=False)
        if brought_crd:
            kubectl("delete", "crd", CRD, "--ignore-not-found", "--timeout=60s", check=False)


@pytest.fixture(scope="module")
def waiting(release: Release) -> Object:
    """Return the Job of a FineTuneJob whose pod waits for a node that does not exist. No Helm command may change it."""
    spec = {
        "task": "text-classification",
        "model": {"hub": {"name": "example/model"}},
        "datasets": [{"hub": {"name": "example/data"}}],
        "pod": {"nodeSelector": {"example.com/there-is": "none"}},
    }
    job = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "waiting"}, "spec": spec}
    release.jobs.apply(job)
    found: Object = release.jobs.wait_for("its Job", lambda: release.jobs.get("job", "waiting-1"), 60, "waiting")
    release.jobs.wait_for("its pod", lambda: release.jobs.pods("waiting"), 30, "waiting")
    return found


def identities(release: Release) -> set[tuple[str, str]]:
    """Return kind and uid of the children of the FineTuneJob."""
    children = release.jobs.objects("jobs,pods,services,configmaps,persistentvolumeclaims", "finetune.dev/finetunejob=waiting")
    return {(child["kind"], child["metadata"]["uid"]) for child in children}


def test_both_replicas_are_ready_and_one_of_them_acts(release: Release) -> None:
    pods = {pod["metadata"]["name"] for pod in release.replicas()}
    assert len(pods) == 2
    leader = release.system.wait_for("a leader", release.leader, 30)
    assert any(pod in leader for pod in pods)


@contextlib.contextmanager
def forwarded(namespace: Namespace, target: str, port: int) -> Iterator[int]:
    """Yield a local port from which kubectl forwards connections to a port of a pod."""
    command = ["kubectl", "--namespace", namespace.name, "port-forward", target, f":{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.match(r"Forwarding from 127\.0\.0\.1:(\d+)", line)
            assert found, line
            yield int(found[1])
        finally:
            process.kill()


def scrape(port: int, path: str, token: str | None = None, tls: bool = True) -> tuple[int, str]:
    """Return status and text of a response of 127.0.0.1. The certificate is self-signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = (
        http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
        if tls
        else http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    )
    with contextlib.closing(connection):
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        response = connection.getresponse()
        return response.status, response.read().decode()


def test_metrics_are_for_those_whom_rbac_allows_them(release: Release) -> None:
    release.jobs.kubectl("create", "serviceaccount", "reader")
    tokens = {name: release.jobs.kubectl("create", "token", name).stdout.strip() for name in ("reader", "default")}
    pod = f"pod/{release.replicas()[0]['metadata']['name']}"
    with forwarded(release.system, pod, names.PORT_OPERATOR_METRICS) as port:
        code, text = scrape(port, "/metrics", tokens["reader"])
        assert (code, "finetune_operator_leader" in text) == (200, True)
        refused = f"system:serviceaccount:{release.jobs.name}:default may not get /metrics"
        code, text = scrape(port, "/metrics", tokens["default"])
        assert (code, refused in text) == (403, True), text
        assert scrape(port, "/metrics", "made-up") == (401, "the API server does not accept the token")
        assert scrape(port, "/metrics")[0] == 401
    with forwarded(release.system, pod, names.PORT_OPERATOR) as port:
        assert scrape(port, "/healthz", tls=False) == (200, "ok")
        assert scrape(port, "/metrics", tls=False)[0] == 404


def test_helm_test_trains_a_tiny_model_and_deletes_its_objects(release: Release) -> None:
    said = release.helm("test", "--logs", "--timeout=300s")
    assert "FineTuneJob: Succeeded" in said
    assert "the operator trained a tiny model in" in said
    # Which of the three depends on the cluster's network plugin, and its speed.
    assert "connect to training pods" in said
    assert release.jobs.objects("finetunejobs,persistentvolumeclaims,pods", "finetune.dev/smoke-test") == []
    test = "app.kubernetes.io/name=finetune-operator-test"
    assert release.jobs.objects("roles,rolebindings", test) == []
    assert release.system.objects("pods,serviceaccounts", test) == []


def test_an_upgrade_has_no_conflicts_and_leaves_jobs_alone(release: Release, waiting: Object) -> None:
    before, pods = identities(release), {pod["metadata"]["uid"] for pod in release.replicas()}
    release.helm("upgrade", "--set=site.cacheClaim=cache", "--set=podLabels.round=two")
    after = {pod["metadata"]["uid"] for pod in release.replicas() if "deletionTimestamp" not in pod["metadata"]}
    assert not pods & after, "a change of the defaults starts new pods"
    assert identities(release) == before


def test_the_operator_never_writes_to_an_object_of_the_chart(release: Release) -> None:
    kinds = "deployments,configmaps,serviceaccounts,roles,rolebindings,networkpolicies,poddisruptionbudgets"
    for document in release.system.objects(kinds, "app.kubernetes.io/managed-by=Helm"):
        found = release.system.kubectl(
            "get", document["kind"], document["metadata"]["name"], "--output", "json", "--show-managed-fields"
        )
        managers = {entry["manager"] for entry in json.loads(found.stdout)["metadata"]["managedFields"]}
        assert managers <= {"helm", "kube-controller-manager"}, document["metadata"]["name"]


def test_an_uninstall_leaves_jobs_and_a_new_install_takes_them_up(release: Release, waiting: Object) -> None:
    before = identities(release)
    release.helm("uninstall", "--wait")
    assert kubectl("get", "crd", CRD).returncode == 0
    assert release.jobs.get("finetunejob", "waiting") is not None
    assert identities(release) == before
    release.helm("install")
    release.system.wait_for("a leader", release.leader, 30)
    # The new operator handles the job: after a suspension it deletes the pod.
    release.jobs.kubectl("patch", "finetunejob", "waiting", "--type=merge", "--patch", '{"spec":{"suspend":true}}')
    release.jobs.wait_for("its pod to go", lambda: not release.jobs.pods("waiting"), 60, "waiting")
    assert release.jobs.status("waiting")["phase"] == "Suspended"


@pytest.mark.parametrize(("role", "verbs"), [("view", {"get", "list"}), ("edit", {"get", "list", "create", "patch", "delete"})])
def test_users_have_rights_by_the_roles_of_the_cluster(release: Release, role: str, verbs: set[str]) -> None:
    release.jobs.kubectl("create", "rolebinding", role, f"--clusterrole={role}", f"--user=chart-{role}")

    def may(verb: str) -> bool:
        said = release.jobs.kubectl("auth", "can-i", verb, "finetunejobs.finetune.dev", f"--as=chart-{role}", check=False)
        return said.stdout.strip() == "yes"

    assert {verb for verb in ("get", "list", "create", "patch", "delete") if may(verb)} == verbs


def test_everything_passes_the_api_server_s_own_checks(release: Release, tmp_path: pathlib.Path) -> None:
    """Apply the chart with the opposite of each toggle as a dry run, in a namespace that enforces "restricted"."""
    values = ("watchNamespaces=null", "replicas=1", "policy.namespaceSelector.matchLabels.a=b", "userRoles.enabled=true")
    options = [*release.values, *(f"--set={value}" for value in values), "--set=crds.enabled=true"]
    rendered = tmp_path / "all.yaml"
    rendered.write_text(
        helm("template", "other", str(CHART), "--namespace", release.system.name, "--no-hooks", *options).stdout, encoding="utf-8"
    )
    done = release.system.kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--filename", str(rendered))
    assert "Warning" not in done.stderr
