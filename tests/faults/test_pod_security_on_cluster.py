"""Random and hostile specs put to the real API server, in a namespace that enforces Pod Security "restricted"."""

import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from cluster.kube import Namespace, Object, kubectl
from faults.place import Place
from finetune_operator.site import Site
from unit.operator.hostile import hostile_specs
from unit.operator.random_specs import specs
from unit.operator.test_pod_security import SITE, children_of, template_of

pytestmark = pytest.mark.cluster
PODS = 20  # for each of two sites
GENERATE = settings(
    max_examples=PODS, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)


@pytest.fixture
def namespace(crd: None) -> Iterator[Namespace]:
    name = f"faults-{secrets.token_hex(4)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    made = Namespace(name)
    kubectl(
        "create",
        "-f",
        "-",
        stdin=json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
    )
    try:
        made.wait_for("its service account", lambda: made.get("serviceaccount", "default"), 30)
        yield made
    finally:
        kubectl("delete", "namespace", name, "--wait=false")


def random_templates(site: Site) -> list[Object]:
    found: list[Object] = []

    @GENERATE
    @given(spec=specs())
    def draw(spec: dict[str, Any]) -> None:
        pod = spec.get("pod", {})
        for field in ("priorityClassName", "runtimeClassName"):
            pod.pop(field, None)  # the cluster knows none by a name of chance
        found.append(template_of(children_of(spec, site)))

    draw()
    return found


def test_pods_of_random_specs_are_admitted_where_restricted_is_enforced(namespace: Namespace) -> None:
    templates = [template for site in (Site(), SITE) for template in random_templates(site)]
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


def test_a_pod_that_is_not_restricted_is_refused_there(namespace: Namespace) -> None:
    [template] = [
        template_of(
            children_of(
                {"task": "text-classification", "model": {"hub": {"name": "a/b"}}, "datasets": [{"hub": {"name": "c"}}]}, Site()
            )
        )
    ]
    template["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": template["spec"]}
    done = namespace.kubectl("create", "--dry-run=server", "--filename=-", stdin=json.dumps(pod), check=False)
    assert "violates PodSecurity" in done.stderr


def test_hostile_specs_are_refused_by_the_api_server_with_a_sentence(namespace: Namespace) -> None:
    wrong = []
    for number, case in enumerate(hostile_specs()):
        job = {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": f"case-{number}"},
            "spec": case.spec,
        }
        done = namespace.kubectl("apply", "--server-side", "--dry-run=server", "--filename=-", stdin=json.dumps(job), check=False)
        if case.says is None:
            accepted, fine = done.returncode == 0, done.returncode == 0
        else:
            accepted, fine = done.returncode == 0, done.returncode != 0 and case.says in done.stderr
        if not fine:
            wrong.append(f"{case.name}: {'accepted' if accepted else done.stderr.strip()[:300]}")
    print(f"{number + 1} specs")
    assert not wrong, "\n".join(wrong)


def test_a_spec_of_a_megabyte_ends_with_a_sentence_and_without_a_pod(place: Place) -> None:
    """Where the schema keeps what it does not know, only the size of the whole is limited."""
    terms = [{"matchExpressions": [{"key": f"pool-{number}", "operator": "In", "values": ["x" * 63]}]} for number in range(8000)]
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    place.submit("huge", pod={"affinity": affinity})
    place.submit("small", distributed={"nodes": 1})
    place.wait_phase("small", "Succeeded")
    status = place.wait_phase("huge", "Failed", "Pending", timeout=30)
    print(status["phase"], status["reason"], status["message"][:300])
    status = place.wait_phase("huge", "Failed", timeout=30)
    assert len(status["message"]) <= 1100
    assert not place.pods("huge")
