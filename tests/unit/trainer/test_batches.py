"""The split of the data over steps and processes. It is a pure function, so the tests run it over many shapes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.data.batches import BatchPlan, TrainBatchSampler, epoch_order, evaluation_batches, evaluation_order

SHAPES = st.tuples(st.integers(1, 90), st.integers(1, 33), st.integers(1, 5), st.integers(1, 12))


def some_lengths(rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 100, rows)


def steps_of(rows: int, global_batch: int, world_size: int, micro: int, epoch: int = 0) -> list[list[list[list[int]]]]:
    """[step][rank][micro-batch] → rows; a padding row is ~row."""
    plan = BatchPlan.choose(rows, global_batch, world_size, micro)
    ranks = []
    for rank in range(world_size):
        sampler = TrainBatchSampler(plan, some_lengths(rows), seed=7, rank=rank)
        sampler.set_epoch(epoch)
        assert all(of == epoch for batch in sampler for of, _ in batch)
        batches = [[row for _, row in batch] for batch in sampler]
        assert len(batches) == len(sampler) == plan.steps_per_epoch * plan.accumulation
        ranks.append(chunks(batches, plan))
    return [[list(rank[step]) for rank in ranks] for step in range(plan.steps_per_epoch)]


def chunks(batches: list[list[int]], plan: BatchPlan) -> list[list[list[int]]]:
    return [batches[start : start + plan.accumulation] for start in range(0, len(batches), plan.accumulation)]


@given(SHAPES)
@settings(max_examples=200, deadline=None)
def test_every_row_is_trained_on_once_per_epoch_for_every_split(shape: tuple[int, int, int, int]) -> None:
    keys = [key for step in steps_of(*shape) for rank in step for batch in rank for key in batch]
    assert sorted(key for key in keys if key >= 0) == list(range(shape[0]))


@given(SHAPES, st.integers(1, 5), st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_a_step_has_the_same_rows_for_every_split(shape: tuple[int, int, int, int], world_size: int, micro: int) -> None:
    def rows_by_step(*split: int) -> list[list[int]]:
        return [
            sorted(key for rank in step for batch in rank for key in batch if key >= 0) for step in steps_of(*shape[:2], *split)
        ]

    assert rows_by_step(*shape[2:]) == rows_by_step(world_size, micro)


@given(SHAPES)
@settings(max_examples=200, deadline=None)
def test_every_forward_pass_has_at_least_one_row_and_at_most_the_micro_batch(shape: tuple[int, int, int, int]) -> None:
    micro = shape[3]
    assert all(1 <= len(batch) <= micro for step in steps_of(*shape) for rank in step for batch in rank)


def order(seed: int, epoch: int) -> list[int]:
    return epoch_order(some_lengths(50), 8, seed, epoch).tolist()


def test_the_order_depends_on_seed_and_epoch() -> None:
    first = order(seed=1, epoch=0)
    assert sorted(first) == list(range(50))
    assert first == order(seed=1, epoch=0)
    assert first != order(seed=1, epoch=1)
    assert first != order(seed=2, epoch=0)


def test_rows_of_a_batch_have_similar_lengths_and_batches_are_in_random_order() -> None:
    lengths = np.random.default_rng(1).integers(1, 500, 3200)
    batches = lengths[epoch_order(lengths, 32, seed=3, epoch=1)].reshape(-1, 32)
    assert batches.max(axis=1).sum() * 32 < 1.05 * lengths.sum(), "padding adds at most 5%"
    longest = batches.max(axis=1)
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3, "the length of a batch does not depend on its position"


def test_the_longest_row_is_in_the_first_batch_and_the_incomplete_batch_is_the_last() -> None:
    lengths = some_lengths(61)
    lengths[17] = 1000
    first_epoch = epoch_order(lengths, 8, seed=1, epoch=0)
    assert 17 in first_epoch[:8] or 17 in first_epoch[56:]
    assert len(first_epoch) == 61


def test_rows_of_equal_length_are_in_random_order() -> None:
    found = epoch_order(np.full(64, 7), 8, seed=1, epoch=0)
    assert len({int(row) // 8 for row in found[:8]}) > 2


def test_an_epoch_can_be_resumed_in_the_middle() -> None:
    plan = BatchPlan.choose(61, 8, 2, 3)
    whole, rest = (TrainBatchSampler(plan, some_lengths(61), seed=7, rank=1) for _ in range(2))
    whole.set_epoch(2)
    rest.set_epoch(2, first_step=3)
    assert list(rest) == list(whole)[3 * plan.accumulation :]


@pytest.mark.parametrize(
    ("rows", "global_batch", "world_size", "micro", "expected"),
    [
        (1000, 32, 1, None, (32, 1)),
        (1000, 256, 1, None, (32, 8)),
        (1000, 32, 4, None, (8, 1)),
        (1000, 8, 2, 4, (4, 1)),
        (1000, 8, 1, 1, (1, 8)),
        (1000, 10, 3, 2, (2, 2)),
        (5, 32, 1, None, (5, 1)),
    ],
)
def test_the_micro_batch_is_the_share_of_the_process_at_most_32_rows(
    rows: int, global_batch: int, world_size: int, micro: int | None, expected: tuple[int, int]
) -> None:
    plan = BatchPlan.choose(rows, global_batch, world_size, micro)
    assert (plan.micro, plan.accumulation) == expected


@pytest.mark.parametrize(("epochs", "max_steps", "expected"), [(1, None, 8), (2.5, None, 20), (0.01, None, 1), (3, 5, 5)])
def test_steps_follow_from_epochs_unless_they_are_given(epochs: float, max_steps: int | None, expected: int) -> None:
    assert BatchPlan.choose(61, 8, 1, None).total_steps(epochs, max_steps) == expected


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_evaluation_counts_each_row_once_in_batches_that_do_not_depend_on_the_world_size(
    rows: int, size: int, world_size: int
) -> None:
    lengths = some_lengths(rows)
    split = [batch for rank in range(world_size) for batch in evaluation_batches(lengths, size, rank, world_size)]
    assert sorted(row for batch in split for _, row in batch) == list(range(rows))
    assert sorted(split) == sorted(evaluation_batches(lengths, size, 0, 1))
    assert evaluation_order(lengths, size, world_size).tolist() == [row for batch in split for _, row in batch]
