"""The dashboard Fleet, for all jobs: phases, waiting times, GPUs, failures, and slow or stalled jobs."""

import sys

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.panels import (
    FULL,
    HIGHER_IS_BETTER,
    LOW,
    NO_THRESHOLDS,
    RED_FROM_ONE,
    SIXTH,
    THIRD,
    Panel,
    PanelOptions,
    Query,
    Thresholds,
    bar_gauge,
    new_dashboard,
    render,
    stat_panel,
    table_panel,
    time_series,
    with_rows,
)

JOBS = 'cluster=~"$cluster",namespace=~"$namespace"'
BY_JOB = "cluster, namespace, finetunejob"
NO_JOBS = "there is no FineTuneJob, or Prometheus does not scrape the operator."


def per_job(metric: str, **labels: str) -> str:
    """Return a query with one value for each job, even if Prometheus scrapes two operators. labels: regular expressions."""
    matchers = "".join(f',{name}=~"{value}"' for name, value in labels.items())
    return f"max by ({BY_JOB}) (finetune_job_{metric}{{{JOBS}{matchers}}})"


RUNNING = per_job("phase", phase="Running") + " == 1"
WAITING = per_job("phase", phase="Queued|Pending|Initializing") + " == 1"


def if_running(expr: str) -> str:
    """Restrict a query to the jobs that are Running."""
    return f"{expr} and on ({BY_JOB}) {RUNNING}"


def _count(title: str, description: str, expr: str, thresholds: Thresholds = NO_THRESHOLDS) -> Panel:
    return stat_panel(PanelOptions(title, description, "short", NO_JOBS, thresholds, SIXTH, LOW), Query(f"sum({expr})"))


def _now() -> list[Panel]:
    return [
        _count("Running", "Jobs that train or push their model.", per_job("phase", phase="Running|Publishing")),
        _count(
            "Waiting",
            "Jobs that wait in a queue or for nodes, or that are loading.",
            per_job("phase", phase="Queued|Pending|Initializing"),
        ),
        _count("Restarting", "Jobs that wait for their next attempt.", per_job("phase", phase="Restarting"), RED_FROM_ONE),
        _count("Stalled", "Running jobs that make no progress.", per_job("condition", condition="TrainingStalled"), RED_FROM_ONE),
        _count("Failed", "Jobs that failed within the last hour.", per_job("phase", phase="Failed"), RED_FROM_ONE),
        _count("GPUs in use", "GPUs that pods of FineTuneJobs hold.", per_job("gpus")),
    ]


def _jobs() -> list[Panel]:
    no_data = NO_JOBS
    return [
        time_series(
            PanelOptions("Jobs by phase", "Finished jobs stay for an hour.", "short", no_data, width=THIRD),
            Query(f"sum by (phase) (max by ({BY_JOB}, phase) (finetune_job_phase{{{JOBS}}}))", "{{phase}}"),
            stacked=True,
        ),
        time_series(
            PanelOptions("GPUs in use", "GPUs that pods of FineTuneJobs hold, by namespace.", "short", no_data, width=THIRD),
            Query(f"sum by (namespace) ({per_job('gpus')})", "{{namespace}}"),
            stacked=True,
        ),
        time_series(
            PanelOptions(
                "Tokens per second", "Of all jobs, by namespace, without padding.", "short",
                "no job trains, or Prometheus does not scrape the training pods.", width=THIRD,
            ),
            Query(f"sum by (namespace) (rate(finetune_training_tokens_total{{{JOBS}}}[$__rate_interval]))", "{{namespace}}"),
        ),
    ]  # fmt: skip


def _waiting() -> list[Panel]:
    since = per_job("phase_since_timestamp_seconds")
    queued, starting = per_job("time_seconds", cause="queued"), per_job("time_seconds", cause="starting")
    return [
        time_series(
            PanelOptions(
                "Longest waits", "How long the waiting jobs have been in their phase: Queued, Pending or Initializing.",
                "s", "no job waits.", thresholds=((None, "green"), (1800, "red")), width=THIRD,
            ),
            Query(f"topk(5, time() - {since} and on ({BY_JOB}) {WAITING})", "{{namespace}}/{{finetunejob}}"),
        ),
        time_series(
            PanelOptions(
                "Queue time", "Of current jobs, and of jobs that ended within the last hour.", "s", NO_JOBS, width=THIRD
            ),
            Query(f"quantile(0.5, {queued})", "median"),
            Query(f"quantile(0.95, {queued})", "95 %"),
        ),
        time_series(
            PanelOptions(
                "Start time", "Time from the creation of pods to the next step, over all attempts of a job.", "s", NO_JOBS,
                width=THIRD,
            ),
            Query(f"quantile(0.5, {starting})", "median"),
            Query(f"quantile(0.95, {starting})", "95 %"),
        ),
    ]  # fmt: skip


