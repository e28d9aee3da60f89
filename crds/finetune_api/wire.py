"""The messages between operator and trainer: the run file in the ConfigMap, /progress, the termination message.

The operator does not trust the trainer. It parses each report with these models, which reject wrong types and NaN. They ignore
unknown fields, because the trainer's version may be later than the operator's.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import pydantic
from pydantic import Field

from finetune_api.model import Model
from finetune_api.spec import Classification, DirectPreference, FineTuneJobSpec, MaskedLM, SupervisedFineTuning
from finetune_api.status import CheckpointStatus, Evaluation, Failure, Finding, Published, Resolved, SampleAnswer, Time


class RunConfig(Model):
    """The configuration of an attempt: the JSON in its ConfigMap. Holds no secret.

    claims: claim name → directory where it is mounted. output: directory for checkpoints, model, history and report. resolved:
    commits and defaults that the first attempt resolved; later attempts use the same. adopted: an earlier FineTuneJob of the same
    name left the output. A finished model of the same spec in it ends the job; the trainer rejects an unfinished training and
    leaves it unchanged. job_uid: uid of this FineTuneJob, set only for an adopted output; it says which job the training in the
    output belongs to.
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
    """Seconds that the job spent so far, over all attempts.

    Lost work does not count: each checkpoint holds the timing up to its step.

    steps: for optimizer steps. evaluation: for evaluations. checkpoint: while a save blocked the training.
    """

    steps: float = 0.0
    evaluation: float = 0.0
    checkpoint: float = 0.0


class Problem(Model):
    """A problem that does not stop the training. reason: one CamelCase word. message: a sentence for people."""

    reason: str
    message: str


class Report(Model):
    """The report of a training pod: at /progress while it runs, in the termination message at its end.

    phase: Initializing until the first step, then Running, Publishing; Succeeded, Failed and Interrupted occur in the final
    report (Interrupted: the pod stopped on request, saved a checkpoint, and can resume). remaining_seconds: at the current rate.
    in_place: restarts of this pod's processes in this attempt that count as failures. in_place_elsewhere: the same for the other
    pods, as far as this pod knows. stalled: why the pod considers the training stalled. checkpoint_problem: why the last save
    failed, until a save succeeds. skipped_checkpoints: names of the checkpoints that were damaged when the training started.
    from_step: step of the checkpoint from which the first processes of this attempt started, 0 without one.
    stopped_early: why the training ended before its last step.
    findings: the worst first; None until the data is read.
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
    stopped_early: str | None = None
    findings: Sequence[Finding] | None = None
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
    from_step: int | None = None
    timing: Timing | None = None

    @classmethod
    def read(cls, text: str | bytes) -> "Report | None":
        """Parse JSON that another version may have written: ignore unknown fields. Return None if it is not a report."""
        try:
            return cls.model_validate_json(text, extra="ignore")
        except pydantic.ValidationError:
            return None


_SHOWN_CHARACTERS = 60  # of a value that differs
# Block → fields that were added after the first version, with their defaults. The digest leaves out a field at its default, and a
# block without other fields. So a spec from before the field existed has the same digest as a spec that contains the default.
_ADDED_FIELDS: dict[str, dict[str, Any]] = {
    "model": {"dtype": "Auto", "quantization": "None"},
    "training": {"loop": "Trainer", "labelSmoothing": 0.0},
    "classification": Classification().to_wire(),
    "maskedLM": MaskedLM().to_wire(),
    "sft": SupervisedFineTuning().to_wire(),
    "dpo": DirectPreference().to_wire(),
}


def training_digest(spec: FineTuneJobSpec) -> str:
    """Return a hash of the fields that decide which model is trained: two specs with the same digest train the same model."""
    return hashlib.sha256(json.dumps(_decisive_fields(spec), sort_keys=True).encode()).hexdigest()[:16]


def training_differences(before: FineTuneJobSpec, after: FineTuneJobSpec) -> list[str]:
    """Return one phrase for each field that decides which model is trained and differs: its path, and both values."""
    old, new = (dict(_leaves(_decisive_fields(spec), "spec")) for spec in (before, after))
    fields = [field for field in sorted({**old, **new}) if old.get(field) != new.get(field)]
    return [f"{field} was {_short(old.get(field))} and is {_short(new.get(field))}" for field in fields]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield path and value of each field that is neither a block nor a list of blocks."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, f"{path}.{name}")
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]")
    else:
        yield path, value


def _short(value: Any) -> str:
    text = "not set" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def _decisive_fields(spec: FineTuneJobSpec) -> dict[str, Any]:
    """Return the fields that decide which model is trained.

    Left out is how the batch is split and where the job runs, so a restart on other nodes resumes from the same checkpoints.
    """
    included = {"task", "model", "datasets", "training", "classification", "masked_lm", "sft", "dpo"}
    if spec.evaluation.best is not None:  # otherwise an evaluation does not change the model
        included.add("evaluation")
    decisive: dict[str, Any] = spec.model_dump(
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
    for block, defaults in _ADDED_FIELDS.items():
        written = decisive.pop(block, {})
        if kept := {key: value for key, value in written.items() if (key, value) not in defaults.items()}:
            decisive[block] = kept
    for dataset in decisive["datasets"]:
        if not dataset["streaming"]:
            del dataset["streaming"]
    if spec.task == "text-classification":
        for dataset in decisive["datasets"]:  # the first version wrote these names into every spec
            dataset["columns"] = {"text": "text", "label": "label"} | dataset["columns"]
    return decisive
