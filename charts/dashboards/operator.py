"""The dashboard Operator: leader, work queue, API server requests, memory and CPU."""

import sys

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.panels import (
    LOW,
    NO_THRESHOLDS,
    QUARTER,
    RED_FROM_ONE,
    THIRD,
    Panel,
    PanelOptions,
    Query,
    Thresholds,
    new_dashboard,
    render,
    stat_panel,
    time_series,
    with_rows,
)

PODS = 'cluster=~"$cluster",namespace=~"$namespace"'
# Matches only the operator's pods. Other pods also export metrics of a process.
OPERATOR_PODS = f"finetune_operator_leader{{{PODS}}}"
NO_OPERATOR = "no operator runs, or Prometheus does not scrape it."


def rate(metric: str, matchers: str = "") -> str:
    """Return a query for the rate of a counter of the operator."""
    return f"rate(finetune_operator_{metric}{{{PODS}{matchers}}}[$__rate_interval])"


def _stat(title: str, description: str, unit: str, expr: str, thresholds: Thresholds = NO_THRESHOLDS) -> Panel:
    return stat_panel(PanelOptions(title, description, unit, NO_OPERATOR, thresholds, QUARTER, LOW), Query(expr))


def _now() -> list[Panel]:
    leading = ((None, "red"), (1, "green"), (2, "red"))
    return [
        _stat("Leaders", "Replicas that act: one per release.", "short", f"sum(finetune_operator_leader{{{PODS}}})", leading),
        _stat("Replicas", "Operators that Prometheus scrapes.", "short", f"count(finetune_operator_leader{{{PODS}}})"),
        _stat(
            "Jobs in the work queue", "More than a few jobs for minutes mean that the operator does not keep up.", "short",
            f"sum(finetune_operator_workqueue_depth{{{PODS}}})", ((None, "green"), (100, "yellow"), (1000, "red")),
        ),
        _stat(
            "Since the last event", "Time since a watch or the list of every minute delivered a FineTuneJob.", "s",
            f"time() - min(finetune_operator_watch_last_event_timestamp_seconds{{{PODS}}})",
            ((None, "green"), (120, "yellow"), (300, "red")),
        ),
    ]  # fmt: skip


def _work() -> list[Panel]:
    buckets, work = (f"sum by (le) ({rate(f'reconcile_{name}_seconds_bucket')})" for name in ("duration", "work"))
    return [
        time_series(
            PanelOptions("Reconciles", "Reconciles per second.", "ops", NO_OPERATOR, width=THIRD),
            Query(f"sum({rate('reconcile_duration_seconds_count')})", "reconciles"),
        ),
        time_series(
            PanelOptions("Duration of a reconcile", "Most of it is waiting for the API server.", "s", NO_OPERATOR, width=THIRD),
            Query(f"histogram_quantile(0.5, {buckets})", "median"),
            Query(f"histogram_quantile(0.95, {buckets})", "95 %"),
            Query(f"histogram_quantile(0.99, {buckets})", "99 %"),
            Query(f"histogram_quantile(0.99, {work})", "99 %, without waiting"),
        ),
        time_series(
            PanelOptions("Errors", "Failed reconciles per second. They are retried.", "ops", NO_OPERATOR, width=THIRD),
            Query(f"sum({rate('reconcile_errors_total')})", "errors"),
        ),
        time_series(
            PanelOptions("Work queue", "Jobs that wait for a reconcile.", "short", NO_OPERATOR, width=THIRD),
            Query(f"max by (pod) (finetune_operator_workqueue_depth{{{PODS}}})", "{{pod}}"),
        ),
        time_series(
            PanelOptions("Leader", "1 for the replica that holds the Lease.", "short", NO_OPERATOR, width=THIRD),
            Query(f"max by (pod) (finetune_operator_leader{{{PODS}}})", "{{pod}}"),
            maximum=1,
        ),
        time_series(
            PanelOptions(
                "Since the last event by replica", "The operator lists FineTuneJobs once a minute, and watches report changes.",
                "s", NO_OPERATOR, ((None, "green"), (300, "red")), THIRD,
            ),
            Query(f"time() - max by (pod) (finetune_operator_watch_last_event_timestamp_seconds{{{PODS}}})", "{{pod}}"),
        ),
    ]  # fmt: skip


def _api_server_and_resources() -> list[Panel]:
    failed = ',code=~"0|[45]..",code!~"404|409"'
    return [
        time_series(
            PanelOptions(
                "Requests to the API server", "Requests per second, without those of the watches.", "reqps", NO_OPERATOR,
                width=QUARTER,
            ),
            Query(f"sum by (verb, kind) ({rate('api_requests_total')})", "{{verb}} {{kind}}"),
            stacked=True,
        ),
        time_series(
            PanelOptions(
                "Requests that failed",
                "Requests per second, without the expected codes 404 and 409. 0: no response. 403: a right is missing.",
                "reqps", "no request failed.", RED_FROM_ONE, QUARTER,
            ),
            Query(f"sum by (code, verb, kind) ({rate('api_requests_total', failed)})", "{{code}}: {{verb}} {{kind}}"),
        ),
        time_series(
            PanelOptions("Memory", "Memory of the process.", "bytes", NO_OPERATOR, width=QUARTER),
            Query(
                f"max by (pod) (process_resident_memory_bytes{{{PODS}}} and on (namespace, pod) {OPERATOR_PODS})",
                "{{pod}}",
            ),
        ),
        time_series(
            PanelOptions("CPU", "Cores that the process uses.", "none", NO_OPERATOR, width=QUARTER),
            Query(
                f"max by (pod) (rate(process_cpu_seconds_total{{{PODS}}}[$__rate_interval]) "
                f"and on (namespace, pod) {OPERATOR_PODS})",
                "{{pod}}",
            ),
        ),
    ]  # fmt: skip


def build() -> Dashboard:
    """Return the dashboard."""
    description = "The operator: leader, work queue, requests to the API server, memory and CPU."
    made = new_dashboard("operator", "FineTune / Operator", description, job_namespaces=False)
    return with_rows(made, {"Now": _now(), "Work": _work(), "API server, memory and CPU": _api_server_and_resources()})


if __name__ == "__main__":
    sys.stdout.write(render(build()))
