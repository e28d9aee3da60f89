"""The declarations of all metrics of operator and trainer. Exporters, docs/metrics.md, dashboards and tests read them.

The label of the job is ``finetunejob``, because Prometheus uses ``job`` and kube-state-metrics uses ``job_name``. No label holds
a uid, a step or the text of an error: each new value of a label creates a new series.
"""

import dataclasses
from typing import Final, Literal

# The operator exports the series of a job for this long after its end. Prometheus can then scrape them, and their number stays
# small.
SERIES_RETENTION_SECONDS: Final = 3600.0


@dataclasses.dataclass(frozen=True)
class Metric:
    """The declaration of a metric.

    labels: in order. buckets: upper bounds in the metric's unit, for histograms. only: where or when the series exists, if it
    does not exist for every job.
    """

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    only: str = ""


ON_A_GPU: Final = "on a GPU"
_JOB: Final = ("namespace", "finetunejob")
_RANK: Final = (*_JOB, "rank")

# Trainer, rank 0.
TRAINING_LOSS: Final = Metric("finetune_training_loss", "gauge", "Training loss, averaged since the last log line.", _JOB)
TRAINING_EVAL_LOSS: Final = Metric(
    "finetune_training_eval_loss", "gauge", "Loss on the held-out data.", _JOB, only="after the first evaluation"
)
TRAINING_EVALUATION: Final = Metric(
    "finetune_training_evaluation",
    "gauge",
    "A metric of the last evaluation. The label figure is its name in status.evaluation.metrics.",
    (*_JOB, "figure"),
    only="after the first evaluation",
)
TRAINING_LEARNING_RATE: Final = Metric("finetune_training_learning_rate", "gauge", "Learning rate of the last step.", _JOB)
TRAINING_GRADIENT_NORM: Final = Metric(
    "finetune_training_gradient_norm", "gauge", "Norm of the gradient of the last logged step, before clipping.", _JOB
)
TRAINING_STEP: Final = Metric("finetune_training_step", "gauge", "Optimizer steps done.", _JOB)
TRAINING_MAX_STEPS: Final = Metric("finetune_training_max_steps", "gauge", "Total number of optimizer steps.", _JOB)
TRAINING_SAMPLES: Final = Metric(
    "finetune_training_samples_total", "counter", "Rows that all processes together have trained on.", _JOB
)
TRAINING_INFO: Final = Metric(
    "finetune_training_info",
    "gauge",
    "Always 1. The labels describe the training.",
    (*_JOB, "task", "precision", "processes"),
)
TRAINING_MFU: Final = Metric(
    "finetune_training_mfu_ratio",
    "gauge",
    "Model FLOPs utilisation of rank 0 since the last log line, 0 to 1: FLOPs of the model ÷ peak FLOPs of the GPU in bf16.",
    _JOB,
    only="on a GPU whose peak FLOPs are known",
)
NON_FINITE_LOSS: Final = Metric(
    "finetune_training_nonfinite_loss_total", "counter", "Steps with a loss of NaN or infinity.", _JOB
)

# Trainer, every rank.
TRAINING_TOKENS: Final = Metric("finetune_training_tokens_total", "counter", "Tokens that this process has trained on.", _RANK)
STEP_DURATION: Final = Metric(
    "finetune_training_step_duration_seconds",
    "histogram",
    "Duration of an optimizer step.",
    _RANK,
    (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250),
)
LAST_STEP: Final = Metric(
    "finetune_training_last_step_timestamp_seconds", "gauge", "When the last optimizer step ended, Unix time.", _RANK
)
DATA_WAIT: Final = Metric(
    "finetune_training_data_wait_seconds_total",
    "counter",
    "Time that this process waited for its next batch. It is part of the duration of the steps.",
    _RANK,
)
FORWARD_DURATION: Final = Metric(
    "finetune_training_forward_duration_seconds",
    "gauge",
    "Duration of a forward pass of this process, averaged since the last log line. It excludes waiting for other processes.",
    _RANK,
)
GPU_MEMORY_ALLOCATED: Final = Metric(
    "finetune_gpu_memory_allocated_bytes",
    "gauge",
    "GPU memory of this process's tensors at the last log line.",
    _RANK,
    only=ON_A_GPU,
)
GPU_MEMORY_PEAK: Final = Metric(
    "finetune_gpu_memory_peak_bytes", "gauge", "Peak GPU memory of this process's tensors.", _RANK, only=ON_A_GPU
)
GPU_MEMORY_TOTAL: Final = Metric(
    "finetune_gpu_memory_total_bytes", "gauge", "Total memory of this process's GPU.", _RANK, only=ON_A_GPU
)

