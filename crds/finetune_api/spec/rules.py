"""Rules about several blocks of the spec. Each is written twice: as CEL for the API server, and as Python for the models.

The expressions read a field without ``has()`` only if the schema has a default for it. Otherwise CEL fails with "no such key".
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic.alias_generators import to_snake

from finetune_api.spec.common import join_words
from finetune_api.spec.tasks import NATIVE_TASKS, TASK_COLUMNS, TASK_METRICS, Task

if TYPE_CHECKING:
    from finetune_api.spec.job import FineTuneJobSpec


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule. cel: true if ``self`` obeys the rule. holds: the same in Python. message: what is wrong, and what to write."""

    cel: str
    message: str
    holds: Callable[["FineTuneJobSpec"], bool]


_FOLDER_TASKS: tuple[Task, ...] = ("text-classification", "masked-lm", "causal-lm")
_TEXT_FILE_TASKS: tuple[Task, ...] = ("token-classification", "masked-lm", "causal-lm", "sft")
_CHAT_TASKS: tuple[Task, ...] = ("sft", "dpo")
_ALL_COLUMNS = tuple(dict.fromkeys(name for names in TASK_COLUMNS.values() for name in names))


def _task_in(tasks: tuple[Task, ...]) -> str:
    return f"self.task in {list(tasks)}"


def _block_requires_task(name: str, attribute: str, *tasks: Task) -> Rule:
    return Rule(
        cel=f"!has(self.{name}) || {_task_in(tasks)}",
        message=f"{name} is for {join_words(tasks)}: remove it, or correct task",
        holds=lambda spec: getattr(spec, attribute) is None or spec.task in tasks,
    )


def _columns_of_task(task: Task) -> Rule:
    own = TASK_COLUMNS[task]
    others = [name for name in _ALL_COLUMNS if name not in own]
    return Rule(
        cel=f"self.task != '{task}' || self.datasets.all(d, !has(d.columns)"
        f" || !({' || '.join(f'has(d.columns.{name})' for name in others)}))",
        message=f"datasets: the columns of {task} are {join_words(own)}: remove the others from columns"
        if len(own) > 1
        else f"datasets: the column of {task} is {own[0]}: remove the others from columns",
        holds=lambda spec: (
            spec.task != task
            or all(getattr(dataset.columns, to_snake(name)) is None for dataset in spec.datasets for name in others)
        ),
    )


def _best_metric_of_task(task: Task) -> Rule:
    known = TASK_METRICS[task]
    return Rule(
        cel=f"self.task != '{task}' || !has(self.evaluation.best) || self.evaluation.best.metric in {list(known)}",
        message=f"evaluation.best.metric: the metrics of {task} are {join_words(known)}: write one of them",
        holds=lambda spec: spec.task != task or spec.evaluation.best is None or spec.evaluation.best.metric in known,
    )


def _labels_are_multi_label(spec: "FineTuneJobSpec") -> bool:
    lists = any(dataset.columns.labels is not None for dataset in spec.datasets)
    return not lists or spec.classification is None or spec.classification.problem_type in (None, "MultiLabel")


def _model_is_kept(spec: "FineTuneJobSpec") -> bool:
    retention = spec.output.retention
    return retention is None or retention.when_finished != "Delete" or spec.publish is not None


def _volume_is_shared(spec: "FineTuneJobSpec") -> bool:
    volume = spec.output.volume
    return spec.distributed.nodes < 2 or volume is None or volume.access_mode in (None, "ReadWriteMany")


def _gpu_claim_exists(spec: "FineTuneJobSpec") -> bool:
    claim = spec.distributed.gpu_resource_claim
    return claim is None or claim in {item.name for item in spec.pod.resource_claims or ()}


def _samples_fit_task(spec: "FineTuneJobSpec") -> bool:
    return all(
        (sample.text_pair is None or spec.task == "text-classification") and (sample.messages is None or spec.task in _CHAT_TASKS)
        for sample in spec.samples or ()
    )


def _formats_fit_task(spec: "FineTuneJobSpec") -> bool:
    formats = {dataset.claim.format for dataset in spec.datasets if dataset.claim is not None}
    return ("folders" not in formats or spec.task in _FOLDER_TASKS) and ("text" not in formats or spec.task in _TEXT_FILE_TASKS)


def _if_streaming(cel: str, message: str, holds: Callable[["FineTuneJobSpec"], bool]) -> Rule:
    """Return a rule that applies only to streamed data."""
    return Rule(
        cel=f"!self.datasets.exists(d, has(d.streaming) && d.streaming) || {cel}",
        message=message,
        holds=lambda spec: not spec.streaming or holds(spec),
    )


