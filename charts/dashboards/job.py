"""Job: one FineTuneJob. How far it is, what it learns, how fast, what holds it up, and whether its work is safe."""

import json
import sys
import urllib.parse

from grafana_foundation_sdk.builders import dashboard as builders

from dashboards.panels import (
    BAD_FROM_ONE,
    BETTER_IF_MORE,
    CALM,
    HALF,
    LOW,
    SIXTH,
    SOURCE,
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
    variable,
    with_rows,
)

JOB = 'cluster=~"$cluster",namespace=~"$namespace",finetunejob="$job"'
NOT_ASKED = "Prometheus does not ask the job's pods, or none of them trains."
NOT_KNOWN = "the job is gone, or ended more than an hour ago."


def of_trainer(metric: str) -> str:
    """What rank 0 says; of two attempts' pods, which overlap for a scrape, the larger."""
    return f"max(finetune_{metric}{{{JOB}}})"


def of_operator(metric: str) -> str:
    """What the operator says of the job."""
    return f"max(finetune_job_{metric}{{{JOB}}})"


def by_rank(metric: str) -> str:
    """What each process says."""
    return f"max by (rank) (finetune_{metric}{{{JOB}}})"


def _figure(title: str, description: str, unit: str, expr: str, steps: Steps = CALM) -> Panel:
    return number(Shown(title, description, unit, NOT_KNOWN, steps, SIXTH, LOW), Query(expr))


def _overview() -> list[Panel]:
    phase = Query(f"max by (phase) (finetune_job_phase{{{JOB}}}) == 1", "{{phase}}")
    return [
        number(
            Shown(
                "Phase", "Why it is there: kubectl --namespace $namespace describe finetunejob $job.", "short", NOT_KNOWN,
                width=SIXTH, height=LOW,
            ),
            phase, name_instead=True,
        ),
        _figure("Done", "Share of the optimizer steps.", "percentunit", of_operator("progress_ratio")),
        _figure(
            "Through", "When the training will be through at the present rate.", "dateTimeFromNow",
            of_operator("estimated_completion_timestamp_seconds") + " * 1000",
        ),
        _figure("Goodput", "Of the time, on steps that were kept.", "percentunit", of_operator("goodput_ratio"), BETTER_IF_MORE),
        _figure(
            "Restarts", "Of all kinds: failures, in place, preemptions.", "short",
            f"sum(max by (kind) (finetune_job_restarts_total{{{JOB}}}))", ((None, "green"), (1, "yellow"), (5, "red")),
        ),
        number(
            Shown(
                "Since the last step", "Seconds, of a job that is Running.", "s",
                "the job is not Running, or Prometheus does not ask the operator.",
                ((None, "green"), (120, "yellow"), (600, "red")), SIXTH, LOW,
            ),
            Query(
                f"time() - {of_operator('last_step_timestamp_seconds')} "
                f'and max(finetune_job_phase{{{JOB},phase="Running"}}) == 1'
            ),
        ),
    ]  # fmt: skip


def _learning() -> list[Panel]:
    return [
        lines(
            Shown("Loss", "Training loss, mean since the last log line, and loss on the held-out data.", "none", NOT_ASKED),
            Query(of_trainer("training_loss"), "training"),
            Query(of_trainer("training_eval_loss"), "held-out"),
            least=None,
        ),
        lines(
            Shown("Evaluation", "Figures of the last evaluation on the held-out data.", "none", "there was no evaluation yet."),
            Query(f"max by (figure) (finetune_training_evaluation{{{JOB}}})", "{{figure}}"),
            least=None,
        ),
        lines(
            Shown("Learning rate", "Of the last logged step.", "sci", NOT_ASKED),
            Query(of_trainer("training_learning_rate"), "learning rate"),
        ),
        lines(
            Shown("Gradient norm", "Before clipping. A spike before a loss of NaN says where to look.", "none", NOT_ASKED),
            Query(of_trainer("training_gradient_norm"), "gradient norm"),
            logarithmic=True,
        ),
    ]


def _speed() -> list[Panel]:
    buckets = f"sum by (rank, le) (rate(finetune_training_step_duration_seconds_bucket{{{JOB}}}[$__rate_interval]))"
    steps = f"sum by (rank) (rate(finetune_training_step_duration_seconds_sum{{{JOB}}}[$__rate_interval]))"
    waited = f"sum by (rank) (rate(finetune_training_data_wait_seconds_total{{{JOB}}}[$__rate_interval]))"
    return [
        lines(
            Shown("Step time by rank", "Of optimizer steps; processes wait for each other.", "s", NOT_ASKED),
            Query(f"histogram_quantile(0.5, {buckets})", "rank {{rank}}, median"),
            Query(f"histogram_quantile(0.95, {buckets})", "rank {{rank}}, 95 %"),
        ),
        lines(
            Shown(
                "Forward pass by rank", "Of each process alone: one that is clearly above the others is the straggler, for which "
                "all of them wait.", "s", NOT_ASKED,
            ),
            Query(by_rank("training_forward_duration_seconds"), "rank {{rank}}"),
        ),
        lines(
            Shown("Tokens per second", "Of all processes, padding left out.", "short", NOT_ASKED, width=THIRD),
            Query(f"sum(rate(finetune_training_tokens_total{{{JOB}}}[$__rate_interval]))", "tokens per second"),
        ),
        lines(
            Shown("Samples per second", "Rows of all processes.", "short", NOT_ASKED, width=THIRD),
            Query(f"sum(rate(finetune_training_samples_total{{{JOB}}}[$__rate_interval]))", "samples per second"),
        ),
        lines(
            Shown(
                "Waiting for data", "Share of the time of steps. Above a few per cent: faster storage, more loader workers.",
                "percentunit", NOT_ASKED, ((None, "green"), (0.1, "red")), THIRD,
            ),
            Query(f"{waited} / {steps}", "rank {{rank}}"),
        ),
    ]  # fmt: skip


