"""Every metric of operator and trainer, declared once: exporters, docs/metrics.md, dashboards and tests take it from here.

Label ``finetunejob``, because ``job`` is Prometheus's and ``job_name`` that of kube-state-metrics. Never a uid, a step or the
text of an error in a label: each new value is a new series.
"""

import dataclasses
from typing import Final, Literal

# For so long after its end a job's series stay at the operator: long enough to be seen, short enough to stay few.
SECONDS_AFTER_END: Final = 3600.0


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric's declaration. labels: in order; buckets: upper bounds in the metric's unit, for histograms.

    only: where or when there is such a series, if not for every job.
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
TRAINING_LOSS: Final = Metric("finetune_training_loss", "gauge", "Training loss, mean since the last log line.", _JOB)
TRAINING_EVAL_LOSS: Final = Metric(
    "finetune_training_eval_loss", "gauge", "Loss on the held-out data.", _JOB, only="after the first evaluation"
)
TRAINING_EVALUATION: Final = Metric(
    "finetune_training_evaluation",
    "gauge",
    "A figure of the last evaluation, by its name in status.evaluation.metrics.",
    (*_JOB, "figure"),
    only="after the first evaluation",
)
TRAINING_LEARNING_RATE: Final = Metric("finetune_training_learning_rate", "gauge", "Learning rate of the last step.", _JOB)
TRAINING_GRADIENT_NORM: Final = Metric(
    "finetune_training_gradient_norm", "gauge", "Norm of the gradient of the last logged step, before clipping.", _JOB
)
TRAINING_STEP: Final = Metric("finetune_training_step", "gauge", "Optimizer steps done.", _JOB)
TRAINING_MAX_STEPS: Final = Metric("finetune_training_max_steps", "gauge", "Optimizer steps in all.", _JOB)
TRAINING_SAMPLES: Final = Metric(
    "finetune_training_samples_total", "counter", "Rows trained on, by all processes together.", _JOB
)
TRAINING_INFO: Final = Metric(
    "finetune_training_info", "gauge", "Always 1; what is trained, in labels.", (*_JOB, "task", "precision", "processes")
)
TRAINING_MFU: Final = Metric(
    "finetune_training_mfu_ratio",
    "gauge",
    "Model FLOPs utilisation since the last log line: what the model needs ÷ what the GPU can do in bf16, of rank 0 (0 to 1).",
    _JOB,
    only="on a GPU of which the peak is known",
)
NON_FINITE_LOSS: Final = Metric(
    "finetune_training_nonfinite_loss_total", "counter", "Steps of which the loss was no number.", _JOB
)

# Trainer, every rank.
TRAINING_TOKENS: Final = Metric("finetune_training_tokens_total", "counter", "Tokens trained on by this process.", _RANK)
STEP_DURATION: Final = Metric(
    "finetune_training_step_duration_seconds",
    "histogram",
    "Time of an optimizer step.",
    _RANK,
    (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250),
)
LAST_STEP: Final = Metric(
    "finetune_training_last_step_timestamp_seconds", "gauge", "When the last optimizer step ended, Unix time.", _RANK
)
DATA_WAIT: Final = Metric(
    "finetune_training_data_wait_seconds_total",
    "counter",
    "Time that this process waited for its next batch; a part of the time of steps.",
    _RANK,
)
FORWARD_DURATION: Final = Metric(
    "finetune_training_forward_duration_seconds",
    "gauge",
    "Time of a forward pass, mean since the last log line: this process alone, without waiting for others.",
    _RANK,
)
GPU_MEMORY_ALLOCATED: Final = Metric(
    "finetune_gpu_memory_allocated_bytes",
    "gauge",
    "GPU memory that tensors of this process take, when it was logged last.",
    _RANK,
    only=ON_A_GPU,
)
GPU_MEMORY_PEAK: Final = Metric(
    "finetune_gpu_memory_peak_bytes", "gauge", "The most that tensors of this process ever took.", _RANK, only=ON_A_GPU
)
GPU_MEMORY_TOTAL: Final = Metric(
    "finetune_gpu_memory_total_bytes", "gauge", "Memory of the GPU of this process.", _RANK, only=ON_A_GPU
)

# Trainer, checkpoints and Hub.
CHECKPOINT_LAST_SUCCESS: Final = Metric(
    "finetune_checkpoint_last_success_timestamp_seconds", "gauge", "When the newest checkpoint was complete, Unix time.", _JOB
)
CHECKPOINT_DURATION: Final = Metric(
    "finetune_checkpoint_save_duration_seconds", "gauge", "Time that the training stood still for the last checkpoint.", _JOB
)
CHECKPOINT_FAILURES: Final = Metric(
    "finetune_checkpoint_failures_total", "counter", "Checkpoints that could not be saved, as on a full disk.", _JOB
)
HUB_PUSH_DURATION: Final = Metric(
    "finetune_hub_push_duration_seconds",
    "gauge",
    "Time of the push of the finished model.",
    _JOB,
    only="of a job that publishes, in the moment between its push and its end",
)
HUB_PUSH_FAILURES: Final = Metric(
    "finetune_hub_push_failures_total", "counter", "Pushes of the finished model that failed.", _JOB
)
HUB_BEST_PUSH_FAILURES: Final = Metric(
    "finetune_hub_best_push_failures_total",
    "counter",
    "Pushes of the best model so far that failed; the training goes on.",
    _JOB,
)

