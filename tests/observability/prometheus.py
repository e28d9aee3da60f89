"""A client for a Prometheus in the cluster. It sends requests through the API server's proxy."""

import dataclasses
import json
import time
import urllib.parse
from typing import Any

from cluster.kube import kubectl

Series = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Prometheus:
    """A Prometheus server. namespace, service: its Kubernetes Service."""

    namespace: str
    service: str

    def ask(self, path: str, **parameters: str) -> Any:
        """Return ``data`` of a response of its API; raise AssertionError with its error message if it fails."""
        proxy = f"/api/v1/namespaces/{self.namespace}/services/{self.service}:9090/proxy/api/v1/{path}"
        answer = kubectl("get", "--raw", f"{proxy}?{urllib.parse.urlencode(parameters)}", check=False)
        assert answer.returncode == 0, f"{path} {parameters}: {answer.stdout}{answer.stderr}"
        content = json.loads(answer.stdout)
        assert content["status"] == "success", f"{parameters}: {content}"
        return content["data"]

    def instant(self, query: str, at: float | None = None) -> Series:
        """Return the series of a query now, or at a Unix time."""
        found: Series = self.ask("query", query=query, **({"time": f"{at:.0f}"} if at is not None else {}))["result"]
        return found

    def over(self, query: str, start: float, end: float, step_seconds: int = 15) -> Series:
        """Return the series of a query over time, as a panel requests them."""
        found: Series = self.ask("query_range", query=query, start=f"{start:.0f}", end=f"{end:.0f}", step=str(step_seconds))[
            "result"
        ]
        return found

    def label_values(self, selector: str, label: str, since: float) -> list[str]:
        """Return the values of a label, as Grafana's label_values() does."""
        found: list[str] = self.ask(
            f"label/{label}/values", **{"match[]": selector, "start": f"{since:.0f}", "end": f"{time.time():.0f}"}
        )
        return found


def find_prometheus() -> Prometheus | None:
    """Return the Prometheus of an operator by its Service's label, else any Service with port 9090. None if there is none."""
    for selector in ("operated-prometheus=true", "app.kubernetes.io/name=prometheus", ""):
        found = kubectl("get", "services", "--all-namespaces", "--selector", selector, "--output", "json", check=False)
        items = json.loads(found.stdout)["items"] if found.returncode == 0 else []
        for item in items:
            if any(port["port"] == 9090 for port in item["spec"].get("ports") or ()):
                return Prometheus(item["metadata"]["namespace"], item["metadata"]["name"])
    return None


def service_accounts() -> list[dict[str, str]]:
    """Return the ServiceAccounts of the operator's Prometheuses, as subjects of a ClusterRoleBinding."""
    found = kubectl("get", "prometheuses.monitoring.coreos.com", "--all-namespaces", "--output", "json", check=False)
    return [
        {
            "kind": "ServiceAccount",
            "name": item["spec"].get("serviceAccountName", "default"),
            "namespace": item["metadata"]["namespace"],
        }
        for item in (json.loads(found.stdout)["items"] if found.returncode == 0 else [])
    ]


def monitor_labels() -> dict[str, str]:
    """Return the labels by which the operator's Prometheus selects monitors. Empty if it selects all, or if there is none."""
    found = kubectl("get", "prometheuses.monitoring.coreos.com", "--all-namespaces", "--output", "json", check=False)
    items = json.loads(found.stdout)["items"] if found.returncode == 0 else []
    chosen: dict[str, str] = {}
    for item in items:
        for kind in ("podMonitorSelector", "serviceMonitorSelector", "ruleSelector"):
            chosen |= (item["spec"].get(kind) or {}).get("matchLabels") or {}
    return chosen
