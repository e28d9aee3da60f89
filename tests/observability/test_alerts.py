"""Alerts: each fires when it should and is silent when not, as Prometheus' own tool evaluates them; each has its page."""

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
    """The rules of the chart, as it renders them."""
    rule = only(render("--set", "alerts.enabled=true", *arguments), "PrometheusRule")
    return [alert for group in rule["spec"]["groups"] for alert in group["rules"]]


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The file that the Prometheus operator makes of the PrometheusRule."""
    file = tmp_path_factory.mktemp("rules") / "rules.yaml"
    file.write_text(yaml.safe_dump(only(render("--set", "alerts.enabled=true"), "PrometheusRule")["spec"]), encoding="utf-8")
    return file


def promtool(*arguments: str) -> None:
    done = subprocess.run([str(PROMTOOL), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_takes_them(rules: pathlib.Path) -> None:
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


# What people read where a template does more than put in labels: the alert, a case of it, and the description.
SAID = [
    ("JobGPUIdle", "an idle GPU", "The GPUs of pod news-1-0-x of team/news were used 2.0 % on average."),
    ("JobPendingTooLong", "half an hour of both", "team/news has been Pending or Initializing for too long."),
    ("JobCheckpointStale", "there never was one", "team/news would lose 2h 40m 0s of work if a pod were lost now."),
    ("JobStraggler", "one of four is slow", "Forward passes of rank 3 on node node-3 take 150ms, clearly more"),
    ("JobCrashLoop", "three failures in half an hour", "team/news was restarted 3 times after failures within an hour."),
    ("OperatorWatchStale", "nothing heard for six minutes", "told finetune-operator-7d-x of FineTuneJobs for 7m 0s."),
]


@needs_promtool
@pytest.mark.parametrize(("what", "name", "sentence"), SAID, ids=[what for what, _, _ in SAID])
def test_a_description_is_a_sentence_with_figures(
    what: str, name: str, sentence: str, rules: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    [case] = [case for case in CASES if (case.what, case.name) == (what, name)]
    test = {
        "interval": "1m",
        "input_series": [{"series": series, "values": values} for series, values in case.series],
        # Nothing is expected, so that the tool complains, and says what there is.
        "alert_rule_test": [{"eval_time": f"{case.minute}m", "alertname": case.alert, "exp_alerts": []}],
    }
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [test]}), encoding="utf-8")
    done = subprocess.run([str(PROMTOOL), "test", "rules", str(file)], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert sentence in said
    assert "<error" not in said


def alerts_of(rules: pathlib.Path) -> list[dict[str, Any]]:
    return [alert for group in yaml.safe_load(rules.read_text(encoding="utf-8"))["groups"] for alert in group["rules"]]


def test_every_alert_is_tried_both_ways(rules: pathlib.Path) -> None:
    names = {alert["alert"] for alert in alerts_of(rules)}
    assert names == {case.alert for case in CASES if case.firing is not None}
    assert names == {case.alert for case in CASES if case.firing is None}


def test_every_alert_says_what_to_do_and_has_a_page(rules: pathlib.Path) -> None:
    for alert in alerts_of(rules):
        name, annotations = alert["alert"], alert["annotations"]
        assert alert["labels"]["severity"] in {"critical", "warning", "info"}
        assert annotations["runbook_url"] == f"docs/runbooks/{name}.md"
        page = (RUNBOOKS / f"{name}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {name}\n")
        for section in ("## Meaning", "## Impact", "## Diagnosis", "## What to do"):
            assert section in page, f"{name}.md lacks {section}"
        assert "kubectl" in page
        assert annotations["summary"]
        of_a_job = name.startswith("FineTuneJob")
        for text in (annotations["summary"], annotations["description"]):
            assert ("{{ $labels.namespace }}/{{ $labels.finetunejob }}" in text) is of_a_job, f"{name}: which job?"


def test_every_page_is_of_an_alert() -> None:
    assert {page.stem for page in RUNBOOKS.glob("*.md")} - {"README"} == {case.alert for case in CASES}


def test_every_metric_that_an_alert_asks_for_is_declared(rules: pathlib.Path) -> None:
    declared = {metric.name for metric in (*metrics.TRAINER_METRICS, *metrics.OPERATOR_METRICS)}
    for alert in alerts_of(rules):
        asked = {name.removesuffix("_bucket") for name in re.findall(r"\bfinetune_[a-z_]+[a-z]\b", alert["expr"])}
        patterns = re.findall(r'__name__=~"([^"]+)"', alert["expr"])
        for pattern in patterns:
            assert [name for name in declared if re.fullmatch(pattern, name)], pattern
        assert asked - {re.match(r"[a-z_]+[a-z]", pattern)[0] for pattern in patterns} <= declared, alert["alert"]  # type: ignore[index]
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


def test_an_alert_can_be_left_out_and_one_that_is_not_there_is_refused() -> None:
    left = {alert["alert"] for alert in alerts("--set", "alerts.disabled={FineTuneJobGPUIdle,FineTuneOperatorDown}")}
    assert left == {case.alert for case in CASES} - {"FineTuneJobGPUIdle", "FineTuneOperatorDown"}
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    names = schema["properties"]["alerts"]["properties"]["disabled"]["items"]["enum"]
    assert set(names) == {case.alert for case in CASES}


def test_where_no_operator_is_wanted_none_is_missed() -> None:
    assert "FineTuneOperatorDown" not in {alert["alert"] for alert in alerts("--set", "replicas=0")}
