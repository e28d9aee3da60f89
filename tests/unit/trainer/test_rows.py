"""Rows as the loops read them: random parts of a row depend only on seed, epoch and row number."""

from typing import Any

import datasets
import numpy as np

from finetune_trainer.data.rows import RowDataset


class AugmentingTask:
    """A task that adds a random number to each row."""

    def augment(self, row: dict[str, Any], random: np.random.Generator) -> dict[str, Any]:
        return {**row, "number": int(random.integers(1 << 30))}

    def padding_row(self, row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "labels": -100}


def rows(seed: int = 1, augmented: bool = True) -> RowDataset:
    tokenised = datasets.Dataset.from_dict({"input_ids": [[1], [2, 2], [3]], "labels": [7, 8, 9], "length": [1, 2, 1]})
    return RowDataset(tokenised, AugmentingTask(), seed, augmented)  # type: ignore[arg-type]


def test_a_row_is_the_same_in_every_order_of_reads() -> None:
    together = rows().__getitems__([(4, 2), (4, 0)])
    assert together == [rows()[4, 2], rows()[4, 0]]
    assert together[0]["input_ids"] == [3]


def test_the_augmentation_changes_with_epoch_row_and_seed() -> None:
    numbers = {rows()[0, 0]["number"], rows()[1, 0]["number"], rows()[0, 1]["number"], rows(seed=2)[0, 0]["number"]}
    assert len(numbers) == 4


def test_a_row_of_an_evaluation_never_changes() -> None:
    assert rows(augmented=False)[0, 1] == rows(augmented=False)[5, 1]


def test_a_padding_row_is_the_same_row_without_labels() -> None:
    assert rows()[3, ~1] == {**rows()[3, 1], "labels": -100}


def test_lengths_are_known_without_the_rows() -> None:
    assert rows().lengths.tolist() == [1, 2, 1]
    assert len(rows()) == 3
