"""``FineTuneJob.status``: what the operator says of a job."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from finetune_api.model import Model

Phase = Literal["Queued", "Pending", "Initializing", "Running", "Restarting", "Suspended", "Publishing", "Succeeded", "Failed"]
FINAL_PHASES: frozenset[Phase] = frozenset({"Succeeded", "Failed"})

# RFC 3339 in UTC with seconds, as metav1.Time.
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


ConditionType = Literal["Blocked", "CheckpointFailing", "Complete", "Failed", "Published", "Suspended", "TrainingStalled"]


class Condition(Model):
    """metav1.Condition."""

    type: ConditionType = Field(
        description="Blocked (something keeps it from starting), CheckpointFailing (the training goes on, its state can't be "
        "saved), Complete, Failed, Published, Suspended or TrainingStalled (no step for too long)."
    )
    status: Literal["True", "False", "Unknown"] = Field(description="True, False or Unknown.")
    reason: str = Field(description="Why, in one CamelCase word.")
    message: str = Field(description="Why, for people.")
    last_transition_time: Time = Field(description="When status changed last.")
    observed_generation: int = Field(description="metadata.generation that this was said of.")


class Progress(Model):
    """How far the training is. Numbers are rounded, and never NaN."""

    step: int = Field(description="Optimizer steps done.")
    total_steps: int | None = Field(default=None, description="Optimizer steps in all.")
    percent: int | None = Field(default=None, description="Share of the steps done, in percent, rounded down.")
    display: str | None = Field(default=None, description="The percent as the column shows it, for example 37%.")
    epoch: float | None = Field(default=None, description="Passes over the training data done.")
    loss: float | None = Field(default=None, description="Training loss, mean since the last log line.")
    learning_rate: float | None = Field(default=None, description="Learning rate of the last step.")
    samples_per_second: float | None = Field(default=None, description="Rows trained on per second, over all processes.")
    tokens_per_second: float | None = Field(
        default=None, description="Tokens trained on per second, padding left out, over all processes."
    )
    furthest_step: int | None = Field(
        default=None, description="The furthest step so far, where that is beyond step: what lies between is done again."
    )
    last_step_time: Time | None = Field(default=None, description="When the last step ended.")
    remaining: str | None = Field(default=None, description="Time left at the present rate, for example 2m10s.")
    estimated_completion_time: Time | None = Field(default=None, description="When the training will be through.")


class Evaluation(Model):
    """Figures of the last evaluation on the held-out data."""

    step: int = Field(description="Optimizer step of the evaluation.")
    metrics: Mapping[str, float] = Field(description="Figures by name, for example accuracy, macroF1, loss.")


class Guess(Model):
    """One of the words that a hidden one could be."""

    token: str = Field(description="The word, or part of a word.")
    score: float = Field(description="Its probability, 0 to 1.")


class Entity(Model):
    """A part of a text that token-classification found."""

    text: str = Field(description="The words.")
    label: str = Field(description="What it is.")


class SampleAnswer(Model):
    """What the finished model says of one of spec.samples."""

    text: str = Field(description="The text, or the last message, cut to 200 characters.")
    label: str | None = Field(default=None, description="The class; of several, those that are true.")
    score: float | None = Field(default=None, description="Its probability, 0 to 1; of a regression the number itself.")
    entities: Sequence[Entity] | None = Field(default=None, description="What token-classification found.")
    guesses: Sequence[Guess] | None = Field(default=None, description="The five best fillings of the first [MASK].")
    guesses_before: Sequence[Guess] | None = Field(default=None, description="The same before the training.")
    answer: str | None = Field(default=None, description="What the model goes on with, cut to 400 characters.")


class CheckpointStatus(Model):
    """The newest complete checkpoint."""

    step: int = Field(description="Optimizer step that it holds.")
    time: Time = Field(description="When it was complete.")


class Resolved(Model):
    """What names and defaults came to; the same for every attempt."""

    model_revision: str | None = Field(default=None, description="Commit of spec.model.hub.")
    dataset_revisions: Sequence[str] | None = Field(
        default=None, description="Commit of each of spec.datasets, in order; empty for a claim."
    )
    image: str | None = Field(default=None, description="Trainer image.")
    global_batch_size: int | None = Field(default=None, description="Rows per optimizer step.")
    per_device_batch_size: int | None = Field(default=None, description="Rows per forward pass of one process.")
    nodes: int | None = Field(default=None, description="Pods of the gang.")
    processes: int | None = Field(default=None, description="Training processes over all pods.")


class Failure(Model):
    """Why the job, or its last attempt, failed."""

    reason: str = Field(description="Reason from a closed list, for example ConfigurationError.")
    message: str = Field(description="What is wrong, where, and what to write instead.")
    hint: str | None = Field(default=None, description="What to do.")
    rank: int | None = Field(default=None, description="Rank of the process that failed first.")
    node: str | None = Field(default=None, description="Machine of that process.")
    exit_code: int | None = Field(default=None, description="Exit code of its pod.")
    traceback: str | None = Field(default=None, description="Last lines of its traceback, where the cause is not the user's.")


class Published(Model):
    """Where the finished model was pushed."""

    url: str = Field(description="Address of the repository.")
    commit: str = Field(description="Commit of the push.")


class Restarts(Model):
    """How often the job was restarted, over its whole life."""

    total: int = Field(default=0, description="All of them: failures, inPlace and preemptions.")
    failures: int = Field(default=0, description="Of the whole gang, because of failures.")
    in_place: int = Field(default=0, description="Of processes in pods that stayed, because of failures.")
    preemptions: int = Field(
        default=0,
        description="Of the whole gang, because pods or machines were taken away; what recovery.maxPreemptions limits.",
    )
    charged: int = Field(
        default=0,
        description="Failures and restarts in place since an attempt last got beyond the checkpoint that it had started from; "
        "what recovery.maxRestarts limits.",
    )


class Goodput(Model):
    """What became of the time since the first attempt was created, suspended time left out."""

    ratio: float = Field(description="Share of the time that was spent on steps that were kept, 0 to 1.")
    productive_seconds: int = Field(default=0, description="Steps that were kept.")
    queued_seconds: int = Field(default=0, description="Waiting in a queue.")
    starting_seconds: int = Field(default=0, description="From the creation of pods, or the loss of old ones, to the next step.")
    evaluation_seconds: int = Field(default=0, description="Evaluations.")
    checkpoint_seconds: int = Field(default=0, description="Standing still for checkpoints.")
    stalled_seconds: int = Field(default=0, description="Without a step, until that was noticed.")
    redone_seconds: int = Field(default=0, description="Steps that were lost and done again, and what fits nowhere else.")
    publishing_seconds: int = Field(default=0, description="Pushing the finished model.")
    since: Time = Field(description="Since when the job has been in its present phase.")
    until: Time | None = Field(default=None, description="Up to when this is accounted for.")


class Attempt(Model):
    """One attempt: a gang of pods, from its Job's creation to its end."""

    number: int = Field(description="Number of the attempt, from 1.")
    start_time: Time = Field(description="When its Job was created.")
    completion_time: Time | None = Field(default=None, description="When it ended; left out while it is the present one.")
    nodes: int = Field(description="Pods of the gang.")
    from_step: int | None = Field(
        default=None, description="Step of the newest checkpoint at its start; left out if there was none."
    )
    step: int | None = Field(default=None, description="The furthest optimizer step that the job had done at its end.")
    in_place: int | None = Field(default=None, description="Restarts of processes in its pods, because of failures.")
    placed: int | None = Field(
        default=None, description="Pods that found a machine, where it was given up because the others found none."
    )
    skipped_checkpoints: Sequence[str] | None = Field(
        default=None, description="Checkpoints that it found damaged and left out, at most ten of them."
    )
    reason: str | None = Field(default=None, description="Why it ended, in one CamelCase word.")


