"""Every metric of operator and trainer, declared once: exporters, docs and tests take name, type, help and labels from here."""

import dataclasses
from typing import Final, Literal


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric's declaration. labels: in order; buckets: upper bounds in the metric's unit, for histograms."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_JOB: Final = ("namespace", "finetunejob")
_RANK: Final = (*_JOB, "rank")

# Trainer, rank 0.
TRAINING_LOSS: Final = Metric("finetune_training_loss", "gauge", "Training loss, mean since the last log line.", _JOB)
TRAINING_EVAL_LOSS: Final = Metric("finetune_training_eval_loss", "gauge", "Loss on the held-out data.", _JOB)
TRAINING_LEARNING_RATE: Final = Metric("finetune_training_learning_rate", "gauge", "Learning rate of the last step.", _JOB)
TRAINING_GRADIENT_NORM: Final = Metric(
    "finetune_training_gradient_norm", "gauge", "Norm of the gradient of the last logged step, before clipping.", _JOB
)
TRAINING_STEP: Final = Metric("finetune_training_step", "gauge", "Optimizer steps done.", _JOB)
TRAINING_MAX_STEPS: Final = Metric("finetune_training_max_steps", "gauge", "Optimizer steps in all.", _JOB)
TRAINING_TOKENS: Final = Metric("finetune_training_tokens_total", "counter", "Tokens trained on by this process.", _RANK)
TRAINING_INFO: Final = Metric(
    "finetune_training_info", "gauge", "Always 1; what is trained, in labels.", (*_JOB, "task", "precision", "processes")
)

# Trainer, every rank.
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

# Trainer, checkpoints and Hub.
CHECKPOINT_LAST_SUCCESS: Final = Metric(
    "finetune_checkpoint_last_success_timestamp_seconds", "gauge", "When the newest checkpoint was complete, Unix time.", _JOB
)
CHECKPOINT_DURATION: Final = Metric(
    "finetune_checkpoint_save_duration_seconds", "gauge", "Time that the training stood still for the last checkpoint.", _JOB
)
HUB_PUSH_DURATION: Final = Metric("finetune_hub_push_duration_seconds", "gauge", "Time of the last push to the Hub.", _JOB)
HUB_PUSH_FAILURES: Final = Metric("finetune_hub_push_failures_total", "counter", "Pushes to the Hub that failed.", _JOB)

TRAINER_METRICS: Final = (
    TRAINING_LOSS,
    TRAINING_EVAL_LOSS,
    TRAINING_LEARNING_RATE,
    TRAINING_GRADIENT_NORM,
    TRAINING_STEP,
    TRAINING_MAX_STEPS,
    TRAINING_TOKENS,
    TRAINING_INFO,
    STEP_DURATION,
    LAST_STEP,
    CHECKPOINT_LAST_SUCCESS,
    CHECKPOINT_DURATION,
    HUB_PUSH_DURATION,
    HUB_PUSH_FAILURES,
)

# Operator, of jobs.
JOB_PHASE: Final = Metric(
    "finetune_job_phase", "gauge", "1 for the phase that the job is in, 0 for the others.", (*_JOB, "phase")
)
JOB_CREATED: Final = Metric("finetune_job_created_timestamp_seconds", "gauge", "When the job was created, Unix time.", _JOB)
JOB_START: Final = Metric("finetune_job_start_timestamp_seconds", "gauge", "When its first pods were created, Unix time.", _JOB)
JOB_COMPLETION: Final = Metric("finetune_job_completion_timestamp_seconds", "gauge", "When the job ended, Unix time.", _JOB)
JOB_FINAL_LOSS: Final = Metric("finetune_job_final_loss", "gauge", "Training loss at the end.", _JOB)
JOB_RESTARTS: Final = Metric("finetune_job_restarts_total", "counter", "Restarts of the gang after a failure.", _JOB)

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

OPERATOR_METRICS: Final = (
    JOB_PHASE,
    JOB_CREATED,
    JOB_START,
    JOB_COMPLETION,
    JOB_FINAL_LOSS,
    JOB_RESTARTS,
    RECONCILE_DURATION,
    RECONCILE_ERRORS,
    WORKQUEUE_DEPTH,
    WATCH_LAST_EVENT,
    LEADER,
    API_REQUESTS,
)