def _gpus() -> list[Panel]:
    empty = "the job trains on CPUs, or Prometheus does not ask its pods."
    return [
        lines(
            Shown(
                "Model FLOPs utilisation", "What the model needs ÷ what the GPU can do in bf16, of rank 0. 0.3 to 0.5 is good.",
                "percentunit", "the job trains on CPUs or on GPUs of which the peak is not known.", width=THIRD,
            ),
            Query(of_trainer("training_mfu_ratio"), "MFU"),
            most=1,
        ),
        lines(
            Shown("GPU memory", "Of tensors now and at most, and of the GPU, by rank.", "bytes", empty, width=THIRD),
            Query(by_rank("gpu_memory_allocated_bytes"), "rank {{rank}}, now"),
            Query(by_rank("gpu_memory_peak_bytes"), "rank {{rank}}, at most"),
            Query(by_rank("gpu_memory_total_bytes"), "rank {{rank}}, GPU"),
        ),
        lines(
            Shown("GPUs held", "That the job's pods hold, working or not.", "short", NOT_KNOWN, width=THIRD),
            Query(of_operator("gpus"), "GPUs"),
        ),
    ]  # fmt: skip


def _safety() -> list[Panel]:
    return [
        lines(
            Shown(
                "Age of the newest checkpoint", "So much work would be lost with a pod now.", "s",
                "there was no checkpoint yet, or the job is gone.", ((None, "green"), (7200, "red")), THIRD,
            ),
            Query(f"time() - {of_operator('checkpoint_timestamp_seconds')}", "age"),
        ),
        lines(
            Shown(
                "Standing still for checkpoints", "Time that the training stood still for the last one.", "s",
                "there was no checkpoint by the present pods.", width=THIRD,
            ),
            Query(of_trainer("checkpoint_save_duration_seconds"), "last checkpoint"),
        ),
        lines(
            Shown(
                "Failures that the training outlived", "Checkpoints and pushes that failed, losses of NaN.",
                "short", NOT_ASKED, BAD_FROM_ONE, THIRD,
            ),
            Query(f"sum(finetune_checkpoint_failures_total{{{JOB}}})", "checkpoints"),
            Query(f"sum(finetune_hub_best_push_failures_total{{{JOB}}})", "pushes of the best model"),
            Query(f"sum(finetune_training_nonfinite_loss_total{{{JOB}}})", "losses of NaN"),
        ),
        bars(
            Shown("Where the time went", "Since the first attempt, as in status.goodput.", "s", NOT_KNOWN, width=HALF),
            Query(f"sort_desc(max by (cause) (finetune_job_time_seconds{{{JOB}}}))", "{{cause}}"),
        ),
        lines(
            Shown("Restarts by kind", "Of the gang after failures, in place, after preemptions.", "short", NOT_KNOWN),
            Query(f"max by (kind) (finetune_job_restarts_total{{{JOB}}})", "{{kind}}"),
        ),
    ]  # fmt: skip


def restarts() -> builders.AnnotationQuery:
    """A mark at each restart."""
    marks = builders.AnnotationQuery().name("Restarts").datasource(SOURCE).icon_color("red").enable(True)
    marks.expr(f"sum by (kind) (changes(finetune_job_restarts_total{{{JOB}}}[2m])) > 0").step("120s")
    return marks.title_format("Restart").text_format("{{kind}}").tag_keys("kind")


def logs() -> builders.DashboardLink:
    """The logs of the job's pods in Grafana's Explore, where there is Loki."""
    query = {"refId": "A", "expr": '{namespace=~"${namespace:pipe}",pod=~"${job}-[0-9]+-.+"}'}
    pane = {"datasource": "${logs}", "queries": [query], "range": {"from": "${__from}", "to": "${__to}"}}
    address = "/explore?schemaVersion=1&panes=" + urllib.parse.quote(json.dumps({"logs": pane}), safe="${}_:")
    link = builders.DashboardLink("Logs (Loki)").url(address).target_blank(True)
    return link.tooltip("Without Loki: kubectl logs --selector finetune.dev/finetunejob=<job>")


def build() -> builders.Dashboard:
    """The dashboard."""
    description = "One FineTuneJob: progress, learning, speed, GPUs, checkpoints, restarts."
    made = begin("job", "FineTune / Job", description, of_jobs=True)
    jobs = 'label_values(finetune_job_phase{cluster=~"$cluster",namespace=~"$namespace"}, finetunejob)'
    made.with_variable(variable("job", "Job", jobs, several=False))
    made.with_variable(builders.DatasourceVariable("logs").label("Logs").type("loki"))
    made.annotation(restarts()).link(logs())
    content = {
        "Overview": _overview(), "Learning": _learning(), "Speed": _speed(), "GPUs": _gpus(), "Is the work safe?": _safety(),
    }  # fmt: skip
    return with_rows(made, content)


if __name__ == "__main__":
    sys.stdout.write(render(build()))