class FineTuneJobStatus(Model):
    """What the operator says of the job. Succeeded and Failed are final."""

    observed_generation: int | None = Field(default=None, description="metadata.generation that this status is about.")
    phase: Phase | None = Field(default=None, description="Where the job is. Succeeded and Failed are final.")
    reason: str | None = Field(default=None, description="Why it is there, in one CamelCase word.")
    message: str | None = Field(default=None, description="Why it is there, for people.")
    conditions: Sequence[Condition] | None = Field(
        default=None,
        description="Blocked, CheckpointFailing, Complete, Failed, Published, Suspended, TrainingStalled.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    attempt: int | None = Field(default=None, description="Number of the present attempt, from 1.")
    restarts: Restarts | None = Field(default=None, description="How often the job was restarted.")
    attempts: Sequence[Attempt] | None = Field(default=None, description="The last ten attempts, the present one last.")
    progress: Progress | None = Field(default=None, description="How far the training is.")
    evaluation: Evaluation | None = Field(default=None, description="Figures of the last evaluation.")
    best: Evaluation | None = Field(
        default=None, description="Figures of the best evaluation so far, where evaluation.best says what is better."
    )
    samples: Sequence[SampleAnswer] | None = Field(default=None, description="Answers of the finished model to spec.samples.")
    checkpoint: CheckpointStatus | None = Field(default=None, description="The newest complete checkpoint.")
    resolved: Resolved | None = Field(default=None, description="What names and defaults came to.")
    failure: Failure | None = Field(default=None, description="Why the job, or its last attempt, failed.")
    published: Published | None = Field(default=None, description="Where the finished model was pushed.")
    goodput: Goodput | None = Field(default=None, description="What became of the time since the start.")
    running_seconds: int | None = Field(
        default=None,
        description="Seconds that pods ran, over all attempts up to runningSince; what activeDeadlineSeconds limits.",
    )
    running_since: Time | None = Field(default=None, description="Since when the pods of the present attempt run.")
    start_time: Time | None = Field(default=None, description="When the first attempt was created.")
    completion_time: Time | None = Field(default=None, description="When the job ended.")
