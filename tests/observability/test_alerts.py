"""Alerts: promtool evaluates that each fires when it should and only then. Each has a page in docs/runbooks."""

import json
import pathlib
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from chart.rendering import CHART, HELM, ROOT, only, render
from finetune_api import metrics
from finetune_api.status import Phase
from observability.alert_cases import CASES, Case

PROMTOOL = shutil.which("promtool")
RUNBOOKS = ROOT / "docs/runbooks"
pytestmark = pytest.mark.skipif(HELM is None, reason="helm is not on the PATH")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool, which comes with Prometheus, is not on the PATH")


def alerts(*arguments: str) -> list[dict[str, Any]]:
    """Return the alert rules that the chart renders."""
    rule = only(render("--set", "alerts.enabled=true", *arguments), "PrometheusRule")
    return [alert for group in rule["spec"]["groups"] for alert in group["rules"]]


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return the file that the Prometheus operator creates from the PrometheusRule."""
    file = tmp_path_factory.mktemp("rules") / "rules.yaml"
    file.write_text(yaml.safe_dump(only(render("--set", "alerts.enabled=true"), "PrometheusRule")["spec"]), encoding="utf-8")
    return file


def promtool(*arguments: str) -> None:
    done = subprocess.run([str(PROMTOOL), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_accepts_them(rules: pathlib.Path) -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", str(rules))


def selector(name: str) -> str:
    return f'ALERTS{{alertname="{name}",alertstate="firing"}}'


@needs_promtool
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}: {case.name}")
def test_an_alert_fires_when_it_should(case: Case, rules: pathlib.Path, tmp_path: pathlib.Path) -> None:
    [alert] = [alert for alert in alerts_of(rules) if alert["alert"] == case.alert]
    labels = {"alertname": case.alert, "alertstate": "firing", **alert["labels"], **(case.firing or {})}
    shown = ", ".join(f'{name}="{value}"' for name, value in labels.items())
    test = {
        "name": case.name,
        "interval": "1m",
        "input_series": [{"series": series, "values": values} for series, values in case.series],
        "promql_expr_test": [
            {
                "expr": selector(case.alert),
                "eval_time": f"{case.minute}m",
                "exp_samples": [{"labels": f"ALERTS{{{shown}}}", "value": 1}] if case.firing is not None else [],
            }
        ],
    }
    file = tmp_path / "test.yaml"
    content = {"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [test]}
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    promtool("test", "rules", str(file))


# Descriptions whose template formats a value: the alert, one of its cases, and a part of the description.
DESCRIPTIONS = [
    ("JobGPUIdle", "an idle GPU", "The average utilisation of the GPUs of pod news-1-0-x of team/news was 2.0 %."),
    ("JobPendingTooLong", "half an hour of both", "team/news has been Pending or Initializing for too long."),
    ("JobCheckpointStale", "there never was one", "If a pod were lost now, team/news would lose 2h 40m 0s of work."),
    ("JobStraggler", "one of four is slow", "Forward passes of rank 3 on node node-3 take 150ms, clearly longer"),
    ("JobCrashLoop", "three failures in half an hour", "team/news was restarted 3 times after failures within an hour."),
    ("OperatorWatchStale", "no event for six minutes", "finetune-operator-7d-x has received no FineTuneJob for 7m 0s,"),
]


@needs_promtool
@pytest.mark.parametrize(("short_name", "name", "text"), DESCRIPTIONS, ids=[short_name for short_name, _, _ in DESCRIPTIONS])
def test_a_description_formats_its_value(
    short_name: str, name: str, text: str, rules: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    [case] = [case for case in CASES if (case.short_name, case.name) == (short_name, name)]
    test = {
        "interval": "1m",
        "input_series": [{"series": series, "values": values} for series, values in case.series],
        # The test expects no alert, so promtool fails and prints the alert that fires.
        "alert_rule_test": [{"eval_time": f"{case.minute}m", "alertname": case.alert, "exp_alerts": []}],
    }
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [test]}), encoding="utf-8")
    done = subprocess.run([str(PROMTOOL), "test", "rules", str(file)], capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert text in output
    assert "<error" not in output


def alerts_of(rules: pathlib.Path) -> list[dict[str, Any]]:
    return [alert for group in yaml.safe_load(rules.read_text(encoding="utf-8"))["groups"] for alert in group["rules"]]


def test_every_alert_has_a_case_that_fires_and_one_that_does_not(rules: pathlib.Path) -> None:
    names = {alert["alert"] for alert in alerts_of(rules)}
    assert names == {case.alert for case in CASES if case.firing is not None}
    assert names == {case.alert for case in CASES if case.firing is None}


def test_every_alert_says_what_to_do_and_has_a_page(rules: pathlib.Path) -> None:
    for alert in alerts_of(rules):
        name, annotations = alert["alert"], alert["annotations"]
        assert alert["labels"]["severity"] in {"critical", "warning", "info"}
        assert "runbook_url" not in annotations, "nobody can follow an address that is not whole"
        page = (RUNBOOKS / f"{name}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {name}\n")
        for section in ("## Meaning", "## Impact", "## Diagnosis", "## What to do"):
            assert section in page, f"{name}.md lacks {section}"
        assert "kubectl" in page
        assert annotations["summary"]
        of_a_job = name.startswith("FineTuneJob")
        for text in (annotations["summary"], annotations["description"]):
            assert ("{{ $labels.namespace }}/{{ $labels.finetunejob }}" in text) is of_a_job, f"{name}: which job?"


def test_every_page_belongs_to_an_alert() -> None:
    assert {page.stem for page in RUNBOOKS.glob("*.md")} - {"README"} == {case.alert for case in CASES}


def test_every_metric_of_an_alert_is_declared(rules: pathlib.Path) -> None:
    declared = {metric.name for metric in (*metrics.TRAINER_METRICS, *metrics.OPERATOR_METRICS)}
    for alert in alerts_of(rules):
        found = {name.removesuffix("_bucket") for name in re.findall(r"\bfinetune_[a-z_]+[a-z]\b", alert["expr"])}
        patterns = re.findall(r'__name__=~"([^"]+)"', alert["expr"])
        for pattern in patterns:
            assert [name for name in declared if re.fullmatch(pattern, name)], pattern
        assert found - {re.match(r"[a-z_]+[a-z]", pattern)[0] for pattern in patterns} <= declared, alert["alert"]  # type: ignore[index]
        phases = set(re.findall(r'phase=~?"([^"]+)"', alert["expr"]))
        assert {phase for several in phases for phase in several.split("|")} <= set(Phase.__args__)


def test_thresholds_severities_and_labels_come_from_the_values() -> None:
    changed = alerts(
        "--set", "alerts.stalled.afterSeconds=42,alerts.stalled.timesUsualStep=3,alerts.stalled.severity=page",
        "--set", "alerts.labels.team=ml,alerts.runbookBaseURL=https://example.com/runbooks,alerts.pendingTooLong.for=1h",
    )  # fmt: skip
    by_name = {alert["alert"]: alert for alert in changed}
    stalled = by_name["FineTuneJobStalled"]
    assert "3 * histogram_quantile" in stalled["expr"]
    assert stalled["expr"].count("42") == 2
    assert stalled["labels"] == {"severity": "page", "team": "ml"}
    assert stalled["annotations"]["runbook_url"] == "https://example.com/runbooks/FineTuneJobStalled.md"
    assert by_name["FineTuneJobPendingTooLong"]["for"] == "1h"


def test_a_label_of_all_alerts_may_be_their_severity() -> None:
    found = alerts("--set", "alerts.labels.severity=page")
    assert {alert["labels"]["severity"] for alert in found} == {"page"}


@pytest.mark.parametrize("length", [17, 57, 58, 63])
def test_the_alerts_of_the_operator_find_its_pods_whatever_their_name(length: int) -> None:
    name = "o" * length
    found = {alert["alert"]: alert["expr"] for alert in alerts("--set", f"fullnameOverride={name}")}
    # Kubernetes shortens the name of the ReplicaSet, with its hash, before it appends five characters.
    pod = f"{name}-6d4cf56db6-"[:58] + "x7k2p"
    for alert in ("FineTuneOperatorDown", "FineTuneOperatorNoLeader", "FineTuneOperatorWatchStale"):
        [pattern] = set(re.findall(r'pod=~"([^"]+)"', found[alert]))
        assert re.fullmatch(pattern, pod), alert


def test_an_alert_can_be_left_out_and_an_unknown_name_is_refused() -> None:
    left = {alert["alert"] for alert in alerts("--set", "alerts.disabled={FineTuneJobGPUIdle,FineTuneOperatorDown}")}
    assert left == {case.alert for case in CASES} - {"FineTuneJobGPUIdle", "FineTuneOperatorDown"}
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    names = schema["properties"]["alerts"]["properties"]["disabled"]["items"]["enum"]
    assert set(names) == {case.alert for case in CASES}


def test_with_zero_replicas_there_is_no_alert_for_a_missing_operator() -> None:
    assert "FineTuneOperatorDown" not in {alert["alert"] for alert in alerts("--set", "replicas=0")}
