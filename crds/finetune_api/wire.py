"""What operator and trainer tell each other: the ConfigMap's run file, /progress, the termination message.

The trainer is the trusted side for neither: the operator parses what it reads through these models, which refuse unknown
fields, wrong types and NaN.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from finetune_api.model import Model
from finetune_api.spec import Classification, DirectPreference, FineTuneJobSpec, MaskedLM, SupervisedFineTuning
from finetune_api.status import CheckpointStatus, Evaluation, Failure, Published, Resolved, SampleAnswer, Time


class RunConfig(Model):
    """Everything an attempt needs to know, without any secret: the JSON in its ConfigMap.

    claims: claim name → directory where it is mounted. output: directory for checkpoints, model, history and report.
    resolved: what the first attempt resolved; later ones use the same commits. adopted: the output was left by an earlier
    FineTuneJob of the same name: a finished model of the same spec in it ends the job, an unfinished training is refused
    untouched. job_uid: of this FineTuneJob, where the output is adopted: it tells whose training lies there by now.
    """

    name: str
    namespace: str
    attempt: int = 1
    spec: FineTuneJobSpec
    nodes: int
    processes_per_node: int
    claims: Mapping[str, str] = Field(default_factory=dict)
    output: str
    resolved: Resolved | None = None
    adopted: bool = False
    job_uid: str | None = None


class Timing(Model):
    """Seconds of a job so far, of all attempts, as far as their outcome was kept: a checkpoint holds those up to its step.

    steps: of optimizer steps. evaluation: of evaluations. checkpoint: that the training stood still for saving.
    """

    steps: float = 0.0
    evaluation: float = 0.0
    checkpoint: float = 0.0


class Problem(Model):
    """Something that is wrong while the training goes on. reason: one CamelCase word; message: for people."""

    reason: str
    message: str


class Report(Model):
    """What a training pod says of itself: at /progress while it runs, in the termination message at its end.

    phase: Initializing until the first step, Running, Publishing; Succeeded, Failed and Interrupted are its last word
    (Interrupted: asked to stop, saved a checkpoint, can go on). remaining_seconds: at the present rate. in_place: restarts of
    processes of this pod in this attempt that count as failures; in_place_elsewhere: of the other pods', as far as this one has
    heard. stalled: why the pod takes the training for stalled. checkpoint_problem:
    why the last save failed, until one succeeds. skipped_checkpoints: names of those that were found damaged at the start.
    """

    attempt: int
    phase: Literal["Initializing", "Running", "Publishing", "Succeeded", "Failed", "Interrupted"]
    message: str | None = None
    step: int = 0
    total_steps: int | None = None
    epoch: float | None = None
    loss: float | None = None
    learning_rate: float | None = None
    samples_per_second: float | None = None
    tokens_per_second: float | None = None
    last_step_time: Time | None = None
    remaining_seconds: float | None = None
    evaluation: Evaluation | None = None
    best: Evaluation | None = None
    samples: Sequence[SampleAnswer] | None = None
    checkpoint: CheckpointStatus | None = None
    resolved: Resolved | None = None
    failure: Failure | None = None
    published: Published | None = None
    in_place: int = 0
    in_place_elsewhere: int = 0
    stalled: str | None = None
    checkpoint_problem: Problem | None = None
    skipped_checkpoints: Sequence[str] | None = None
    timing: Timing | None = None


# By block: fields that came after the first version, at their defaults. They are left out of the digest, and so are blocks of
# which nothing is left: it stays the same for specs of before, and for a default that is written out.
_LATER: dict[str, dict[str, Any]] = {
    "model": {"dtype": "auto", "quantization": "none"},
    "training": {"loop": "trainer"},
    "classification": Classification().to_wire(),
    "maskedLM": MaskedLM().to_wire(),
    "sft": SupervisedFineTuning().to_wire(),
    "dpo": DirectPreference().to_wire(),
}


def training_digest(spec: FineTuneJobSpec) -> str:
    """Hash of what decides which model comes out: two specs with the same digest train the same model.

    Batch split and where the job runs do not belong to it, so a restart on other machines goes on from the same checkpoints.
    """
    included = {"task", "model", "datasets", "training", "classification", "masked_lm", "sft", "dpo"}
    if spec.evaluation.best is not None:  # else nothing follows from an evaluation
        included.add("evaluation")
    decisive = spec.model_dump(
        mode="json",
        by_alias=True,
        exclude_none=True,
        include=included,
        exclude={
            "training": {"per_device_batch_size", "activation_checkpointing"},
            "model": {"trust_remote_code"},
            "sft": {"packing"},
        },
    )
    for block, later in _LATER.items():
        written = decisive.pop(block, {})
        if kept := {key: value for key, value in written.items() if (key, value) not in later.items()}:
            decisive[block] = kept
    for dataset in decisive["datasets"]:
        if not dataset["streaming"]:
            del dataset["streaming"]
    if spec.task == "text-classification":
        for dataset in decisive["datasets"]:  # the names that the first version wrote into every spec
            dataset["columns"] = {"text": "text", "label": "label"} | dataset["columns"]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
