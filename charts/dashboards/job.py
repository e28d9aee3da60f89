"""The dashboard Job, for one FineTuneJob: progress, learning, speed, GPUs, checkpoints and restarts."""

import json
import sys
import urllib.parse

from grafana_foundation_sdk.builders import dashboard as builders

from dashboards.panels import (
    HALF,
    HIGHER_IS_BETTER,
    LOW,
    NO_THRESHOLDS,
    RED_FROM_ONE,
    SIXTH,
    SOURCE,
    THIRD,
    Panel,
    PanelOptions,
    Query,
    Thresholds,
    bar_gauge,
    new_dashboard,
    render,
    stat_panel,
    time_series,
    variable,
    with_rows,
)

JOB = 'cluster=~"$cluster",namespace=~"$namespace",finetunejob="$job"'
NOT_SCRAPED = "no pod of the job trains, or Prometheus does not scrape the job's pods."
NOT_KNOWN = "the job was deleted, or it ended more than an hour ago."


def trainer_metric(metric: str) -> str:
    """Return a query for a metric of rank 0. Pods of two attempts may overlap for a scrape. The query takes the larger value."""
    return f"max(finetune_{metric}{{{JOB}}})"


def operator_metric(metric: str) -> str:
    """Return a query for a metric that the operator exports for the job."""
    return f"max(finetune_job_{metric}{{{JOB}}})"


def rank_metric(metric: str) -> str:
    """Return a query for a metric of each rank."""
    return f"max by (rank) (finetune_{metric}{{{JOB}}})"


def _stat(title: str, description: str, unit: str, expr: str, thresholds: Thresholds = NO_THRESHOLDS) -> Panel:
    return stat_panel(PanelOptions(title, description, unit, NOT_KNOWN, thresholds, SIXTH, LOW), Query(expr))


def _overview() -> list[Panel]:
    phase = Query(f"max by (phase) (finetune_job_phase{{{JOB}}}) == 1", "{{phase}}")
    return [
        stat_panel(
            PanelOptions(
                "Phase", "For the cause: kubectl --namespace $namespace describe finetunejob $job.", "short", NOT_KNOWN,
                width=SIXTH, height=LOW,
            ),
            phase, show_name=True,
        ),
        _stat("Done", "Completed share of the optimizer steps.", "percentunit", operator_metric("progress_ratio")),
        _stat(
            "Estimated end", "When the training will end at the current rate.", "dateTimeFromNow",
            operator_metric("estimated_completion_timestamp_seconds") + " * 1000",
        ),
        _stat(
            "Goodput", "Share of the time spent on steps that were not lost.", "percentunit", operator_metric("goodput_ratio"),
            HIGHER_IS_BETTER,
        ),
        _stat(
            "Restarts", "Restarts of all kinds: failures, in place, preemptions.", "short",
            f"sum(max by (kind) (finetune_job_restarts_total{{{JOB}}}))", ((None, "green"), (1, "yellow"), (5, "red")),
        ),
        stat_panel(
            PanelOptions(
                "Since the last step", "Time since the last step of a Running job.", "s",
                "the job is not Running, or Prometheus does not scrape the operator.",
                ((None, "green"), (120, "yellow"), (600, "red")), SIXTH, LOW,
            ),
            Query(
                f"time() - {operator_metric('last_step_timestamp_seconds')} "
                f'and max(finetune_job_phase{{{JOB},phase="Running"}}) == 1'
            ),
        ),
    ]  # fmt: skip


