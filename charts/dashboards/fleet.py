"""Fleet: all jobs at a glance. How many, where they wait, what the GPUs do, what fails, who is slow or stuck."""

import sys

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.panels import (
    BAD_FROM_ONE,
    BETTER_IF_MORE,
    CALM,
    FULL,
    LOW,
    SIXTH,
    THIRD,
    Panel,
    Query,
    Shown,
    Steps,
    bars,
    begin,
    lines,
    number,
    render,
    rows,
    with_rows,
)

JOBS = 'cluster=~"$cluster",namespace=~"$namespace"'
BY_JOB = "cluster, namespace, finetunejob"
NO_JOBS = "there is no FineTuneJob, or Prometheus does not ask the operator."


def per_job(metric: str, **labels: str) -> str:
    """One value for each job, also while two operators are asked. labels: as regular expressions."""
    more = "".join(f',{name}=~"{value}"' for name, value in labels.items())
    return f"max by ({BY_JOB}) (finetune_job_{metric}{{{JOBS}{more}}})"


RUNNING = per_job("phase", phase="Running") + " == 1"
WAITING = per_job("phase", phase="Queued|Pending|Initializing") + " == 1"


def of_running(expr: str) -> str:
    """Of the jobs that are Running alone."""
    return f"{expr} and on ({BY_JOB}) {RUNNING}"


def _count(title: str, description: str, expr: str, steps: Steps = CALM) -> Panel:
    return number(Shown(title, description, "short", NO_JOBS, steps, SIXTH, LOW), Query(f"sum({expr})"))


def _now() -> list[Panel]:
    return [
        _count("Running", "Jobs that train or push their model.", per_job("phase", phase="Running|Publishing")),
        _count(
            "Waiting", "Jobs that wait in a queue, for machines, or load.", per_job("phase", phase="Queued|Pending|Initializing")
        ),
        _count("Restarting", "Jobs between two attempts.", per_job("phase", phase="Restarting"), BAD_FROM_ONE),
        _count("Stalled", "Running jobs that finish no step.", per_job("condition", condition="TrainingStalled"), BAD_FROM_ONE),
        _count("Failed", "Jobs that failed within the last hour.", per_job("phase", phase="Failed"), BAD_FROM_ONE),
        _count("GPUs in use", "GPUs that pods of FineTuneJobs hold.", per_job("gpus")),
    ]


def _jobs() -> list[Panel]:
    empty = NO_JOBS
    return [
        lines(
            Shown("Jobs by phase", "Finished jobs count for an hour.", "short", empty, width=THIRD),
            Query(f"sum by (phase) (max by ({BY_JOB}, phase) (finetune_job_phase{{{JOBS}}}))", "{{phase}}"),
            stacked=True,
        ),
        lines(
            Shown("GPUs in use", "GPUs that pods of FineTuneJobs hold, by namespace.", "short", empty, width=THIRD),
            Query(f"sum by (namespace) ({per_job('gpus')})", "{{namespace}}"),
            stacked=True,
        ),
        lines(
            Shown(
                "Tokens per second", "Of all jobs, by namespace, padding left out.", "short",
                "no job trains, or Prometheus does not ask the training pods.", width=THIRD,
            ),
            Query(f"sum by (namespace) (rate(finetune_training_tokens_total{{{JOBS}}}[$__rate_interval]))", "{{namespace}}"),
        ),
    ]  # fmt: skip


def _waiting() -> list[Panel]:
    since = per_job("phase_since_timestamp_seconds")
    queued, starting = per_job("time_seconds", cause="queued"), per_job("time_seconds", cause="starting")
    return [
        lines(
            Shown(
                "Longest waits", "For how long the jobs that wait now have been in their phase: Queued, Pending or Initializing.",
                "s", "no job waits.", steps=((None, "green"), (1800, "red")), width=THIRD,
            ),
            Query(f"topk(5, time() - {since} and on ({BY_JOB}) {WAITING})", "{{namespace}}/{{finetunejob}}"),
        ),
        lines(
            Shown("Queue time", "Of present jobs, and of those of the last hour.", "s", NO_JOBS, width=THIRD),
            Query(f"quantile(0.5, {queued})", "median"),
            Query(f"quantile(0.95, {queued})", "95 %"),
        ),
        lines(
            Shown(
                "Start time", "Seconds from the creation of pods to steps, all attempts together.", "s", NO_JOBS, width=THIRD
            ),
            Query(f"quantile(0.5, {starting})", "median"),
            Query(f"quantile(0.95, {starting})", "95 %"),
        ),
    ]  # fmt: skip


