"""The RBAC permissions of the operator. Tests render them from the chart, grant them in a namespace, and record their use."""

import dataclasses
import json
import os
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
    """Return the chart's objects for an operator that runs in a namespace and watches only this namespace."""
    command = ["helm", "template", RELEASE, str(CHART), "--namespace", namespace, "--set", f"watchNamespaces={{{namespace}}}"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [item for item in yaml.safe_load_all(done.stdout) if item]


def operator_rules(objects: list[Object]) -> list[tuple[str, list[Object]]]:
    """Return (namespace, rules) of every role that is bound to the operator's service account."""
    accounts = {item["spec"]["template"]["spec"]["serviceAccountName"] for item in objects if item["kind"] == "Deployment"}
    roles = {(item["kind"], item["metadata"]["name"]): item["rules"] for item in objects if item["kind"].endswith("Role")}
    found = []
    for binding in objects:
        if binding["kind"] == "RoleBinding" and any(subject["name"] in accounts for subject in binding["subjects"]):
            reference = binding["roleRef"]
            found.append((binding["metadata"]["namespace"], roles[reference["kind"], reference["name"]]))
        assert binding["kind"] != "ClusterRoleBinding", "with watchNamespaces the operator has no permissions in other namespaces"
    return found


def grant(namespace: Namespace, account: str) -> list[Object]:
    """Grant a service account the permissions that the chart grants in this namespace, and return the rules.

    The rules become a Role, even if the chart has a ClusterRole: the name of a ClusterRole would be taken in the whole cluster.
    """
    kueue = kubectl("get", "crd", "clusterqueues.kueue.x-k8s.io", "--ignore-not-found").stdout.strip()
    options = {"kueue.enabled": "true" if kueue else "false", "site.podGroups": "false"}
    chart = render_chart(namespace.name, *(f"--set={name}={value}" for name, value in options.items()))
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
    """Return one entry for each verb on each resource."""
    return {
        (verb, group, resource)
        for rule in rules
        for group in rule.get("apiGroups", ())
        for resource in rule.get("resources", ())
        for verb in rule["verbs"]
    }


class Audit:
    """Records the permissions that operators had and used, over all tests and all processes of a pytest run.

    directory: shared by the processes. Each process writes its own file there.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory
        self._own = directory / f"audit-{os.getpid()}.jsonl"

    def add(self, file: str, rules: list[Object], proxies: list[Proxy]) -> None:
        """Add the permissions that a test in this file granted and used."""
        calls = [record.call for proxy in proxies for record in proxy.records if record.call.resource]
        used = {(call.verb, call.group, call.rbac_resource) for call in calls}
        entry = {"file": file, "granted": sorted(expand(rules)), "used": sorted(used)}
        with self._own.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")

    def read(self) -> "Usage":
        """Return the permissions that all tests have granted and used so far."""
        lines = [line for file in self._directory.glob("audit-*.jsonl") for line in file.read_text(encoding="utf-8").splitlines()]
        entries = [json.loads(line) for line in lines]
        granted, used = ({tuple(grant) for entry in entries for grant in entry[key]} for key in ("granted", "used"))
        return Usage(granted, used, {entry["file"] for entry in entries})


@dataclasses.dataclass(frozen=True)
class Usage:
    """Permissions of operators. granted, used: as Grant. files: names of the test files that ran an operator."""

    granted: set[tuple[str, ...]]
    used: set[tuple[str, ...]]
    files: set[str]
