"""The RBAC rights of the operator, of `helm test`, and of users."""

from typing import Any

import pytest

from chart.rendering import NAMESPACE, installed, only, render

Object = dict[str, Any]
JOBS = ("finetune.dev", "finetunejobs")


def granted(role: Object) -> dict[tuple[str, str], set[str]]:
    """Return (group, resource) → verbs of a role, without the rules for named objects."""
    return {
        (group, resource): set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        if "resourceNames" not in rule
    }


EVERYTHING = {
    JOBS: {"get", "list", "watch", "delete"},
    ("finetune.dev", "finetunejobs/status"): {"patch"},
    ("batch", "jobs"): {"get", "list", "watch", "create", "delete"},
    ("", "pods"): {"list", "watch", "delete"},
    ("", "services"): {"get", "create"},
    ("", "configmaps"): {"get", "create"},
    ("", "persistentvolumeclaims"): {"get", "create", "delete"},
    ("", "events"): {"list", "create"},
    ("kueue.x-k8s.io", "workloads"): {"list", "watch"},
    ("batch", "jobs/status"): {"patch"},
    ("networking.k8s.io", "networkpolicies"): {"get", "create"},
    ("scheduling.x-k8s.io", "podgroups"): {"get", "create", "delete"},
    ("scheduling.volcano.sh", "podgroups"): {"get", "create", "delete"},
    ("scheduling.k8s.io", "podgroups"): {"get", "create"},
}


def test_the_operator_may_do_exactly_this() -> None:
    role = only(installed(), "ClusterRole", f"finetune-operator-{NAMESPACE}")
    assert granted(role) == EVERYTHING
    binding = only(installed(), "ClusterRoleBinding")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "finetune-operator", "namespace": NAMESPACE}]


def test_optional_rights_depend_on_the_values_that_need_them() -> None:
    def rights(*values: str) -> dict[tuple[str, str], set[str]]:
        return granted(only(installed(*values), "ClusterRole", f"finetune-operator-{NAMESPACE}"))

    workloads, policies = ("kueue.x-k8s.io", "workloads"), ("networking.k8s.io", "networkpolicies")
    assert workloads not in rights("--set", "kueue.enabled=false")
    assert policies not in rights("--set", "site.networkPolicy.enabled=false")
    assert not [resource for _, resource in rights("--set", "site.podGroups=false") if resource == "podgroups"]


def test_the_lease_is_the_only_one_it_may_change() -> None:
    role = only(installed(), "Role")
    assert role["metadata"]["namespace"] == NAMESPACE
    assert role["rules"] == [
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
        {
            "apiGroups": ["coordination.k8s.io"],
            "resources": ["leases"],
            "resourceNames": ["finetune-operator"],
            "verbs": ["get", "update"],
        },
    ]


def test_it_has_rights_in_the_watched_namespaces_only() -> None:
    objects = installed("--set", "watchNamespaces={team-a,team-b}")
    cluster = [document for document in objects if document["kind"].startswith("ClusterRole")]
    assert [role["metadata"]["name"].rpartition("-")[2] for role in cluster] == ["view", "edit"], "those are for users"
    roles = {
        document["metadata"]["namespace"]: granted(document)
        for document in objects
        if document["kind"] == "Role" and document["metadata"]["name"].endswith("-jobs")
    }
    assert roles == {"team-a": EVERYTHING, "team-b": EVERYTHING}
    bindings = [document for document in objects if document["kind"] == "RoleBinding"]
    bound = {(binding["metadata"]["namespace"], binding["roleRef"]["kind"], binding["roleRef"]["name"]) for binding in bindings}
    assert bound == {
        ("team-a", "Role", "finetune-operator-jobs"),
        ("team-b", "Role", "finetune-operator-jobs"),
        (NAMESPACE, "Role", "finetune-operator-lease"),
    }
    assert {binding["subjects"][0]["namespace"] for binding in bindings} == {NAMESPACE}


@pytest.mark.parametrize(
    "values", [(), ("--set", "watchNamespaces={team-a},site.networkPolicy.enabled=true,policy.enabled=true")]
)
def test_no_role_of_the_chart_has_a_verb_on_secrets_or_nodes_or_a_wildcard(values: tuple[str, ...]) -> None:
    rules = [rule for document in render(*values) if document["kind"] in {"ClusterRole", "Role"} for rule in document["rules"]]
    assert rules
    for rule in rules:
        assert not {"*", "secrets", "nodes"} & {resource.partition("/")[0] for resource in rule["resources"]}
        assert "*" not in rule["verbs"]
        assert "*" not in rule["apiGroups"]


def test_users_get_rights_through_the_roles_of_the_cluster() -> None:
    roles = {
        document["metadata"]["name"].rpartition("-")[2]: document
        for document in installed("--show-only", "templates/userroles.yaml")
    }
    verbs = {kind: granted(role)[JOBS] for kind, role in roles.items()}
    assert verbs == {
        "view": {"get", "list", "watch"},
        "edit": {"create", "update", "patch", "delete", "deletecollection"},
    }
    aggregated = {
        kind: {label.rpartition("-")[2] for label in role["metadata"]["labels"] if "aggregate-to-" in label}
        for kind, role in roles.items()
    }
    assert aggregated == {"view": {"view", "edit", "admin"}, "edit": {"edit", "admin"}}
    without = installed("--set", "userRoles.enabled=false")
    assert [role["metadata"]["name"] for role in without if role["kind"] == "ClusterRole"] == [f"finetune-operator-{NAMESPACE}"]


def test_two_releases_of_one_name_share_no_object() -> None:
    """Each release has its own namespace and its own watched namespaces. Only the CRD is shared."""

    def names(namespace: str) -> set[tuple[str, str, str]]:
        values = ("--namespace", namespace, "--set", f"watchNamespaces={{{namespace}}},policy.enabled=true,crds.enabled=false")
        return {(each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]) for each in render(*values)}

    assert not names("team-a") & names("team-b")


def test_helm_test_has_only_the_rights_that_it_needs_in_a_watched_namespace() -> None:
    objects = render("--set", "watchNamespaces={team-a,team-b}")
    hooks = [document for document in objects if "helm.sh/hook" in document["metadata"].get("annotations", {})]
    assert {(hook["kind"], hook["metadata"]["namespace"]) for hook in hooks} == {
        ("ServiceAccount", NAMESPACE),
        ("Role", "team-a"),
        ("RoleBinding", "team-a"),
        ("Pod", NAMESPACE),
    }
    role = next(hook for hook in hooks if hook["kind"] == "Role")
    assert {verb for verbs in granted(role).values() for verb in verbs} == {"create"}
    named = [rule for rule in role["rules"] if "resourceNames" in rule]
    assert {verb for rule in named for verb in rule["verbs"]} == {"get", "delete"}
    [container] = next(hook for hook in hooks if hook["kind"] == "Pod")["spec"]["containers"]
    [name] = {name for rule in named for name in rule["resourceNames"]}
    assert f"--name={name}" in container["args"]
    assert "--namespace=team-a" in container["args"]
    assert [hook for hook in render("--set", "test.enabled=false") if hook["kind"] == "Pod"] == []
