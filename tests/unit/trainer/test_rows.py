"""Rows as the loops ask for them: what is random about one depends on seed, epoch and row alone."""

from typing import Any

import datasets
import numpy as np

from finetune_trainer.data.rows import Rows


class Shaking:
    """A task whose rows carry a random number."""

    def vary(self, row: dict[str, Any], random: np.random.Generator) -> dict[str, Any]:
        return {**row, "number": int(random.integers(1 << 30))}

    def blank(self, row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "labels": -100}


def rows(seed: int = 1, varied: bool = True) -> Rows:
    tokenised = datasets.Dataset.from_dict({"input_ids": [[1], [2, 2], [3]], "labels": [7, 8, 9], "length": [1, 2, 1]})
    return Rows(tokenised, Shaking(), seed, varied)  # type: ignore[arg-type]


def test_a_row_is_the_same_whoever_asks_and_in_whichever_order() -> None:
    together = rows().__getitems__([(4, 2), (4, 0)])
    assert together == [rows()[4, 2], rows()[4, 0]]
    assert together[0]["input_ids"] == [3]


def test_it_changes_with_epoch_row_and_seed() -> None:
    numbers = {rows()[0, 0]["number"], rows()[1, 0]["number"], rows()[0, 1]["number"], rows(seed=2)[0, 0]["number"]}
    assert len(numbers) == 4


def test_that_of_an_evaluation_never_changes() -> None:
    assert rows(varied=False)[0, 1] == rows(varied=False)[5, 1]


def test_a_row_for_padding_is_the_same_row_without_weight() -> None:
    assert rows()[3, ~1] == {**rows()[3, 1], "labels": -100}


def test_lengths_are_known_without_the_rows() -> None:
    assert rows().lengths.tolist() == [1, 2, 1]
    assert len(rows()) == 3