# Trainer, checkpoints and Hub.
CHECKPOINT_LAST_SUCCESS: Final = Metric(
    "finetune_checkpoint_last_success_timestamp_seconds", "gauge", "When the newest checkpoint was complete, Unix time.", _JOB
)
CHECKPOINT_DURATION: Final = Metric(
    "finetune_checkpoint_save_duration_seconds", "gauge", "Time that the last checkpoint blocked the training.", _JOB
)
CHECKPOINT_FAILURES: Final = Metric(
    "finetune_checkpoint_failures_total", "counter", "Checkpoints that could not be saved, for example on a full disk.", _JOB
)
HUB_PUSH_DURATION: Final = Metric(
    "finetune_hub_push_duration_seconds",
    "gauge",
    "Duration of the push of the finished model.",
    _JOB,
    only="for a job that publishes, between its push and its end",
)
HUB_PUSH_FAILURES: Final = Metric(
    "finetune_hub_push_failures_total", "counter", "Pushes of the finished model that failed.", _JOB
)
HUB_BEST_PUSH_FAILURES: Final = Metric(
    "finetune_hub_best_push_failures_total",
    "counter",
    "Pushes of the best model so far that failed. The training continues.",
    _JOB,
)

# Metrics by exporter: rank 0 for the whole job, every rank about itself, and the launcher.
RANK_0_METRICS: Final = (
    TRAINING_LOSS,
    TRAINING_EVAL_LOSS,
    TRAINING_EVALUATION,
    TRAINING_LEARNING_RATE,
    TRAINING_GRADIENT_NORM,
    TRAINING_STEP,
    TRAINING_MAX_STEPS,
    TRAINING_SAMPLES,
    TRAINING_INFO,
    TRAINING_MFU,
    NON_FINITE_LOSS,
    CHECKPOINT_LAST_SUCCESS,
    CHECKPOINT_DURATION,
    CHECKPOINT_FAILURES,
    HUB_BEST_PUSH_FAILURES,
)
RANK_METRICS: Final = (
    TRAINING_TOKENS,
    STEP_DURATION,
    LAST_STEP,
    DATA_WAIT,
    FORWARD_DURATION,
    GPU_MEMORY_ALLOCATED,
    GPU_MEMORY_PEAK,
    GPU_MEMORY_TOTAL,
)
LAUNCHER_METRICS: Final = (HUB_PUSH_DURATION, HUB_PUSH_FAILURES)
TRAINER_METRICS: Final = (*RANK_0_METRICS, *RANK_METRICS, *LAUNCHER_METRICS)

