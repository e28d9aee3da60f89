"""``FineTuneJob.status``: what the operator reports about a job."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from finetune_api.model import Model

Phase = Literal["Queued", "Pending", "Initializing", "Running", "Restarting", "Suspended", "Publishing", "Succeeded", "Failed"]
FINAL_PHASES: frozenset[Phase] = frozenset({"Succeeded", "Failed"})

# RFC 3339 in UTC with seconds, as metav1.Time.
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


# Type → what it means while its status is True. docs/operations.md says which tools read Ready, Reconciling and Stalled.
CONDITIONS = {
    "Blocked": "something keeps the job from going on until a person removes it",
    "CheckpointFailing": "checkpoints can't be saved, the training continues",
    "Complete": "the job succeeded",
    "Failed": "the job failed",
    "ProgressUnknown": "pods run but do not answer the operator, the training continues",
    "Published": "the model was pushed",
    "QuotaReserved": "the queue admitted the job",
    "Ready": "the job does what its spec asks for: it trains, has succeeded, or is suspended",
    "Reconciling": "the job is on its way there",
    "Running": "the job trains",
    "Stalled": "the job can't get there by itself: it failed or is blocked",
    "Suspended": "spec.suspend is true and no pod is left",
    "TrainingStalled": "no step for too long",
}
ConditionType = Literal[
    "Blocked",
    "CheckpointFailing",
    "Complete",
    "Failed",
    "ProgressUnknown",
    "Published",
    "QuotaReserved",
    "Ready",
    "Reconciling",
    "Running",
    "Stalled",
    "Suspended",
    "TrainingStalled",
]


# Conditions that need attention. The other ones follow from the phase.
PROBLEMS: tuple[ConditionType, ...] = ("Blocked", "CheckpointFailing", "ProgressUnknown", "TrainingStalled")


class Condition(Model):
    """metav1.Condition."""

    type: ConditionType = Field(description=" ".join(f"{kind}: {text}." for kind, text in CONDITIONS.items()))
    status: Literal["True", "False", "Unknown"] = Field(description="True, False or Unknown.")
    reason: str = Field(description="The cause, in one CamelCase word.")
    message: str = Field(description="The cause, as a sentence for people.")
    last_transition_time: Time = Field(description="When status changed last.")
    observed_generation: int = Field(description="metadata.generation that the condition is about.")


class Progress(Model):
    """Progress of the training. Numbers are rounded, and never NaN."""

    step: int = Field(description="Optimizer steps done.")
    total_steps: int | None = Field(default=None, description="Total number of optimizer steps.")
    percent: int | None = Field(default=None, description="Completed share of the steps, in percent, rounded down.")
    display: str | None = Field(default=None, description="The percentage as the column Progress shows it, for example 37%.")
    epoch: float | None = Field(default=None, description="Passes over the training data done.")
    loss: float | None = Field(default=None, description="Training loss, averaged since the last log line.")
    learning_rate: float | None = Field(default=None, description="Learning rate of the last step.")
    samples_per_second: float | None = Field(default=None, description="Rows trained on per second, over all processes.")
    tokens_per_second: float | None = Field(
        default=None, description="Tokens trained on per second, without padding, over all processes."
    )
    furthest_step: int | None = Field(
        default=None, description="The furthest step so far, if it is beyond step: the job repeats the steps in between."
    )
    last_step_time: Time | None = Field(default=None, description="When the last step ended.")
    remaining: str | None = Field(default=None, description="Time left at the current rate, for example 2m10s.")
    estimated_completion_time: Time | None = Field(default=None, description="When the training will end at the current rate.")


class Evaluation(Model):
    """Metrics of an evaluation on the held-out data."""

    step: int = Field(description="Optimizer step of the evaluation.")
    metrics: Mapping[str, float] = Field(description="Metrics by name, for example accuracy, macroF1, loss.")
    baseline: Mapping[str, float] | None = Field(
        default=None, description="The same metrics of the best constant answer, for example always the most frequent class."
    )


class Finding(Model):
    """What the record of the training says went wrong, or is likely to. docs/findings.md lists all of them."""

    type: str = Field(description="Type from a closed list, for example NoBetterThanConstant.")
    message: str = Field(description="What was found, with its figures, and what to try.")


class Guess(Model):
    """A predicted token for a mask."""

    token: str = Field(description="The token: a word or a part of a word.")
    score: float = Field(description="Probability of the token, 0 to 1.")


class Entity(Model):
    """An entity that token-classification found in a text."""

    text: str = Field(description="The words of the entity.")
    label: str = Field(description="Class of the entity.")


_PREDICTED = 0.5  # probability above which a text has a class, for MultiLabel


class LabelScore(Model):
    """A class that a text may have, and how probable it is."""

    label: str = Field(description="The class.")
    score: float = Field(description="Probability of the class, 0 to 1. It is predicted if this is above 0.5.")


class SampleAnswer(Model):
    """Prediction of the finished model for one of spec.samples."""

    text: str = Field(description="The text, or the last message, cut to 200 characters.")
    label: str | None = Field(default=None, description="The predicted class. For MultiLabel: all predicted classes.")
    score: float | None = Field(
        default=None, description="Probability of the class, 0 to 1; for MultiLabel the largest one. For Regression: the number."
    )
    labels: Sequence[LabelScore] | None = Field(
        default=None, description="For MultiLabel: the classes with their probabilities, the most probable first, at most 32."
    )
    entities: Sequence[Entity] | None = Field(default=None, description="The entities that token-classification found.")
    guesses: Sequence[Guess] | None = Field(default=None, description="The five most probable tokens for the first [MASK].")
    guesses_before: Sequence[Guess] | None = Field(default=None, description="The same, before the training.")
    answer: str | None = Field(default=None, description="The text that the model generated, cut to 400 characters.")


def describe_tags(labels: Sequence[LabelScore], digits: int) -> str:
    """Return the predicted classes of a text with their probabilities; if there is none, say so and name the most probable."""
    likely = [label for label in labels if label.score > _PREDICTED]
    shown = ", ".join(f"{label.label} {label.score:.{digits}f}" for label in likely or labels[:1])
    return shown if likely or not labels else f"none (most likely: {shown})"


class CheckpointStatus(Model):
    """The newest complete checkpoint."""

    step: int = Field(description="Optimizer step that it holds.")
    time: Time = Field(description="When it was complete.")


class Resolved(Model):
    """Resolved commits and defaults, the same for every attempt."""

    model_revision: str | None = Field(default=None, description="Commit of spec.model.hub.")
    dataset_revisions: Sequence[str] | None = Field(
        default=None, description="Commit of each of spec.datasets, in order; empty for a claim."
    )
    image: str | None = Field(default=None, description="Trainer image.")
    global_batch_size: int | None = Field(default=None, description="Rows per optimizer step.")
    per_device_batch_size: int | None = Field(default=None, description="Rows per forward pass of one process.")
    nodes: int | None = Field(default=None, description="Number of pods.")
    processes: int | None = Field(default=None, description="Training processes over all pods.")


class Failure(Model):
    """Why the job, or an attempt, failed."""

    reason: str = Field(description="Reason from a closed list, for example ConfigurationError.")
    message: str = Field(description="What is wrong, where, and what to write instead.")
    hint: str | None = Field(default=None, description="What to do.")
    rank: int | None = Field(default=None, description="Rank of the process that failed first.")
    node: str | None = Field(default=None, description="Node of that process.")
    exit_code: int | None = Field(default=None, description="Exit code of its pod.")
    traceback: str | None = Field(
        default=None, description="Last lines of its traceback. Left out for an error that the user can fix."
    )


class Published(Model):
    """Where the finished model was pushed."""

    url: str = Field(description="URL of the repository.")
    commit: str = Field(description="Commit of the push.")


class Restarts(Model):
    """Number of restarts over the whole life of the job."""

    total: int = Field(default=0, description="All restarts: failures + inPlace + preemptions.")
    failures: int = Field(default=0, description="New attempts because of failures.")
    in_place: int = Field(default=0, description="Restarts of processes in their pods because of failures.")
    preemptions: int = Field(
        default=0,
        description="New attempts because pods or nodes were taken away. recovery.maxPreemptions limits this number.",
    )


class Goodput(Model):
    """How the time since the creation of the first attempt was spent, without suspended time."""

    ratio: float = Field(description="Share of the time spent on steps that were not lost, 0 to 1.")
    productive_seconds: int = Field(default=0, description="Time of steps that were not lost.")
    queued_seconds: int = Field(default=0, description="Time in a queue.")
    starting_seconds: int = Field(
        default=0, description="Time from the creation of pods, or from the loss of the earlier pods, to the next step."
    )
    evaluation_seconds: int = Field(default=0, description="Time of evaluations.")
    checkpoint_seconds: int = Field(default=0, description="Time in which checkpoints blocked the training.")
    stalled_seconds: int = Field(default=0, description="Time without a step until the stall was detected.")
    redone_seconds: int = Field(default=0, description="Time of steps that were lost after they had been reported.")
    other_seconds: int = Field(
        default=0, description="Time in the phase Running without another cause, for example between two steps."
    )
    publishing_seconds: int = Field(default=0, description="Time of the push of the finished model.")
    since: Time = Field(description="When the job entered its current phase.")
    until: Time | None = Field(default=None, description="End of the time that these numbers cover.")


class Attempt(Model):
    """One attempt to train, with its own Job and pods."""

    number: int = Field(description="Number of the attempt, from 1.")
    start_time: Time = Field(description="When its Job was created.")
    completion_time: Time | None = Field(default=None, description="When it ended. Left out for the current attempt.")
    nodes: int = Field(description="Number of its pods.")
    from_step: int | None = Field(
        default=None,
        description="Step of the checkpoint that it started from, also one of an earlier job in the same claim. Left out if "
        "there was none.",
    )
    step: int | None = Field(default=None, description="The furthest optimizer step that the job had done at its end.")
    in_place: int | None = Field(default=None, description="Restarts of processes in its pods because of failures.")
    skipped_checkpoints: Sequence[str] | None = Field(
        default=None, description="Damaged checkpoints that it skipped, at most ten."
    )
    reason: str | None = Field(default=None, description="Why it ended, in one CamelCase word.")
    message: str | None = Field(default=None, description="Why it ended, as a sentence for people. Left out if it succeeded.")


# The oldest ones make room for new ones.
MAX_AVOIDED_NODES = 10


class Bookkeeping(Model):
    """What the operator notes for its next reconcile. It may change with any release."""

    restarts_count_towards_max: int = Field(
        default=0,
        description="Restarts after failures since an attempt last got beyond the checkpoint that it started from. "
        "recovery.maxRestarts limits this number.",
    )
    running_since: Time | None = Field(
        default=None, description="When the pods of the current attempt started to run. runningSeconds counts the time before."
    )
    placed_pods: int | None = Field(
        default=None,
        description="Number of pods of the last attempt that had a node when it was withdrawn because the other pods could not "
        "be scheduled.",
    )


class FineTuneJobStatus(Model):
    """What the operator reports about the job. Succeeded and Failed are final."""

    observed_generation: int | None = Field(default=None, description="metadata.generation that this status is about.")
    phase: Phase | None = Field(default=None, description="Phase of the job. Succeeded and Failed are final.")
    reason: str | None = Field(default=None, description="Why it is in this phase, in one CamelCase word.")
    message: str | None = Field(default=None, description="Why it is in this phase, as a sentence for people.")
    conditions: Sequence[Condition] | None = Field(
        default=None,
        description="Complete, Failed, Running, Suspended, Blocked, Ready, Reconciling and Stalled are always there, True or "
        "False; the other ones from the first time that they say something. `kubectl wait` can wait for each value.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    attempt: int | None = Field(default=None, description="Number of the current attempt, from 1.")
    restarts: Restarts | None = Field(default=None, description="Number of restarts of the job.")
    attempts: Sequence[Attempt] | None = Field(default=None, description="The last ten attempts, the current one last.")
    progress: Progress | None = Field(default=None, description="Progress of the training.")
    evaluation: Evaluation | None = Field(default=None, description="Metrics of the last evaluation.")
    best: Evaluation | None = Field(default=None, description="Metrics of the best evaluation so far, if evaluation.best is set.")
    stopped_early: str | None = Field(
        default=None, description="Why evaluation.earlyStopping ended the training, and which step had the best model."
    )
    avoided_nodes: Sequence[str] | None = Field(
        default=None,
        max_length=MAX_AVOIDED_NODES,
        description="Nodes on which a GPU failed in an earlier attempt. The pods of the next attempts prefer others.",
    )
    findings: Sequence[Finding] | None = Field(
        default=None, description="What went wrong in the training although it succeeds, at most five, the worst first."
    )
    samples: Sequence[SampleAnswer] | None = Field(
        default=None, description="Predictions of the finished model for spec.samples."
    )
    checkpoint: CheckpointStatus | None = Field(default=None, description="The newest complete checkpoint.")
    resolved: Resolved | None = Field(default=None, description="Resolved commits and defaults.")
    failure: Failure | None = Field(default=None, description="Why the job failed. Only in the phase Failed.")
    last_failure: Failure | None = Field(
        default=None, description="Why the last attempt failed that was followed by another one."
    )
    published: Published | None = Field(default=None, description="Where the finished model was pushed.")
    goodput: Goodput | None = Field(default=None, description="How the time since the start was spent.")
    running_seconds: int | None = Field(
        default=None,
        description="Seconds that pods ran, over all attempts that are over. activeDeadlineSeconds limits this number and the "
        "time of the current attempt.",
    )
    start_time: Time | None = Field(default=None, description="When the first attempt was created.")
    completion_time: Time | None = Field(default=None, description="When the job ended.")
    bookkeeping: Bookkeeping = Field(
        default_factory=Bookkeeping, description="What the operator notes for itself. Other programs should not rely on it."
    )
