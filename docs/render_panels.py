"""Draws the dashboards' panels with matplotlib from the panels' own queries. The data is the same as in Grafana.

`python docs/render_panels.py URL --namespace NAMESPACE --job JOB --minutes 30` queries the Prometheus at URL and writes
docs/images/<dashboard>.png. For a Prometheus in a cluster, run `kubectl port-forward service/prometheus-operated 9090` and
use http://localhost:9090. The pictures omit panels with a single value, tables, and panels without data.
"""

import argparse
import json
import math
import pathlib
import re
import time
import urllib.parse
import urllib.request
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.dates as dates
import matplotlib.pyplot as plt

ROOT = pathlib.Path(__file__).parents[1]
DASHBOARDS = ROOT / "charts/finetune-operator/dashboards"
COLUMNS = 3
MAX_SERIES = 10  # per panel
UNITS = {"s": "seconds", "bytes": "GiB", "percentunit": "share", "reqps": "per second", "ops": "per second"}


def main() -> None:
    """Parse the command line and draw one picture per dashboard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="address of Prometheus, for example http://localhost:9090")
    parser.add_argument("--namespace", default=".*", help="namespace of the jobs")
    parser.add_argument("--job", default=".+", help="job to show in the dashboard Job")
    parser.add_argument("--minutes", type=float, default=30, help="length of the time range, up to now")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "docs/images")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name in ("fleet", "job", "operator"):
        content = json.loads((DASHBOARDS / f"{name}.json").read_text(encoding="utf-8"))
        namespace = ".*" if name == "operator" else options.namespace
        drawn = [panel for panel in content["panels"] if panel["type"] in ("timeseries", "bargauge")]
        queried = [(panel, query_panel(options, panel, namespace)) for panel in drawn]
        filled = [(panel, series) for panel, series in queried if series]
        if filled:
            draw(content["title"], filled, options.output / f"dashboard-{name}.png")
        print(f"{name}: {len(filled)} of {len(drawn)} panels have data")


def query_panel(options: argparse.Namespace, panel: dict[str, Any], namespace: str) -> list[tuple[str, list[float], list[float]]]:
    """Return legend, Unix times and values of each series of a panel."""
    end = time.time()
    start = end - options.minutes * 60
    step = max(5, round(options.minutes * 60 / 240))
    found = []
    for target in panel["targets"]:
        expr = target["expr"]
        for variable, value in {
            "__rate_interval": f"{max(60, 4 * step)}s", "__range": f"{options.minutes * 60:.0f}s", "cluster": ".*",
            "namespace": namespace, "job": options.job,
        }.items():  # fmt: skip
            expr = expr.replace(f"${variable}", value)
        expr = expr.replace('finetunejob="', 'finetunejob=~"')
        query = {"query": expr, "start": start, "end": end, "step": step}
        with urllib.request.urlopen(f"{options.url}/api/v1/query_range?{urllib.parse.urlencode(query)}", timeout=30) as response:
            for series in json.load(response)["data"]["result"]:
                legend = re.sub(
                    r"{{(\w+)}}", lambda match, labels=series["metric"]: labels.get(match[1], ""), target["legendFormat"]
                )
                points = [(at, float(value)) for at, value in series["values"] if math.isfinite(float(value))]
                if points:
                    times, values = zip(*points, strict=True)
                    found.append((legend, list(times), list(values)))
    return found


def draw(title: str, panels: list[tuple[dict[str, Any], list[tuple[str, list[float], list[float]]]]], path: pathlib.Path) -> None:
    """Draw one picture with all panels of a dashboard."""
    rows = math.ceil(len(panels) / COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(5.2 * COLUMNS, 3.2 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (panel, series) in zip(axes.flat, panels, strict=False):
        defaults = panel["fieldConfig"]["defaults"]
        unit = defaults["unit"]
        scale = 2.0**-30 if unit == "bytes" else 1.0
        if panel["type"] == "bargauge":
            ordered = sorted(((values[-1] * scale, legend) for legend, _, values in series), reverse=True)
            axis.barh([legend for _, legend in ordered][::-1], [value for value, _ in ordered][::-1], color="tab:blue")
        else:
            for legend, times, values in series[:MAX_SERIES]:
                days = [at / 86_400 for at in times]  # matplotlib counts days
                axis.plot(days, [value * scale for value in values], label=legend, linewidth=1.2)
            axis.xaxis_date()
            axis.xaxis.set_major_formatter(dates.DateFormatter("%H:%M"))
            axis.legend(fontsize=7, loc="best")
        axis.set_title(panel["title"], fontsize=10)
        if panel["type"] == "bargauge":
            axis.set_xlabel(UNITS.get(unit, ""), fontsize=8)
        else:
            axis.set_ylabel(UNITS.get(unit, ""), fontsize=8)
            axis.set_ylim(bottom=defaults.get("min"), top=defaults.get("max"))
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    figure.suptitle(f"{title}: rendered from the panels' queries, not by Grafana", fontsize=12)
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    main()