# Operator: metrics of jobs.
JOB_PHASE: Final = Metric(
    "finetune_job_phase", "gauge", "1 for the current phase of the job, 0 for the others.", (*_JOB, "phase")
)
JOB_PHASE_SINCE: Final = Metric(
    "finetune_job_phase_since_timestamp_seconds", "gauge", "When the job entered its current phase, Unix time.", _JOB
)
JOB_INFO: Final = Metric("finetune_job_info", "gauge", "Always 1. The labels describe the job.", (*_JOB, "task", "model"))
JOB_CREATED: Final = Metric("finetune_job_created_timestamp_seconds", "gauge", "When the job was created, Unix time.", _JOB)
JOB_START: Final = Metric(
    "finetune_job_start_timestamp_seconds", "gauge", "When the job's first pods were created, Unix time.", _JOB
)
JOB_COMPLETION: Final = Metric(
    "finetune_job_completion_timestamp_seconds", "gauge", "When the job ended, Unix time.", _JOB, only="for a finished job"
)
JOB_GPUS: Final = Metric("finetune_job_gpus", "gauge", "GPUs that the job's pods currently hold.", _JOB)
JOB_PROGRESS: Final = Metric("finetune_job_progress_ratio", "gauge", "Completed share of the optimizer steps, 0 to 1.", _JOB)
JOB_ETA: Final = Metric(
    "finetune_job_estimated_completion_timestamp_seconds",
    "gauge",
    "When the training will end at the current rate, Unix time.",
    _JOB,
    only="for a running job",
)
JOB_LAST_STEP: Final = Metric(
    "finetune_job_last_step_timestamp_seconds",
    "gauge",
    "When the last optimizer step ended, Unix time. It comes from the status, which is updated every ten seconds.",
    _JOB,
)
JOB_CHECKPOINT: Final = Metric(
    "finetune_job_checkpoint_timestamp_seconds", "gauge", "When the newest checkpoint was complete, Unix time.", _JOB
)
JOB_FINAL_LOSS: Final = Metric("finetune_job_final_loss", "gauge", "Training loss at the end.", _JOB, only="for a finished job")
JOB_RESTARTS: Final = Metric(
    "finetune_job_restarts_total",
    "counter",
    "Restarts by kind. failures: new attempts after failures. in_place: restarts of processes in their pods. preemptions: new "
    "attempts after pods or nodes were taken away.",
    (*_JOB, "kind"),
)
JOB_FAILURE: Final = Metric(
    "finetune_job_failure_info",
    "gauge",
    "1 if the job failed. The label reason is a reason of docs/reasons.md.",
    (*_JOB, "reason"),
    only="for a failed job",
)
JOB_FINDING: Final = Metric(
    "finetune_job_finding",
    "gauge",
    "1 for each finding of the job. The label type is a finding of docs/findings.md.",
    (*_JOB, "type"),
    only="for a job with findings",
)
JOB_CONDITION: Final = Metric(
    "finetune_job_condition",
    "gauge",
    "1 if the job has the condition: Blocked, CheckpointFailing, ProgressUnknown, TrainingStalled.",
    (*_JOB, "condition"),
)
JOB_GOODPUT: Final = Metric(
    "finetune_job_goodput_ratio", "gauge", "Share of the time spent on steps that were not lost, 0 to 1.", _JOB
)
JOB_TIME: Final = Metric(
    "finetune_job_time_seconds",
    "gauge",
    "Time since the first attempt by cause, as in status.goodput, up to the last write of the status.",
    (*_JOB, "cause"),
)

# Operator: metrics of the operator process.
RECONCILE_DURATION: Final = Metric(
    "finetune_operator_reconcile_duration_seconds",
    "histogram",
    "Duration of a reconcile. `read` says from where: `cache`, or `live` from the API server.",
    ("read",),
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
RECONCILE_WORK: Final = Metric(
    "finetune_operator_reconcile_work_seconds",
    "histogram",
    "The part of a reconcile in which the operator worked. In the rest it waited, nearly always for the API server.",
    ("read",),
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1),
)
RECONCILE_ERRORS: Final = Metric(
    "finetune_operator_reconcile_errors_total", "counter", "Reconciles that failed. They are retried."
)
WORKQUEUE_DEPTH: Final = Metric("finetune_operator_workqueue_depth", "gauge", "Jobs that wait for a reconcile.")
WATCH_LAST_EVENT: Final = Metric(
    "finetune_operator_watch_last_event_timestamp_seconds",
    "gauge",
    "When a watch or a list last delivered a FineTuneJob, Unix time.",
)
LEADER: Final = Metric("finetune_operator_leader", "gauge", "1 if this operator is the leader, 0 if it is a standby.")
API_REQUESTS: Final = Metric(
    "finetune_operator_api_requests_total",
    "counter",
    "Requests to the API server, without the watch of FineTuneJobs. code is 0 if there was no response.",
    ("verb", "kind", "code"),
)

JOB_METRICS: Final = (
    JOB_PHASE,
    JOB_PHASE_SINCE,
    JOB_INFO,
    JOB_CREATED,
    JOB_START,
    JOB_COMPLETION,
    JOB_GPUS,
    JOB_PROGRESS,
    JOB_ETA,
    JOB_LAST_STEP,
    JOB_CHECKPOINT,
    JOB_FINAL_LOSS,
    JOB_RESTARTS,
    JOB_FAILURE,
    JOB_FINDING,
    JOB_CONDITION,
    JOB_GOODPUT,
    JOB_TIME,
)
PROCESS_METRICS: Final = (
    RECONCILE_DURATION,
    RECONCILE_WORK,
    RECONCILE_ERRORS,
    WORKQUEUE_DEPTH,
    WATCH_LAST_EVENT,
    LEADER,
    API_REQUESTS,
)
OPERATOR_METRICS: Final = (*JOB_METRICS, *PROCESS_METRICS)