def _learning() -> list[Panel]:
    return [
        time_series(
            PanelOptions(
                "Loss", "Training loss, averaged since the last log line, and loss on the held-out data.", "none", NOT_SCRAPED
            ),
            Query(trainer_metric("training_loss"), "training"),
            Query(trainer_metric("training_eval_loss"), "held-out"),
            minimum=None,
        ),
        time_series(
            PanelOptions(
                "Evaluation", "Metrics of the last evaluation on the held-out data.", "none", "there was no evaluation yet."
            ),
            Query(f"max by (figure) (finetune_training_evaluation{{{JOB}}})", "{{figure}}"),
            minimum=None,
        ),
        time_series(
            PanelOptions("Learning rate", "Learning rate of the last logged step.", "sci", NOT_SCRAPED),
            Query(trainer_metric("training_learning_rate"), "learning rate"),
        ),
        time_series(
            PanelOptions("Gradient norm", "Norm before clipping. A spike often precedes a loss of NaN.", "none", NOT_SCRAPED),
            Query(trainer_metric("training_gradient_norm"), "gradient norm"),
            logarithmic=True,
        ),
    ]


def _speed() -> list[Panel]:
    buckets = f"sum by (rank, le) (rate(finetune_training_step_duration_seconds_bucket{{{JOB}}}[$__rate_interval]))"
    steps = f"sum by (rank) (rate(finetune_training_step_duration_seconds_sum{{{JOB}}}[$__rate_interval]))"
    waited = f"sum by (rank) (rate(finetune_training_data_wait_seconds_total{{{JOB}}}[$__rate_interval]))"
    return [
        time_series(
            PanelOptions("Step time by rank", "Duration of optimizer steps. Processes wait for each other.", "s", NOT_SCRAPED),
            Query(f"histogram_quantile(0.5, {buckets})", "rank {{rank}}, median"),
            Query(f"histogram_quantile(0.95, {buckets})", "rank {{rank}}, 95 %"),
        ),
        time_series(
            PanelOptions(
                "Forward pass by rank", "Duration without waiting for other processes. A rank clearly above the others is a "
                "straggler: all other ranks wait for it.", "s", NOT_SCRAPED,
            ),
            Query(rank_metric("training_forward_duration_seconds"), "rank {{rank}}"),
        ),
        time_series(
            PanelOptions("Tokens per second", "Of all processes, without padding.", "short", NOT_SCRAPED, width=THIRD),
            Query(f"sum(rate(finetune_training_tokens_total{{{JOB}}}[$__rate_interval]))", "tokens per second"),
        ),
        time_series(
            PanelOptions("Samples per second", "Rows of all processes.", "short", NOT_SCRAPED, width=THIRD),
            Query(f"sum(rate(finetune_training_samples_total{{{JOB}}}[$__rate_interval]))", "samples per second"),
        ),
        time_series(
            PanelOptions(
                "Waiting for data", "Share of the step time. Above a few per cent: use faster storage or more loader workers.",
                "percentunit", NOT_SCRAPED, ((None, "green"), (0.1, "red")), THIRD,
            ),
            Query(f"{waited} / {steps}", "rank {{rank}}"),
        ),
    ]  # fmt: skip


def _gpus() -> list[Panel]:
    no_data = "the job trains on CPUs, or Prometheus does not scrape its pods."
    return [
        time_series(
            PanelOptions(
                "Model FLOPs utilisation", "FLOPs of the model ÷ peak FLOPs of the GPU in bf16, of rank 0. 0.3 to 0.5 is good.",
                "percentunit", "the job trains on CPUs, or on GPUs whose peak FLOPs are not known.", width=THIRD,
            ),
            Query(trainer_metric("training_mfu_ratio"), "MFU"),
            maximum=1,
        ),
        time_series(
            PanelOptions(
                "GPU memory", "Current and peak memory of tensors, and total memory of the GPU, by rank.", "bytes", no_data,
                width=THIRD,
            ),
            Query(rank_metric("gpu_memory_allocated_bytes"), "rank {{rank}}, current"),
            Query(rank_metric("gpu_memory_peak_bytes"), "rank {{rank}}, peak"),
            Query(rank_metric("gpu_memory_total_bytes"), "rank {{rank}}, GPU"),
        ),
        time_series(
            PanelOptions("GPUs held", "GPUs that the job's pods hold, busy or idle.", "short", NOT_KNOWN, width=THIRD),
            Query(operator_metric("gpus"), "GPUs"),
        ),
    ]  # fmt: skip


