"""The real API server gets random and hostile specs, in a namespace that enforces Pod Security "restricted"."""

import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from cluster.kube import Namespace, Object, kubectl
from faults.environment import Environment
from finetune_operator.defaults import OperatorDefaults
from unit.operator.hostile import hostile_specs
from unit.operator.random_specs import specs
from unit.operator.test_pod_security import DEFAULTS, children_of, template_of

pytestmark = pytest.mark.cluster
PODS = 20  # for each of two sets of operator defaults
GENERATE = settings(
    max_examples=PODS, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)


@pytest.fixture
def namespace(custom_resource_definition: None) -> Iterator[Namespace]:
    name = f"faults-{secrets.token_hex(4)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    created = Namespace(name)
    kubectl(
        "create",
        "-f",
        "-",
        stdin=json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
    )
    try:
        created.wait_for("the default service account", lambda: created.get("serviceaccount", "default"), 30)
        yield created
    finally:
        kubectl("delete", "namespace", name, "--wait=false")


def random_templates(defaults: OperatorDefaults) -> list[Object]:
    found: list[Object] = []

    @GENERATE
    @given(spec=specs())
    def draw(spec: dict[str, Any]) -> None:
        pod = spec.get("pod", {})
        for field in ("priorityClassName", "runtimeClassName", "serviceAccountName"):
            pod.pop(field, None)  # a random name does not exist in the cluster
        found.append(template_of(children_of(spec, defaults)))

    draw()
    return found


def test_the_namespace_admits_the_pods_of_random_specs(namespace: Namespace) -> None:
    templates = [template for defaults in (OperatorDefaults(), DEFAULTS) for template in random_templates(defaults)]
    items = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**template["metadata"], "name": f"pod-{index}"},
            "spec": template["spec"],
        }
        for index, template in enumerate(templates)
    ]
    stdin = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    done = namespace.kubectl("create", "--dry-run=server", "--filename=-", "--output=name", stdin=stdin, check=False)
    print(f"{len(done.stdout.split())} of {len(items)} pods admitted")
    assert done.stderr == ""
    assert len(done.stdout.split()) == len(items) >= 2 * PODS


def test_the_namespace_rejects_a_pod_that_is_not_restricted(namespace: Namespace) -> None:
    [template] = [
        template_of(
            children_of(
                {"task": "text-classification", "model": {"hub": {"name": "a/b"}}, "datasets": [{"hub": {"name": "c"}}]},
                OperatorDefaults(),
            )
        )
    ]
    template["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": template["spec"]}
    done = namespace.kubectl("create", "--dry-run=server", "--filename=-", stdin=json.dumps(pod), check=False)
    assert "violates PodSecurity" in done.stderr


def test_the_api_server_rejects_hostile_specs_with_a_message_or_accepts_harmless_ones(namespace: Namespace) -> None:
    failures = []
    for number, case in enumerate(hostile_specs()):
        job = {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": f"case-{number}"},
            "spec": case.spec,
        }
        done = namespace.kubectl("apply", "--server-side", "--dry-run=server", "--filename=-", stdin=json.dumps(job), check=False)
        if case.says is None:
            accepted, passed = done.returncode == 0, done.returncode == 0
        else:
            accepted, passed = done.returncode == 0, done.returncode != 0 and case.says in done.stderr
        if not passed:
            failures.append(f"{case.name}: {'accepted' if accepted else done.stderr.strip()[:300]}")
    print(f"{number + 1} specs")
    assert not failures, "\n".join(failures)


def test_a_spec_of_a_megabyte_fails_with_a_short_message_and_without_pods(env: Environment) -> None:
    """The schema limits each list of an affinity. Their product is larger than what a job may carry to its pods."""
    values = [f"{number}-" + "x" * 59 for number in range(512)]
    terms = [{"matchExpressions": [{"key": f"pool-{number}", "operator": "In", "values": values}]} for number in range(30)]
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    env.submit("huge", pod={"affinity": affinity})
    env.submit("small", distributed={"nodes": 1})
    env.wait_phase("small", "Succeeded")
    status = env.wait_phase("huge", "Failed", "Pending", timeout=30)
    print(status["phase"], status["reason"], status["message"][:300])
    status = env.wait_phase("huge", "Failed", timeout=30)
    assert len(status["message"]) <= 1100
    assert not env.pods("huge")