def _health() -> list[Panel]:
    failed = f"max by ({BY_JOB}, reason) (max_over_time(finetune_job_failure_info{{{JOBS}}}[$__range]))"
    return [
        lines(
            Shown(
                "Goodput", "Share of the time that was spent on steps that were kept.", "percentunit", NO_JOBS,
                steps=BETTER_IF_MORE, width=SIXTH,
            ),
            Query(f"quantile(0.5, {per_job('goodput_ratio')})", "median"),
            Query(f"min({per_job('goodput_ratio')})", "worst"),
            most=1,
        ),
        bars(
            Shown("Where the time went", "Of all jobs that are told of now, by cause.", "s", NO_JOBS, width=THIRD),
            Query(f"sort_desc(sum by (cause) (max by ({BY_JOB}, cause) (finetune_job_time_seconds{{{JOBS}}})))", "{{cause}}"),
        ),
        bars(
            Shown(
                "Failures by reason", "Jobs of which an attempt failed in the time that is looked at. Reasons: docs/reasons.md.",
                "short", "nothing failed.", steps=((None, "orange"),), width=SIXTH,
            ),
            Query(f"sort_desc(count by (reason) ({failed}))", "{{reason}}"),
        ),
        lines(
            Shown("Restarts", "By kind: of the gang after failures, in place, after preemptions.", "short", NO_JOBS, width=THIRD),
            Query(
                f"sum by (kind) (increase(finetune_job_restarts_total{{{JOBS}}}[$__rate_interval]))", "{{kind}}"
            ),
        ),
    ]  # fmt: skip


def _table() -> list[Panel]:
    trained = f"sum by ({BY_JOB}) (rate(finetune_training_tokens_total{{{JOBS}}}[5m]))"
    return [
        rows(
            Shown(
                "Running jobs, the stuck and the slow first", "Since its last step, how far it is, how fast, and how well used.",
                "short", "no job is Running.", width=FULL, height=10,
            ),
            Query(of_running(f"time() - {per_job('last_step_timestamp_seconds')}"), "Since the last step"),
            Query(of_running(per_job("progress_ratio")), "Done"),
            Query(of_running(f"{per_job('estimated_completion_timestamp_seconds')} - time()"), "Left"),
            Query(trained, "Tokens per second"),
            Query(f"max by ({BY_JOB}) (finetune_training_mfu_ratio{{{JOBS}}})", "MFU"),
            Query(of_running(per_job("goodput_ratio")), "Goodput"),
            Query(of_running(per_job("gpus")), "GPUs"),
            Query(of_running(f"sum by ({BY_JOB}) (max by ({BY_JOB}, kind) (finetune_job_restarts_total{{{JOBS}}}))"), "Restarts"),
            units={
                "Since the last step": "s", "Done": "percentunit", "Left": "s", "Tokens per second": "short",
                "MFU": "percentunit", "Goodput": "percentunit", "GPUs": "short", "Restarts": "short",
            },
            sort_by="Since the last step",
        )
    ]  # fmt: skip


def build() -> Dashboard:
    """The dashboard."""
    description = "All FineTuneJobs of a cluster: phases, waits, GPUs, goodput, failures, the slow and the stuck."
    made = begin("fleet", "FineTune / Fleet", description, of_jobs=True)
    content = {
        "Now": _now(), "Jobs": _jobs(), "Waiting": _waiting(), "Time and failures": _health(), "Who is slow or stuck": _table(),
    }  # fmt: skip
    return with_rows(made, content)


if __name__ == "__main__":
    sys.stdout.write(render(build()))
