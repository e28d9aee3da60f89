"""Decides which rows are for training and which are held out. The result depends only on the spec and the seed."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import Dataset as DatasetSpec

DEFAULT_EVAL_FRACTION = 0.1
_EVAL_SPLITS = ("validation", "valid", "val", "dev", "test")  # tried in this order if the spec names none
_NAMES = re.compile(r"[A-Za-z_][\w.-]*(?=\[|\+|$)")  # names of splits in an expression

# (split, first row, row after the last)
Part = tuple[str, int, int]


def choose_splits(splits: Mapping[str, int], spec: DatasetSpec, field: str) -> tuple[list[Part], list[Part] | None]:
    """Return the parts for training and for evaluation; None for evaluation if rows must be held out. Raise FineTuneError.

    splits: name → rows. ``train[:80%]`` and ``train+test`` have the same meaning as in the library `datasets`.
    """
    train = _parts(splits, spec.train_split, f"{field}.trainSplit")
    if spec.eval_fraction is not None:
        return train, None
    if spec.eval_split is not None:
        return train, _parts(splits, spec.eval_split, f"{field}.evalSplit")
    used = {name for name, _, _ in train}
    found = next((name for name in _EVAL_SPLITS if name in splits and name not in used), None)
    return train, [(found, 0, splits[found])] if found else None


def split_names(splits: Sequence[str], spec: DatasetSpec, field: str) -> tuple[str, str | None]:
    """Return the training split and the evaluation split of files. Only whole splits are possible: rows are not counted yet."""
    for name, what in ((spec.train_split, "trainSplit"), (spec.eval_split, "evalSplit")):
        if name is not None and name not in splits and re.search(r"[\[+]", name):
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                f"{field}.{what}: {name!r} is an expression, which only data sets of the Hub have; "
                f"write one of: {', '.join(splits)}, and evalFraction or maxTrainSamples for a part of it",
            )
    train, evaluation = choose_splits(dict.fromkeys(splits, 0), spec, field)
    return train[0][0], evaluation[0][0] if evaluation else None


def _parts(splits: Mapping[str, int], expression: str, field: str) -> list[Part]:
    if expression in splits:
        return [(expression, 0, splits[expression])]
    unknown = next((name for name in _NAMES.findall(expression) if name not in splits), None)
    if unknown is not None or not re.search(r"[\[+]", expression):
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"{field}: there is no split {unknown or expression!r}; write one of: {', '.join(splits)}",
        )
    from datasets import ReadInstruction  # imported late: it takes a second, and few jobs need it

    try:
        found = ReadInstruction.from_spec(expression).to_absolute(dict(splits))
    except (ValueError, AssertionError) as error:
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR, f"{field}: {expression!r} can't be read ({error}); write for example train[:80%]"
        ) from None
    return [(part.splitname, part.from_, part.to) for part in found]


def hold_out(rows: int, labels: pa.ChunkedArray | None, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of training rows and of held-out rows: int64, sorted. labels: labels of the rows, to stratify by."""
    if labels is not None:
        held_out = stratified_rows(labels, fraction, seed)
    else:
        count = min(max(round(rows * fraction), 1), rows - 1)
        held_out = np.sort(np.random.default_rng(seed).permutation(rows)[:count])
    return np.setdiff1d(np.arange(rows), held_out), held_out


def stratified_rows(labels: pa.ChunkedArray, fraction: float, seed: int) -> np.ndarray:
    """Return the indices of the rows to hold out: int64, sorted. They are ``fraction`` of each class.

    At least one row of a class is held out and at least one is not, if the class has two. The splits of libraries are not used,
    because they refuse a class with a single row, which real data has.
    """
    encoded = labels.combine_chunks().dictionary_encode()
    codes, names = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
    chosen = []
    for index, code in enumerate(sorted(range(len(names)), key=names.__getitem__)):
        rows = np.flatnonzero(codes == code)
        count = min(max(round(len(rows) * fraction), 1), len(rows) - 1)
        chosen.append(np.random.default_rng([seed, index]).permutation(rows)[:count])
    return np.sort(np.concatenate(chosen))


def sample_rows(rows: int, max_rows: int | None, seed: int) -> np.ndarray | None:
    """Return the indices of ``max_rows`` random rows: int64, sorted; None for all rows."""
    if max_rows is None or max_rows >= rows:
        return None
    return np.sort(np.random.default_rng(seed).permutation(rows)[:max_rows])


def interleave(sizes: Sequence[int], weights: Sequence[float], seed: int) -> np.ndarray:
    """Return the rows of an epoch over several concatenated data sets: int64, in the proportion of the weights.

    The epoch has as many rows as all data sets together. All rows of a data set come before one is repeated, and the rows of
    each data set are spread evenly over the epoch.
    """
    counts = _shares(sum(sizes), np.asarray(weights, dtype=np.float64))
    rows, positions, first = [], [], 0
    for index, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        random = np.random.default_rng([seed, index])
        passes = [random.permutation(size) for _ in range(-(-count // size))]
        rows.append(np.concatenate([*passes, np.empty(0, np.int64)]).astype(np.int64)[:count] + first)
        positions.append((np.arange(count) + 0.5) / max(count, 1))
        first += size
    return np.concatenate(rows)[np.argsort(np.concatenate(positions), kind="stable")]


def _shares(total: int, weights: np.ndarray) -> list[int]:
    """Split ``total`` into whole numbers by weight. The largest remainders are rounded up."""
    exact = total * weights / weights.sum()
    counts = np.floor(exact).astype(int)
    order = np.argsort(counts - exact, kind="stable")
    counts[order[: total - counts.sum()]] += 1
    return counts.tolist()
