"""Load what ``spec.datasets`` names, as one training set and one evaluation set with columns text, text_pair, label."""

import dataclasses
import logging
import pathlib
from collections.abc import Collection, Mapping

import datasets
import numpy as np

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import ClaimDataset, HubDataset
from finetune_api.spec import Dataset as DatasetSpec
from finetune_api.wire import RunConfig
from finetune_trainer import hub
from finetune_trainer.data import columns, files

log = logging.getLogger(__name__)

DEFAULT_EVAL_FRACTION = 0.1
_EVAL_SPLITS = ("validation", "valid", "dev", "test")  # looked for in this order when the spec names none


@dataclasses.dataclass(frozen=True)
class Data:
    """Rows to train and to evaluate on: columns text, label (str), and text_pair (str) for tasks on pairs of texts.

    classes: names of the classes, in their order.
    """

    train: datasets.Dataset
    evaluation: datasets.Dataset
    classes: list[str]


def load_data(config: RunConfig, revisions: list[str]) -> Data:
    """Load, normalise, split and concatenate all data sets. Raises FineTuneError that names the field to change.

    revisions: commit of each data set of the Hub, "" for a claim's.
    """
    seed = config.spec.training.seed
    trains, evaluations, declared = [], [], list[list[str] | None]()
    for index, spec in enumerate(config.spec.datasets):
        train, evaluation, names = load_dataset(spec, index, config.claims, revisions[index], seed)
        declared.append(names)
        trains.append(train)
        evaluations.append(evaluation)
    train, evaluation = datasets.concatenate_datasets(trains), datasets.concatenate_datasets(evaluations)
    classes = columns.order_classes(set(train.unique("label")), declared)
    unknown = set(evaluation.unique("label")) - set(classes)
    if unknown:
        raise FineTuneError(
            Reason.DATA_ERROR,
            f"spec.datasets: the evaluation data has classes that the training data lacks: {sorted(unknown)[:5]}",
        )
    if len(classes) < 2:
        raise FineTuneError(
            Reason.DATA_ERROR, f"spec.datasets: all rows have the one class {classes[0]!r}; a classifier needs two at least"
        )
    log.info("%d rows to train on, %d held out; classes: %s", len(train), len(evaluation), ", ".join(classes))
    return Data(train, evaluation, classes)


def load_dataset(
    spec: DatasetSpec, index: int, claims: Mapping[str, str], revision: str, seed: int
) -> tuple[datasets.Dataset, datasets.Dataset, list[str] | None]:
    """One data set: rows to train on, rows to evaluate on, and the classes that it declares. Raises FineTuneError."""
    field = f"spec.datasets[{index}]"
    raw = _read(spec, field, claims, revision)
    train_name, eval_name = choose_splits(raw, spec, field)
    declared = columns.declared_classes(raw[train_name], spec)
    train = columns.normalise(raw[train_name], spec, field, train_name)
    if eval_name:
        evaluation = columns.normalise(raw[eval_name], spec, field, eval_name)
    else:
        held_out = stratified_rows(train["label"], spec.eval_fraction or DEFAULT_EVAL_FRACTION, seed)
        evaluation = train.select(held_out)
        train = train.select(np.setdiff1d(np.arange(len(train)), held_out))
    return _limit(train, spec.max_train_samples, seed), _limit(evaluation, spec.max_eval_samples, seed), declared


def _read(spec: DatasetSpec, field: str, claims: Mapping[str, str], revision: str) -> dict[str, datasets.Dataset]:
    if spec.hub:
        return _read_hub(spec.hub, field, revision)
    assert spec.claim
    return _read_claim(spec.claim, field, pathlib.Path(claims[spec.claim.claim_name]))


def _read_hub(source: HubDataset, field: str, revision: str) -> dict[str, datasets.Dataset]:
    with hub.explained(f"{field}.hub", source.name, Reason.DATASET_NOT_FOUND):
        try:
            loaded = datasets.load_dataset(source.name, source.config, revision=revision or None)
        except datasets.exceptions.DatasetNotFoundError as error:
            raise FineTuneError(Reason.DATASET_NOT_FOUND, f"{field}.hub.name: {error}") from None
        except (ValueError, datasets.exceptions.DatasetGenerationError) as error:
            what = f"{field}.hub.config" if "config" in str(error).lower() else f"{field}.hub"
            raise FineTuneError(Reason.DATA_ERROR, f"{what}: {_first_sentence(error)}") from None
    return {str(name): split for name, split in loaded.items()}


def _read_claim(source: ClaimDataset, field: str, root: pathlib.Path) -> dict[str, datasets.Dataset]:
    splits = files.read_files(root / (source.path or ""), source.format, f"{field}.claim.path")
    if source.eval_path:
        evaluation = files.read_files(root / source.eval_path, source.format, f"{field}.claim.evalPath")
        if len(evaluation) > 1:
            raise FineTuneError(
                Reason.DATA_ERROR,
                f"{field}.claim.evalPath: holds several splits ({', '.join(evaluation)}); name the file of one of them",
            )
        splits = {**splits, "validation": next(iter(evaluation.values()))}
    return splits


def choose_splits(splits: Collection[str], spec: DatasetSpec, field: str) -> tuple[str, str | None]:
    """Names of the splits to train and to evaluate on; None where rows are to be held out instead."""
    available = ", ".join(splits)
    if spec.train_split not in splits:
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR, f"{field}.trainSplit: there is no split {spec.train_split!r}; write one of: {available}"
        )
    if spec.eval_split is not None and spec.eval_split not in splits:
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR, f"{field}.evalSplit: there is no split {spec.eval_split!r}; write one of: {available}"
        )
    if spec.eval_fraction is not None:
        return spec.train_split, None
    found = (name for name in _EVAL_SPLITS if name in splits and name != spec.train_split)
    return spec.train_split, spec.eval_split or next(found, None)


def stratified_rows(labels: list[str], fraction: float, seed: int) -> np.ndarray:
    """Indices of the rows to hold out: int64, sorted; the fraction of each class, at least one row of a class with two.

    Ours because the libraries' splits refuse a class with a single row, which real data has.
    """
    by_class: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        by_class.setdefault(label, []).append(row)
    chosen: list[int] = []
    for index, label in enumerate(sorted(by_class)):
        rows = by_class[label]
        count = min(max(round(len(rows) * fraction), 1), len(rows) - 1)
        chosen += np.random.default_rng([seed, index]).permutation(rows)[:count].tolist()
    return np.array(sorted(chosen), dtype=np.int64)


def _limit(rows: datasets.Dataset, count: int | None, seed: int) -> datasets.Dataset:
    if count is None or count >= len(rows):
        return rows
    return rows.select(np.sort(np.random.default_rng(seed).permutation(len(rows))[:count]))


def _first_sentence(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]
