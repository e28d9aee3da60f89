"""Rules about several blocks of the spec at once, each said twice: to the API server in CEL, and to the models.

What the expressions look at without ``has()`` has a default in the schema: CEL ends with "no such key" where it has not.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic.alias_generators import to_snake

from finetune_api.spec.common import join_words
from finetune_api.spec.tasks import NATIVE_TASKS, TASK_COLUMNS, Task

if TYPE_CHECKING:
    from finetune_api.spec.job import FineTuneJobSpec


@dataclasses.dataclass(frozen=True)
class Rule:
    """cel, of self, and holds, of the spec, are true where the rule is kept; sentence: what is wrong, and what to write."""

    cel: str
    sentence: str
    holds: Callable[["FineTuneJobSpec"], bool]


_FOLDERS: tuple[Task, ...] = ("text-classification", "masked-lm", "causal-lm")
_LINES: tuple[Task, ...] = ("token-classification", "masked-lm", "causal-lm", "sft")
_CHATS: tuple[Task, ...] = ("sft", "dpo")
_ALL_COLUMNS = tuple(dict.fromkeys(name for names in TASK_COLUMNS.values() for name in names))


def _among(tasks: tuple[Task, ...]) -> str:
    return f"self.task in {list(tasks)}"


def _block(name: str, attribute: str, *tasks: Task) -> Rule:
    return Rule(
        cel=f"!has(self.{name}) || {_among(tasks)}",
        sentence=f"{name} is for {join_words(tasks)}: remove it, or correct task",
        holds=lambda spec: getattr(spec, attribute) is None or spec.task in tasks,
    )


def _columns(task: Task) -> Rule:
    own = TASK_COLUMNS[task]
    others = [name for name in _ALL_COLUMNS if name not in own]
    return Rule(
        cel=f"self.task != '{task}' || self.datasets.all(d, !({' || '.join(f'has(d.columns.{name})' for name in others)}))",
        sentence=f"datasets: the columns of {task} are {join_words(own)}: remove the others from columns"
        if len(own) > 1
        else f"datasets: the column of {task} is {own[0]}: remove the others from columns",
        holds=lambda spec: (
            spec.task != task
            or all(getattr(dataset.columns, to_snake(name)) is None for dataset in spec.datasets for name in others)
        ),
    )


def _labels(spec: "FineTuneJobSpec") -> bool:
    lists = any(dataset.columns.labels is not None for dataset in spec.datasets)
    return not lists or spec.classification is None or spec.classification.problem_type in (None, "MultiLabel")


def _keeps_a_copy(spec: "FineTuneJobSpec") -> bool:
    retention = spec.output.retention
    return retention is None or retention.when_finished != "Delete" or spec.publish is not None


def _shared_volume(spec: "FineTuneJobSpec") -> bool:
    volume = spec.output.volume
    return spec.distributed.nodes < 2 or volume is None or volume.access_mode in (None, "ReadWriteMany")


def _samples(spec: "FineTuneJobSpec") -> bool:
    return all(
        (sample.text_pair is None or spec.task == "text-classification") and (sample.messages is None or spec.task in _CHATS)
        for sample in spec.samples or ()
    )


def _formats(spec: "FineTuneJobSpec") -> bool:
    formats = {dataset.claim.format for dataset in spec.datasets if dataset.claim is not None}
    return ("folders" not in formats or spec.task in _FOLDERS) and ("text" not in formats or spec.task in _LINES)


def _without_streaming(cel: str, sentence: str, absent: Callable[["FineTuneJobSpec"], bool]) -> Rule:
    """What data that is streamed can't have. cel and absent: true where it is not asked for."""
    return Rule(
        cel=f"!self.datasets.exists(d, d.streaming) || {cel}",
        sentence=sentence,
        holds=lambda spec: not spec.streaming or absent(spec),
    )


