"""The dashboards' panels, and their queries as Grafana sends them to Prometheus, with values for the variables."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

DASHBOARDS = pathlib.Path(__file__).parents[2] / "charts/finetune-operator/dashboards"
NAMES = ("fleet", "job", "operator")
_LABEL_VALUES = re.compile(r"label_values\((?:(?P<selector>.+), )?(?P<label>\w+)\)")


@dataclasses.dataclass(frozen=True)
class Query:
    """A query of a panel. instant: for one time only, not over time."""

    dashboard: str
    panel: str
    legend: str
    expr: str
    instant: bool

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.panel}{f' ({self.legend})' if self.legend else ''}"


def load(name: str) -> dict[str, Any]:
    """Return a dashboard of the chart."""
    content: dict[str, Any] = json.loads((DASHBOARDS / f"{name}.json").read_text(encoding="utf-8"))
    return content


def panels(name: str) -> list[dict[str, Any]]:
    """Return the panels of a dashboard, without row headers."""
    return [panel for panel in load(name)["panels"] if panel["type"] != "row"]


def queries() -> Iterator[Query]:
    """Yield every query of all panels and annotations."""
    for name in NAMES:
        for panel in panels(name):
            for target in panel["targets"]:
                yield Query(name, panel["title"], target["legendFormat"], target["expr"], bool(target["instant"]))
        for annotation in load(name)["annotations"].get("list", ()):
            yield Query(name, annotation["name"], "annotation", annotation["expr"], False)


def variables(name: str) -> dict[str, tuple[str, str]]:
    """Return the name of each variable that queries Prometheus → selector and label of its label_values()."""
    found = {}
    for variable in load(name)["templating"]["list"]:
        if variable["type"] == "query":
            match = _LABEL_VALUES.fullmatch(variable["query"])
            assert match is not None, variable["query"]
            found[variable["name"]] = match["selector"], match["label"]
    return found


def substitute(expr: str, **values: str) -> str:
    """Return the query as Grafana sends it. values: of the variables. A missing variable matches all values."""
    chosen = {"cluster": ".*", "namespace": ".*", "job": ".*", **values}
    for name, value in {"__rate_interval": "2m", "__interval": "30s", "__range": "1h", **chosen}.items():
        expr = re.sub(rf"\${name}\b|\${{{name}}}", value, expr)
    assert "$" not in expr, f"unknown variable: {expr}"
    return expr
