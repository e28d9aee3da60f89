"""The operator's rights, as the chart grants them: rendered, bound to its service account in one namespace, and counted."""

import pathlib
import subprocess
from typing import Any

import yaml

from cluster.kube import Namespace, Object, kubectl
from faults.proxy import Proxy

CHART = pathlib.Path(__file__).parents[2] / "charts/finetune-operator"
RELEASE = "finetune-operator"
Grant = tuple[str, str, str]  # verb, group, resource or resource/subresource


def render_chart(namespace: str, *options: str) -> list[Object]:
    """The chart's objects for an operator that lives in a namespace and watches that one alone."""
    command = ["helm", "template", RELEASE, str(CHART), "--namespace", namespace, "--set", f"watchNamespaces={{{namespace}}}"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [item for item in yaml.safe_load_all(done.stdout) if item]


def operator_rules(objects: list[Object]) -> list[tuple[str, list[Object]]]:
    """(namespace, rules) of every role that is bound to the operator's service account."""
    accounts = {item["spec"]["template"]["spec"]["serviceAccountName"] for item in objects if item["kind"] == "Deployment"}
    roles = {(item["kind"], item["metadata"]["name"]): item["rules"] for item in objects if item["kind"].endswith("Role")}
    found = []
    for binding in objects:
        if binding["kind"] == "RoleBinding" and any(subject["name"] in accounts for subject in binding["subjects"]):
            reference = binding["roleRef"]
            found.append((binding["metadata"]["namespace"], roles[reference["kind"], reference["name"]]))
        assert binding["kind"] != "ClusterRoleBinding", "with watchNamespaces it has no rights elsewhere"
    return found


def grant(namespace: Namespace, account: str) -> list[Object]:
    """Give a service account of the namespace what the chart grants there; returns the rules.

    As Roles of the namespace, whatever the chart makes of them: a ClusterRole's name belongs to the whole cluster.
    """
    kueue = kubectl("get", "crd", "clusterqueues.kueue.x-k8s.io", "--ignore-not-found").stdout.strip()
    chart = render_chart(namespace.name, f"--set=kueue.enabled={'true' if kueue else 'false'}")  # as there it would be used
    rules = [rule for where, found in operator_rules(chart) if where == namespace.name for rule in found]
    metadata = {"name": account, "namespace": namespace.name}
    api = "rbac.authorization.k8s.io"
    namespace.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    namespace.apply({"apiVersion": f"{api}/v1", "kind": "Role", "metadata": metadata, "rules": rules})
    binding: dict[str, Any] = {
        "roleRef": {"apiGroup": api, "kind": "Role", "name": account},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace.name}],
    }
    namespace.apply({"apiVersion": f"{api}/v1", "kind": "RoleBinding", "metadata": metadata, **binding})
    return rules


def expand(rules: list[Object]) -> set[Grant]:
    """One entry for each verb on each resource."""
    return {
        (verb, group, resource)
        for rule in rules
        for group in rule.get("apiGroups", ())
        for resource in rule.get("resources", ())
        for verb in rule["verbs"]
    }


class Audit:
    """What operators were granted and what they used, over all tests. ran: files of tests that had an operator."""

    def __init__(self) -> None:
        self.granted: set[Grant] = set()
        self.used: set[Grant] = set()
        self.ran: set[str] = set()

    def count(self, file: str, rules: list[Object], proxies: list[Proxy]) -> None:
        """Add what a test of a file granted and used."""
        self.ran.add(file)
        self.granted |= expand(rules)
        calls = [record.call for proxy in proxies for record in proxy.records if record.call.resource]
        self.used |= {(call.verb, call.group, call.kind) for call in calls}
