"""How many rows a job trains on: read as the trainer reads them where the data is at hand, else as the Hub says."""

import dataclasses
from collections.abc import Mapping

from finetune_api.spec import Dataset, FineTuneJobSpec
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


def observe_rows(spec: FineTuneJobSpec, claims: Mapping[str, str]) -> Rows:
    """Count what can be counted. Raises FineTuneError for data that the trainer would refuse."""
    needed = [dataset.claim.claim_name for dataset in spec.datasets if dataset.claim is not None]
    if missing := [name for name in needed if name not in claims]:
        return Rows(reason=f"the claim {missing[0]} is not given")
    if len(needed) == len(spec.datasets):
        return _read_all(spec, claims)
    counts = [_count(spec, index, claims) for index in range(len(spec.datasets))]
    if None in counts:
        return Rows(reason=f"the card of {_name(spec.datasets[counts.index(None)])} does not say its number")
    known = [count for count in counts if count is not None]
    return Rows(train=sum(train for train, _ in known), evaluation=sum(evaluation for _, evaluation in known))


def _read_all(spec: FineTuneJobSpec, claims: Mapping[str, str]) -> Rows:
    """Everything is at hand: load it as the training does, so that what is refused then is refused now."""
    _silence_datasets()
    from finetune_trainer.data.load import load_data

    config = RunConfig(name="plan", namespace="default", spec=spec, nodes=1, processes_per_node=1, claims=dict(claims), output="")
    data = load_data(config, [""] * len(spec.datasets))
    return Rows(len(data.train), len(data.evaluation), exact=True, classes=tuple(data.classes))


def _silence_datasets() -> None:
    import datasets

    datasets.disable_progress_bars()


def _count(spec: FineTuneJobSpec, index: int, claims: Mapping[str, str]) -> tuple[int, int] | None:
    """Rows to train and to evaluate on, of one data set; of the Hub's the rows without a text are counted too."""
    from finetune_trainer.data.load import DEFAULT_EVAL_FRACTION, choose_splits, load_dataset
    from finetune_trainer.plan.remote import count_hub_rows

    _silence_datasets()
    dataset, field = spec.datasets[index], f"spec.datasets[{index}]"
    if dataset.hub is None:
        train, evaluation, _ = load_dataset(dataset, index, claims, "", spec.training.seed)
        return len(train), len(evaluation)
    splits = count_hub_rows(dataset.hub, f"{field}.hub")
    if splits is None:
        return None
    train_name, eval_name = choose_splits(splits, dataset, field)
    rows = splits[train_name]
    held_out = splits[eval_name] if eval_name else round(rows * (dataset.eval_fraction or DEFAULT_EVAL_FRACTION))
    kept = rows if eval_name else rows - held_out
    return min(kept, dataset.max_train_samples or kept), min(held_out, dataset.max_eval_samples or held_out)


def _name(dataset: Dataset) -> str:
    assert dataset.hub is not None
    return dataset.hub.name