def _checkpoints() -> list[Panel]:
    return [
        time_series(
            PanelOptions(
                "Age of the newest checkpoint", "If a pod were lost now, this much work would be lost.", "s",
                "there was no checkpoint yet, or the job was deleted.", ((None, "green"), (7200, "red")), THIRD,
            ),
            Query(f"time() - {operator_metric('checkpoint_timestamp_seconds')}", "age"),
        ),
        time_series(
            PanelOptions(
                "Blocked by checkpoints", "Time that the last checkpoint blocked the training.", "s",
                "the current pods have saved no checkpoint.", width=THIRD,
            ),
            Query(trainer_metric("checkpoint_save_duration_seconds"), "last checkpoint"),
        ),
        time_series(
            PanelOptions(
                "Failures that did not stop the training", "Failed checkpoints, failed pushes, and losses of NaN.",
                "short", NOT_SCRAPED, RED_FROM_ONE, THIRD,
            ),
            Query(f"sum(finetune_checkpoint_failures_total{{{JOB}}})", "checkpoints"),
            Query(f"sum(finetune_hub_best_push_failures_total{{{JOB}}})", "pushes of the best model"),
            Query(f"sum(finetune_training_nonfinite_loss_total{{{JOB}}})", "losses of NaN"),
        ),
        bar_gauge(
            PanelOptions("Time by cause", "Time since the first attempt, as in status.goodput.", "s", NOT_KNOWN, width=HALF),
            Query(f"sort_desc(max by (cause) (finetune_job_time_seconds{{{JOB}}}))", "{{cause}}"),
        ),
        time_series(
            PanelOptions(
                "Restarts by kind", "failures and preemptions: new attempts. in_place: processes in their pods.", "short",
                NOT_KNOWN,
            ),
            Query(f"max by (kind) (finetune_job_restarts_total{{{JOB}}})", "{{kind}}"),
        ),
    ]  # fmt: skip


def restarts() -> builders.AnnotationQuery:
    """Return an annotation that marks each restart."""
    marks = builders.AnnotationQuery().name("Restarts").datasource(SOURCE).icon_color("red").enable(True)
    marks.expr(f"sum by (kind) (changes(finetune_job_restarts_total{{{JOB}}}[2m])) > 0").step("120s")
    return marks.title_format("Restart").text_format("{{kind}}").tag_keys("kind")


def logs() -> builders.DashboardLink:
    """Return a link to the logs of the job's pods in Grafana's Explore. It needs Loki."""
    query = {"refId": "A", "expr": '{namespace=~"${namespace:pipe}",pod=~"${job}-[0-9]+-.+"}'}
    pane = {"datasource": "${logs}", "queries": [query], "range": {"from": "${__from}", "to": "${__to}"}}
    address = "/explore?schemaVersion=1&panes=" + urllib.parse.quote(json.dumps({"logs": pane}), safe="${}_:")
    link = builders.DashboardLink("Logs (Loki)").url(address).target_blank(True)
    return link.tooltip("Without Loki: kubectl logs --selector finetune.dev/finetunejob=<job>")


def build() -> builders.Dashboard:
    """Return the dashboard."""
    description = "One FineTuneJob: progress, learning, speed, GPUs, checkpoints, restarts."
    made = new_dashboard("job", "FineTune / Job", description, job_namespaces=True)
    jobs = 'label_values(finetune_job_phase{cluster=~"$cluster",namespace=~"$namespace"}, finetunejob)'
    made.with_variable(variable("job", "Job", jobs, multiple=False))
    made.with_variable(builders.DatasourceVariable("logs").label("Logs").type("loki"))
    made.annotation(restarts()).link(logs())
    content = {
        "Overview": _overview(), "Learning": _learning(), "Speed": _speed(), "GPUs": _gpus(),
        "Checkpoints and restarts": _checkpoints(),
    }  # fmt: skip
    return with_rows(made, content)


if __name__ == "__main__":
    sys.stdout.write(render(build()))