# What rank 0 alone says, what every rank says of itself, and what the launcher says.
OF_RANK_0: Final = (
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
OF_EVERY_RANK: Final = (
    TRAINING_TOKENS,
    STEP_DURATION,
    LAST_STEP,
    DATA_WAIT,
    FORWARD_DURATION,
    GPU_MEMORY_ALLOCATED,
    GPU_MEMORY_PEAK,
    GPU_MEMORY_TOTAL,
)
OF_THE_LAUNCHER: Final = (HUB_PUSH_DURATION, HUB_PUSH_FAILURES)
TRAINER_METRICS: Final = (*OF_RANK_0, *OF_EVERY_RANK, *OF_THE_LAUNCHER)

# Operator, of jobs.
JOB_PHASE: Final = Metric(
    "finetune_job_phase", "gauge", "1 for the phase that the job is in, 0 for the others.", (*_JOB, "phase")
)
JOB_PHASE_SINCE: Final = Metric(
    "finetune_job_phase_since_timestamp_seconds", "gauge", "Since when the job has been in its phase, Unix time.", _JOB
)
JOB_INFO: Final = Metric("finetune_job_info", "gauge", "Always 1; what the job trains, in labels.", (*_JOB, "task", "model"))
JOB_CREATED: Final = Metric("finetune_job_created_timestamp_seconds", "gauge", "When the job was created, Unix time.", _JOB)
JOB_START: Final = Metric("finetune_job_start_timestamp_seconds", "gauge", "When its first pods were created, Unix time.", _JOB)
JOB_COMPLETION: Final = Metric(
    "finetune_job_completion_timestamp_seconds", "gauge", "When the job ended, Unix time.", _JOB, only="of a finished job"
)
JOB_GPUS: Final = Metric("finetune_job_gpus", "gauge", "GPUs that the job's pods hold at the moment.", _JOB)
JOB_PROGRESS: Final = Metric("finetune_job_progress_ratio", "gauge", "Share of the optimizer steps done, 0 to 1.", _JOB)
JOB_ETA: Final = Metric(
    "finetune_job_estimated_completion_timestamp_seconds",
    "gauge",
    "When the training will be through at the present rate, Unix time.",
    _JOB,
    only="of a running job",
)
JOB_LAST_STEP: Final = Metric(
    "finetune_job_last_step_timestamp_seconds",
    "gauge",
    "When the last optimizer step ended, as status tells it every ten seconds, Unix time.",
    _JOB,
)
JOB_CHECKPOINT: Final = Metric(
    "finetune_job_checkpoint_timestamp_seconds", "gauge", "When the newest checkpoint was complete, Unix time.", _JOB
)
JOB_FINAL_LOSS: Final = Metric("finetune_job_final_loss", "gauge", "Training loss at the end.", _JOB, only="of a finished job")
JOB_RESTARTS: Final = Metric(
    "finetune_job_restarts_total",
    "counter",
    "Restarts: of the gang after failures, of processes in place, of the gang after pods or machines were taken away.",
    (*_JOB, "kind"),
)
JOB_FAILURE: Final = Metric(
    "finetune_job_failure_info",
    "gauge",
    "1 from the failure of an attempt until the job succeeds; why, in a label: a reason of docs/reasons.md.",
    (*_JOB, "reason"),
    only="of a job of which an attempt failed",
)
JOB_CONDITION: Final = Metric(
    "finetune_job_condition",
    "gauge",
    "1 where the job has the condition: Blocked, CheckpointFailing, TrainingStalled.",
    (*_JOB, "condition"),
)
JOB_GOODPUT: Final = Metric(
    "finetune_job_goodput_ratio", "gauge", "Share of the time that was spent on steps that were kept, 0 to 1.", _JOB
)
JOB_TIME: Final = Metric(
    "finetune_job_time_seconds",
    "gauge",
    "What became of the time since the first attempt, as in status.goodput, up to the last write of the status.",
    (*_JOB, "cause"),
)

# Operator, of itself.
RECONCILE_DURATION: Final = Metric(
    "finetune_operator_reconcile_duration_seconds",
    "histogram",
    "Time of one reconcile.",
    (),
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
RECONCILE_ERRORS: Final = Metric(
    "finetune_operator_reconcile_errors_total", "counter", "Reconciles that ended in an error and are tried again."
)
WORKQUEUE_DEPTH: Final = Metric("finetune_operator_workqueue_depth", "gauge", "Jobs that wait to be reconciled.")
WATCH_LAST_EVENT: Final = Metric(
    "finetune_operator_watch_last_event_timestamp_seconds",
    "gauge",
    "When a watch or a list last told of a FineTuneJob, Unix time.",
)
LEADER: Final = Metric("finetune_operator_leader", "gauge", "1 where this operator acts, 0 where it stands by.")
API_REQUESTS: Final = Metric(
    "finetune_operator_api_requests_total",
    "counter",
    "Requests to the API server, without those of the watches; code 0 where there was no answer.",
    ("verb", "kind", "code"),
)

OF_JOBS: Final = (
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
    JOB_CONDITION,
    JOB_GOODPUT,
    JOB_TIME,
)
OF_THE_OPERATOR: Final = (
    RECONCILE_DURATION,
    RECONCILE_ERRORS,
    WORKQUEUE_DEPTH,
    WATCH_LAST_EVENT,
    LEADER,
    API_REQUESTS,
)
OPERATOR_METRICS: Final = (*OF_JOBS, *OF_THE_OPERATOR)
