"""How many rows a job trains on: read as the trainer reads them where the data is at hand, else as the Hub says."""

import dataclasses
from collections.abc import Mapping

from finetune_api.spec import Dataset, FineTuneJobSpec, Task
from finetune_api.wire import RunConfig


@dataclasses.dataclass(frozen=True)
class Rows:
    """train, evaluation: rows; None where they are not known, for the given reason. exact: as the trainer will count them.

    classes: their names, where all data is at hand.
    """

    train: int | None = None
    evaluation: int | None = None
    exact: bool = False
    reason: str | None = None
    classes: tuple[str, ...] = ()


# Of these tasks each row of the data is one to train on; of the others rows without anything to learn are left out.
_ONE_TO_ONE: tuple[Task, ...] = ("text-classification", "token-classification")


def observe_rows(spec: FineTuneJobSpec, claims: Mapping[str, str]) -> Rows:
    """Count what can be counted. Raises FineTuneError for data that the trainer would refuse."""
    if reason := _uncountable(spec):
        return Rows(reason=reason)
    needed = [dataset.claim.claim_name for dataset in spec.datasets if dataset.claim is not None]
    if missing := [name for name in needed if name not in claims]:
        return Rows(reason=f"the claim {missing[0]} is not given")
    if len(needed) == len(spec.datasets):
        return _read_all(spec, claims)
    if spec.streaming:
        return Rows()
    counts = [_count(spec, index, claims) for index in range(len(spec.datasets))]
    if None in counts:
        return Rows(reason=f"the card of {_name(spec.datasets[counts.index(None)])} does not say its number")
    known = [count for count in counts if count is not None]
    return Rows(train=sum(train for train, _ in known), evaluation=sum(evaluation for _, evaluation in known))


def _uncountable(spec: FineTuneJobSpec) -> str | None:
    """Why only a tokenizer could count, which a plan does not load; None where it need not."""
    if spec.task == "causal-lm" and not spec.streaming:
        return "texts longer than maxTokens become several rows, which a tokenizer alone can count"
    if spec.masked_lm is not None and spec.masked_lm.chunk:
        return "the pieces of maskedLM.chunk can be counted by a tokenizer alone"
    return None


def _read_all(spec: FineTuneJobSpec, claims: Mapping[str, str]) -> Rows:
    """Everything is at hand: load it as the training does, so that what is refused then is refused now."""
    from finetune_trainer.data.load import load_data

    config = RunConfig(name="plan", namespace="default", spec=spec, nodes=1, processes_per_node=1, claims=dict(claims), output="")
    data = load_data(config, [""] * len(spec.datasets))
    train = None if spec.streaming else len(data.train)
    return Rows(train, len(data.evaluation), exact=spec.task in _ONE_TO_ONE, classes=tuple(data.classes))


def _count(spec: FineTuneJobSpec, index: int, claims: Mapping[str, str]) -> tuple[int, int] | None:
    """Rows to train and to evaluate on, of one data set; of the Hub's the rows without a text are counted too."""
    from finetune_trainer.data.load import count_listed, count_rows
    from finetune_trainer.plan.remote import count_hub_rows

    dataset, field = spec.datasets[index], f"spec.datasets[{index}]"
    if dataset.hub is None:
        return count_rows(spec, index, claims)
    listed = count_hub_rows(dataset.hub, f"{field}.hub")
    return None if listed is None else count_listed(listed, dataset, field)


def _name(dataset: Dataset) -> str:
    assert dataset.hub is not None
    return dataset.hub.name