def _time_and_failures() -> list[Panel]:
    failed = f"max by ({BY_JOB}, reason) (max_over_time(finetune_job_failure_info{{{JOBS}}}[$__range]))"
    return [
        time_series(
            PanelOptions(
                "Goodput", "Share of the time spent on steps that were not lost.", "percentunit", NO_JOBS,
                thresholds=HIGHER_IS_BETTER, width=SIXTH,
            ),
            Query(f"quantile(0.5, {per_job('goodput_ratio')})", "median"),
            Query(f"min({per_job('goodput_ratio')})", "worst"),
            maximum=1,
        ),
        bar_gauge(
            PanelOptions(
                "Time by cause", "Of current jobs, and of jobs that ended within the last hour.", "s", NO_JOBS, width=THIRD
            ),
            Query(f"sort_desc(sum by (cause) (max by ({BY_JOB}, cause) (finetune_job_time_seconds{{{JOBS}}})))", "{{cause}}"),
        ),
        bar_gauge(
            PanelOptions(
                "Failures by reason", "Jobs that failed, within the selected time range. Reasons: docs/reasons.md.",
                "short", "no job failed.", thresholds=((None, "orange"),), width=SIXTH,
            ),
            Query(f"sort_desc(count by (reason) ({failed}))", "{{reason}}"),
        ),
        time_series(
            PanelOptions(
                "Restarts", "By kind. failures and preemptions: new attempts. in_place: processes in their pods.", "short",
                NO_JOBS, width=THIRD,
            ),
            Query(
                f"sum by (kind) (increase(finetune_job_restarts_total{{{JOBS}}}[$__rate_interval]))", "{{kind}}"
            ),
        ),
    ]  # fmt: skip


def _running_jobs() -> list[Panel]:
    trained = f"sum by ({BY_JOB}) (rate(finetune_training_tokens_total{{{JOBS}}}[5m]))"
    return [
        table_panel(
            PanelOptions(
                "Running jobs", "Progress, throughput and utilisation. The job with the oldest last step comes first.",
                "short", "no job is Running.", width=FULL, height=10,
            ),
            Query(if_running(f"time() - {per_job('last_step_timestamp_seconds')}"), "Since the last step"),
            Query(if_running(per_job("progress_ratio")), "Done"),
            Query(if_running(f"{per_job('estimated_completion_timestamp_seconds')} - time()"), "Left"),
            Query(trained, "Tokens per second"),
            Query(f"max by ({BY_JOB}) (finetune_training_mfu_ratio{{{JOBS}}})", "MFU"),
            Query(if_running(per_job("goodput_ratio")), "Goodput"),
            Query(if_running(per_job("gpus")), "GPUs"),
            Query(if_running(f"sum by ({BY_JOB}) (max by ({BY_JOB}, kind) (finetune_job_restarts_total{{{JOBS}}}))"), "Restarts"),
            units={
                "Since the last step": "s", "Done": "percentunit", "Left": "s", "Tokens per second": "short",
                "MFU": "percentunit", "Goodput": "percentunit", "GPUs": "short", "Restarts": "short",
            },
            sort_by="Since the last step",
        )
    ]  # fmt: skip


def build() -> Dashboard:
    """Return the dashboard."""
    description = "All FineTuneJobs of a cluster: phases, waiting times, GPUs, goodput, failures, slow and stalled jobs."
    made = new_dashboard("fleet", "FineTune / Fleet", description, job_namespaces=True)
    content = {
        "Now": _now(), "Jobs": _jobs(), "Waiting": _waiting(), "Time and failures": _time_and_failures(),
        "Slow and stalled jobs": _running_jobs(),
    }  # fmt: skip
    return with_rows(made, content)


if __name__ == "__main__":
    sys.stdout.write(render(build()))