RULES = (
    _block_requires_task("classification", "classification", "text-classification", "token-classification"),
    _block_requires_task("maskedLM", "masked_lm", "masked-lm"),
    _block_requires_task("sft", "sft", "sft"),
    _block_requires_task("dpo", "dpo", "dpo"),
    *map(_columns_of_task, TASK_COLUMNS),
    *map(_best_metric_of_task, TASK_METRICS),
    Rule(
        cel="!has(self.classification) || !has(self.classification.problemType)"
        " || self.classification.problemType == 'SingleLabel' || self.task == 'text-classification'",
        message="classification.problemType: MultiLabel and Regression are for text-classification: remove it",
        holds=lambda spec: (
            spec.classification is None
            or spec.classification.problem_type in (None, "SingleLabel")
            or spec.task == "text-classification"
        ),
    ),
    Rule(
        cel="!has(self.classification) || !has(self.classification.problemType)"
        " || self.classification.problemType == 'MultiLabel'"
        " || !self.datasets.exists(d, has(d.columns) && has(d.columns.labels))",
        message="datasets: columns.labels is for MultiLabel problems: write columns.label, or classification.problemType: "
        "MultiLabel",
        holds=_labels_are_multi_label,
    ),
    Rule(
        cel="self.datasets.all(d, has(d.weight) == has(self.datasets[0].weight))",
        message="datasets: write weight for each data set, or for none",
        holds=lambda spec: len({dataset.weight is None for dataset in spec.datasets}) < 2,
    ),
    Rule(
        cel="self.datasets.all(d, (has(d.streaming) && d.streaming)"
        " == (has(self.datasets[0].streaming) && self.datasets[0].streaming))",
        message="datasets: write streaming: true for each data set, or for none",
        holds=lambda spec: len({dataset.streaming for dataset in spec.datasets}) < 2,
    ),
    _if_streaming(
        "has(self.training.maxSteps)",
        "datasets: with streaming, the number of rows is unknown, so the length of an epoch is unknown: write training.maxSteps",
        lambda spec: spec.training.max_steps is not None,
    ),
    _if_streaming(
        "!has(self.evaluation.everyEpochs)",
        "evaluation.everyEpochs: with streaming, the length of an epoch is unknown: write everySteps",
        lambda spec: spec.evaluation.every_epochs is None,
    ),
    _if_streaming(
        "!has(self.classification) || !self.classification.balanced",
        "classification.balanced: with streaming, the rows of each class can't be counted beforehand: write classWeights",
        lambda spec: spec.classification is None or not spec.classification.balanced,
    ),
    _if_streaming(
        "!has(self.maskedLM) || !self.maskedLM.chunk",
        "maskedLM.chunk: with streaming, each text is one row: remove it",
        lambda spec: spec.masked_lm is None or not spec.masked_lm.chunk,
    ),
    Rule(
        cel=f"self.datasets.all(d, !has(d.claim) || !has(d.claim.format) || !(d.claim.format in ['folders', 'text'])"
        f" || (d.claim.format == 'folders' ? {_task_in(_FOLDER_TASKS)} : {_task_in(_TEXT_FILE_TASKS)}))",
        message=f"datasets: claim.format: folders is for {join_words(_FOLDER_TASKS)}, text is for "
        f"{join_words(_TEXT_FILE_TASKS)}: write another format",
        holds=_formats_fit_task,
    ),
    Rule(
        cel="self.training.labelSmoothing == 0.0 || (self.task != 'dpo' && (!has(self.classification)"
        " || !has(self.classification.problemType) || self.classification.problemType != 'Regression'))",
        message="training.labelSmoothing: dpo and a Regression have no classes to spread a label over: remove it",
        holds=lambda spec: (
            not spec.training.label_smoothing
            or (spec.task != "dpo" and (spec.classification is None or spec.classification.problem_type != "Regression"))
        ),
    ),
    Rule(
        cel=f"self.training.loop != 'Native' || ({_task_in(NATIVE_TASKS)} && !has(self.model.lora))",
        message=f"training.loop: Native is for {join_words(NATIVE_TASKS)}, without model.lora: write Trainer",
        holds=lambda spec: spec.training.loop != "Native" or (spec.task in NATIVE_TASKS and spec.model.lora is None),
    ),
    Rule(
        cel="!has(self.publish) || !self.publish.mergeAdapter || has(self.model.lora)",
        message="publish.mergeAdapter: without model.lora there is no adapter: add model.lora, or write false",
        holds=lambda spec: spec.publish is None or not spec.publish.merge_adapter or spec.model.lora is not None,
    ),
    Rule(
        cel="!has(self.publish) || self.publish.when != 'OnBestCheckpoint' || has(self.evaluation.best)",
        message="publish.when: OnBestCheckpoint needs evaluation.best: {metric: …}",
        holds=lambda spec: spec.publish is None or spec.publish.when != "OnBestCheckpoint" or spec.evaluation.best is not None,
    ),
    Rule(
        cel="!has(self.samples) || self.samples.all(s, (!has(s.textPair) || self.task == 'text-classification')"
        f" && (!has(s.messages) || {_task_in(_CHAT_TASKS)}))",
        message="samples: textPair is for text-classification, messages are for sft and dpo: write only text",
        holds=_samples_fit_task,
    ),
    Rule(
        cel="!has(self.output) || !has(self.output.retention) || self.output.retention.whenFinished != 'Delete'"
        " || has(self.publish)",
        message="output.retention.whenFinished: Delete would delete the only copy of the model: add publish, or write Retain",
        holds=_model_is_kept,
    ),
    Rule(
        cel="!has(self.distributed) || self.distributed.nodes < 2 || !has(self.output) || !has(self.output.volume)"
        " || !has(self.output.volume.accessMode) || self.output.volume.accessMode == 'ReadWriteMany'",
        message="with distributed.nodes > 1 all pods write to the output volume: output.volume.accessMode must be ReadWriteMany",
        holds=_volume_is_shared,
    ),
    Rule(
        cel="!has(self.distributed) || !has(self.distributed.gpuResourceClaim) || (has(self.pod) && has(self.pod.resourceClaims)"
        " && self.pod.resourceClaims.exists(c, c.name == self.distributed.gpuResourceClaim))",
        message="distributed.gpuResourceClaim must be the name of an entry of pod.resourceClaims: correct it, or add the entry",
        holds=_gpu_claim_exists,
    ),
)