RULES = (
    _block("classification", "classification", "text-classification", "token-classification"),
    _block("maskedLM", "masked_lm", "masked-lm"),
    _block("sft", "sft", "sft"),
    _block("dpo", "dpo", "dpo"),
    *map(_columns, TASK_COLUMNS),
    Rule(
        cel="!has(self.classification) || !has(self.classification.problemType)"
        " || self.classification.problemType == 'SingleLabel' || self.task == 'text-classification'",
        sentence="classification.problemType: MultiLabel and Regression are for text-classification: leave it out",
        holds=lambda spec: (
            spec.classification is None
            or spec.classification.problem_type in (None, "SingleLabel")
            or spec.task == "text-classification"
        ),
    ),
    Rule(
        cel="!has(self.classification) || !has(self.classification.problemType)"
        " || self.classification.problemType == 'MultiLabel' || !self.datasets.exists(d, has(d.columns.labels))",
        sentence="datasets: columns.labels holds the lists of classes of a MultiLabel problem: write columns.label, or "
        "classification.problemType: MultiLabel",
        holds=_labels,
    ),
    Rule(
        cel="self.datasets.all(d, has(d.weight) == has(self.datasets[0].weight))",
        sentence="datasets: write weight for each data set, or for none",
        holds=lambda spec: len({dataset.weight is None for dataset in spec.datasets}) < 2,
    ),
    Rule(
        cel="self.datasets.all(d, d.streaming == self.datasets[0].streaming)",
        sentence="datasets: write streaming: true for each data set, or for none",
        holds=lambda spec: len({dataset.streaming for dataset in spec.datasets}) < 2,
    ),
    _without_streaming(
        "has(self.training.maxSteps)",
        "datasets: streaming does not know how many rows there are, so epochs have no length: write training.maxSteps",
        lambda spec: spec.training.max_steps is not None,
    ),
    _without_streaming(
        "!has(self.evaluation.everyEpochs)",
        "evaluation.everyEpochs: epochs have no length with streaming: write everySteps",
        lambda spec: spec.evaluation.every_epochs is None,
    ),
    _without_streaming(
        "!has(self.classification) || !self.classification.balanced",
        "classification.balanced: streaming does not count the classes beforehand: write classWeights",
        lambda spec: spec.classification is None or not spec.classification.balanced,
    ),
    _without_streaming(
        "!has(self.maskedLM) || !self.maskedLM.chunk",
        "maskedLM.chunk: streaming takes each text on its own: leave it out",
        lambda spec: spec.masked_lm is None or not spec.masked_lm.chunk,
    ),
    Rule(
        cel=f"self.datasets.all(d, !has(d.claim) || !has(d.claim.format) || !(d.claim.format in ['folders', 'text'])"
        f" || (d.claim.format == 'folders' ? {_among(_FOLDERS)} : {_among(_LINES)}))",
        sentence=f"datasets: claim.format: folders is for {join_words(_FOLDERS)}, text for {join_words(_LINES)}: write another "
        "format",
        holds=_formats,
    ),
    Rule(
        cel=f"self.training.loop != 'native' || ({_among(NATIVE_TASKS)} && !has(self.model.lora))",
        sentence=f"training.loop: native is for {join_words(NATIVE_TASKS)}, without model.lora: write trainer",
        holds=lambda spec: spec.training.loop != "native" or (spec.task in NATIVE_TASKS and spec.model.lora is None),
    ),
    Rule(
        cel="!has(self.publish) || !self.publish.mergeAdapter || has(self.model.lora)",
        sentence="publish.mergeAdapter: there is no adapter without model.lora: add it, or write false",
        holds=lambda spec: spec.publish is None or not spec.publish.merge_adapter or spec.model.lora is not None,
    ),
    Rule(
        cel="!has(self.publish) || self.publish.when != 'OnBestCheckpoint' || has(self.evaluation.best)",
        sentence="publish.when: OnBestCheckpoint needs evaluation.best: {metric: …}, which says what is better",
        holds=lambda spec: spec.publish is None or spec.publish.when != "OnBestCheckpoint" or spec.evaluation.best is not None,
    ),
    Rule(
        cel="!has(self.samples) || self.samples.all(s, (!has(s.textPair) || self.task == 'text-classification')"
        f" && (!has(s.messages) || {_among(_CHATS)}))",
        sentence="samples: textPair is for text-classification, messages are for sft and dpo: write text alone",
        holds=_samples,
    ),
    Rule(
        cel="!has(self.output) || !has(self.output.retention) || self.output.retention.whenFinished != 'Delete'"
        " || has(self.publish)",
        sentence="output.retention.whenFinished: Delete would delete the only copy of the model: add publish, or write Retain",
        holds=_keeps_a_copy,
    ),
    Rule(
        cel="!has(self.distributed) || self.distributed.nodes < 2 || !has(self.output) || !has(self.output.volume)"
        " || !has(self.output.volume.accessMode) || self.output.volume.accessMode == 'ReadWriteMany'",
        sentence="with distributed.nodes > 1 all pods write to the output volume: output.volume.accessMode must be ReadWriteMany",
        holds=_shared_volume,
    ),
)
