"""Operator: whether it acts, keeps up and reaches the API server, and what it costs."""

import sys

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.panels import (
    BAD_FROM_ONE,
    CALM,
    LOW,
    QUARTER,
    THIRD,
    Panel,
    Query,
    Shown,
    Steps,
    begin,
    lines,
    number,
    render,
    with_rows,
)

PODS = 'cluster=~"$cluster",namespace=~"$namespace"'
# To tell the operator's pods from others that have metrics of a process.
OURS = f"finetune_operator_leader{{{PODS}}}"
NO_OPERATOR = "no operator runs, or Prometheus does not ask it."


def rate(metric: str, more: str = "") -> str:
    """Of a counter."""
    return f"rate(finetune_operator_{metric}{{{PODS}{more}}}[$__rate_interval])"


def _figure(title: str, description: str, unit: str, expr: str, steps: Steps = CALM) -> Panel:
    return number(Shown(title, description, unit, NO_OPERATOR, steps, QUARTER, LOW), Query(expr))


def _now() -> list[Panel]:
    leading = ((None, "red"), (1, "green"), (2, "red"))
    return [
        _figure("Leaders", "Those that act: one a release.", "short", f"sum(finetune_operator_leader{{{PODS}}})", leading),
        _figure("Replicas", "Operators that answer.", "short", f"count(finetune_operator_leader{{{PODS}}})"),
        _figure(
            "Jobs that wait for their turn", "More than a few for minutes: it does not keep up.", "short",
            f"sum(finetune_operator_workqueue_depth{{{PODS}}})", ((None, "green"), (100, "yellow"), (1000, "red")),
        ),
        _figure(
            "Since something was heard", "Of FineTuneJobs, by a watch or the list of every minute.", "s",
            f"time() - min(finetune_operator_watch_last_event_timestamp_seconds{{{PODS}}})",
            ((None, "green"), (120, "yellow"), (300, "red")),
        ),
    ]  # fmt: skip


def _work() -> list[Panel]:
    buckets = f"sum by (le) ({rate('reconcile_duration_seconds_bucket')})"
    return [
        lines(
            Shown("Reconciles", "Turns of jobs per second.", "ops", NO_OPERATOR, width=THIRD),
            Query(f"sum({rate('reconcile_duration_seconds_count')})", "reconciles"),
        ),
        lines(
            Shown("Time of a reconcile", "Most of it is waiting for the API server.", "s", NO_OPERATOR, width=THIRD),
            Query(f"histogram_quantile(0.5, {buckets})", "median"),
            Query(f"histogram_quantile(0.95, {buckets})", "95 %"),
            Query(f"histogram_quantile(0.99, {buckets})", "99 %"),
        ),
        lines(
            Shown("Errors", "Reconciles per second that ended in an error and are tried again.", "ops", NO_OPERATOR, width=THIRD),
            Query(f"sum({rate('reconcile_errors_total')})", "errors"),
        ),
        lines(
            Shown("Queue", "Jobs that wait to be reconciled.", "short", NO_OPERATOR, width=THIRD),
            Query(f"max by (pod) (finetune_operator_workqueue_depth{{{PODS}}})", "{{pod}}"),
        ),
        lines(
            Shown("Who acts", "1 for the operator that holds the Lease.", "short", NO_OPERATOR, width=THIRD),
            Query(f"max by (pod) (finetune_operator_leader{{{PODS}}})", "{{pod}}"),
            most=1,
        ),
        lines(
            Shown(
                "Since something was heard", "A list comes once a minute, a watch whenever something happens.", "s",
                NO_OPERATOR, ((None, "green"), (300, "red")), THIRD,
            ),
            Query(f"time() - max by (pod) (finetune_operator_watch_last_event_timestamp_seconds{{{PODS}}})", "{{pod}}"),
        ),
    ]  # fmt: skip


def _cost() -> list[Panel]:
    failed = ',code=~"0|[45]..",code!~"404|409"'
    return [
        lines(
            Shown("Requests to the API server", "Per second, without those of the watches.", "reqps", NO_OPERATOR, width=QUARTER),
            Query(f"sum by (verb, kind) ({rate('api_requests_total')})", "{{verb}} {{kind}}"),
            stacked=True,
        ),
        lines(
            Shown(
                "Requests that failed", "Per second; 404 and 409 are expected. 0: no answer; 403: a right is missing.",
                "reqps", "no request ever failed.", BAD_FROM_ONE, QUARTER,
            ),
            Query(f"sum by (code, verb, kind) ({rate('api_requests_total', failed)})", "{{code}}: {{verb}} {{kind}}"),
        ),
        lines(
            Shown("Memory", "Of the process.", "bytes", NO_OPERATOR, width=QUARTER),
            Query(
                f"max by (pod) (process_resident_memory_bytes{{{PODS}}} and on (namespace, pod) {OURS})",
                "{{pod}}",
            ),
        ),
        lines(
            Shown("Processor", "Cores that the process uses.", "none", NO_OPERATOR, width=QUARTER),
            Query(
                f"max by (pod) (rate(process_cpu_seconds_total{{{PODS}}}[$__rate_interval]) and on (namespace, pod) {OURS})",
                "{{pod}}",
            ),
        ),
    ]  # fmt: skip


def build() -> Dashboard:
    """The dashboard."""
    description = "The operator itself: who acts, whether it keeps up, what it asks of the API server."
    made = begin("operator", "FineTune / Operator", description, of_jobs=False)
    return with_rows(made, {"Now": _now(), "Work": _work(), "API server, and what it costs": _cost()})


if __name__ == "__main__":
    sys.stdout.write(render(build()))
