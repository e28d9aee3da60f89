"""Counts the rows of a job: reads local data as the trainer does, and asks the Hub for other data."""

import dataclasses
from collections.abc import Mapping

from finetune_api.spec import Dataset, FineTuneJobSpec, Task
from finetune_api.status import Finding
from finetune_api.wire import RunConfig


@dataclasses.dataclass(frozen=True)
class RowCounts:
    """Row counts of a job.

    train, evaluation: number of rows; None if not known, for the given reason. exact: whether the trainer gets the same numbers.
    classes, hints, findings: names of the classes, what else the labels may be, and what the rows say already, if all data is
    local.
    """

    train: int | None = None
    evaluation: int | None = None
    exact: bool = False
    reason: str | None = None
    classes: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


# In these tasks, each row of the data becomes one training row. Other tasks leave out rows that have nothing to learn.
_ONE_TO_ONE: tuple[Task, ...] = ("text-classification", "token-classification")


def observe_rows(spec: FineTuneJobSpec, claims: Mapping[str, str]) -> RowCounts:
    """Count the rows if possible. Raise FineTuneError for data that the trainer would refuse."""
    if reason := _uncountable(spec):
        return RowCounts(reason=reason)
    needed = [dataset.claim.claim_name for dataset in spec.datasets if dataset.claim is not None]
    if missing := [name for name in needed if name not in claims]:
        return RowCounts(reason=f"the claim {missing[0]} is not given")
    if len(needed) == len(spec.datasets):
        return _read_all(spec, claims)
    if spec.streaming:
        return RowCounts()
    counts = [_count(spec, index, claims) for index in range(len(spec.datasets))]
    if None in counts:
        return RowCounts(reason=f"the card of {_name(spec.datasets[counts.index(None)])} does not state the number of rows")
    known = [count for count in counts if count is not None]
    return RowCounts(train=sum(train for train, _ in known), evaluation=sum(evaluation for _, evaluation in known))


def _uncountable(spec: FineTuneJobSpec) -> str | None:
    """Return why counting needs a tokenizer, which a plan does not load; None if it needs none."""
    if spec.task == "causal-lm" and not spec.streaming:
        return "texts longer than maxTokens become several rows, which only a tokenizer can count"
    if spec.masked_lm is not None and spec.masked_lm.chunk:
        return "only a tokenizer can count the pieces of maskedLM.chunk"
    return None


def _read_all(spec: FineTuneJobSpec, claims: Mapping[str, str]) -> RowCounts:
    """Load local data as the training does, so that the plan reports the same errors."""
    from finetune_trainer.data.load import load_data
    from finetune_trainer.findings import find_in_data

    config = RunConfig(name="plan", namespace="default", spec=spec, nodes=1, processes_per_node=1, claims=dict(claims), output="")
    data = load_data(config, [""] * len(spec.datasets))
    train = None if spec.streaming else len(data.train)
    return RowCounts(
        train,
        len(data.evaluation),
        exact=spec.task in _ONE_TO_ONE,
        classes=tuple(data.classes),
        hints=tuple(data.report.hints),
        findings=tuple(find_in_data(spec.task, data.report)),
    )


def _count(spec: FineTuneJobSpec, index: int, claims: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the training and evaluation rows of one data set. On the Hub, rows without a text are counted too."""
    from finetune_trainer.data.load import count_from_split_sizes, count_rows
    from finetune_trainer.plan.remote import count_hub_rows

    dataset, field = spec.datasets[index], f"spec.datasets[{index}]"
    if dataset.hub is None:
        return count_rows(spec, index, claims)
    listed = count_hub_rows(dataset.hub, f"{field}.hub")
    return None if listed is None else count_from_split_sizes(listed, dataset, field)


def _name(dataset: Dataset) -> str:
    assert dataset.hub is not None
    return dataset.hub.name
