"""Streamed data: the order of the rows is the same for every split and every restart, even if rows become empty."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api import resource
from finetune_trainer.data import batches
from finetune_trainer.data.batches import BatchPlan, StreamBatchSampler, StreamedRow
from finetune_trainer.data.rows import RowDataset
from finetune_trainer.data.stream import StreamDataset

SHAPES = st.tuples(st.integers(1, 60), st.integers(1, 20), st.integers(1, 4), st.integers(1, 8))
STEPS = 12


@pytest.fixture(autouse=True)
def _few_rows_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "SHUFFLE_BUFFER_ROWS", 25)


def sampler(rows: int, global_batch: int, world_size: int, micro: int, rank: int = 0, seed: int = 7) -> StreamBatchSampler:
    """Return the sampler of a stream of texts of different lengths. Texts above 80 letters are truncated."""
    lengths = np.random.default_rng(0).integers(1, 100, rows).tolist()

    def read() -> Iterator[Mapping[str, Any]]:
        return iter([{"text": "a" * length} for length in lengths])

    plan = BatchPlan.choose(STEPS * global_batch, global_batch, world_size, micro)
    return StreamBatchSampler(plan, read, max_tokens=20, seed=seed, rank=rank)


def steps_of(*shape: int) -> list[list[list[StreamedRow]]]:
    """[step][forward pass of any process] → rows."""
    ranks = [list(sampler(*shape, rank=rank)) for rank in range(shape[2])]
    passes = len(ranks[0]) // STEPS
    assert all(len(rank) == passes * STEPS for rank in ranks)
    return [[batch for rank in ranks for batch in rank[step * passes : (step + 1) * passes]] for step in range(STEPS)]


def keys(step: list[list[StreamedRow]]) -> list[tuple[int, int]]:
    """Return (epoch, number) of the rows that are not padding."""
    return sorted((row.epoch, row.number) for batch in step for row in batch if not row.is_padding)


# --- the order --------------------------------------------------------------------------------------------------------------


@given(SHAPES, st.integers(1, 4), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_a_step_has_the_same_rows_for_every_split(shape: tuple[int, int, int, int], world_size: int, micro: int) -> None:
    assert [keys(step) for step in steps_of(*shape)] == [keys(step) for step in steps_of(*shape[:2], world_size, micro)]


@given(SHAPES)
@settings(max_examples=60, deadline=None)
def test_every_batch_is_full_and_no_row_is_repeated_in_an_epoch(shape: tuple[int, int, int, int]) -> None:
    steps = [keys(step) for step in steps_of(*shape)]
    assert all(len(step) == shape[1] for step in steps)
    seen = [key for step in steps for key in step]
    assert len(set(seen)) == len(seen)
    # Fewer rows than a batch wait for more rows.
    first = [number for epoch, number in seen if epoch == 0]
    assert len(first) >= min(shape[0], STEPS * shape[1]) - shape[1] + 1


def test_every_forward_pass_has_at_least_one_row_and_at_most_the_micro_batch() -> None:
    assert all(1 <= len(batch) <= 2 for step in steps_of(30, 7, 3, 2) for batch in step)


@given(SHAPES, st.integers(0, STEPS))
@settings(max_examples=60, deadline=None)
def test_a_stream_can_be_resumed_after_any_step(shape: tuple[int, int, int, int], step: int) -> None:
    whole, rest = sampler(*shape), sampler(*shape)
    rest.set_epoch(0, first_step=step)
    assert list(rest) == list(whole)[step * whole.plan.accumulation :]


def test_the_order_depends_on_the_seed_and_differs_in_each_epoch() -> None:
    def epochs(seed: int) -> dict[int, list[int]]:
        rows = [row for batch in sampler(20, 4, 1, 4, seed=seed) for row in batch]
        return {epoch: [row.number for row in rows if row.epoch == epoch] for epoch in (0, 1)}

    assert epochs(1) == epochs(1)
    assert epochs(1) != epochs(2)
    assert sorted(epochs(1)[0]) == sorted(epochs(1)[1]) == list(range(20))
    assert epochs(1)[0] != epochs(1)[1]


def test_rows_of_a_batch_have_similar_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "SHUFFLE_BUFFER_ROWS", 1000)
    steps = itertools.islice(sampler(1000, 10, 1, 10), STEPS)
    lengths = np.array([[min(80, len(row.values["text"])) for row in batch] for batch in steps])
    assert (lengths.max(axis=1) - lengths.min(axis=1)).mean() < 10


def test_epochs_are_counted_after_the_end_of_the_first_one() -> None:
    stream = sampler(20, 4, 1, 4)
    for _ in stream:
        pass
    assert [stream.epoch(step) for step in (0, 5, 6, 10)] == [0.0, 0.0, 1.2, 2.0]


# --- rows -------------------------------------------------------------------------------------------------------------------


class SplittingTask:
    """A task that makes a row of each word of a text, with a random number."""

    max_tokens = 8

    def __init__(self) -> None:
        data = [{"claim": {"claimName": "d"}, "streaming": True}]
        training = {"maxSteps": 5, "globalBatchSize": 4, "seed": 1}
        spec = {"task": "causal-lm", "model": {"claim": {"claimName": "m"}}, "datasets": data, "training": training}
        self.spec = resource.parse_spec(spec)

    def encode(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        return {"word": [word for text in batch["text"] for word in text.split()]}

    def augment(self, row: dict[str, Any], random: np.random.Generator) -> dict[str, Any]:
        return {**row, "number": int(random.integers(1 << 30))}

    def padding_row(self, row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "weight": 0}


def stream_rows() -> StreamDataset:
    task: Any = SplittingTask()
    sample = RowDataset(datasets.Dataset.from_dict({"word": ["long", "short"], "length": [4, 2]}), task, seed=1, augmented=True)
    return StreamDataset(None, sample, task)  # type: ignore[arg-type]


def drawn(text: str, epoch: int = 0, number: int = 0, is_padding: bool = False) -> StreamedRow:
    return StreamedRow(epoch, number, {"text": text}, is_padding)


def test_the_length_is_the_number_of_rows_of_the_training() -> None:
    assert len(stream_rows()) == 20


def test_a_row_is_the_same_in_every_read_and_differs_in_the_next_epoch() -> None:
    assert stream_rows()[drawn("a")] == stream_rows()[drawn("a")]
    numbers = {stream_rows()[drawn("a", *key)]["number"] for key in ((0, 0), (1, 0), (0, 1))}
    assert len(numbers) == 3


def test_each_row_of_a_text_with_several_rows_is_used_in_some_epoch() -> None:
    assert {stream_rows()[drawn("a b c", epoch)]["word"] for epoch in range(30)} == {"a", "b", "c"}


def test_an_empty_row_is_replaced_by_a_short_row_without_weight() -> None:
    found = stream_rows()[drawn(" ")]
    assert (found["word"], found["weight"]) == ("short", 0)


def test_a_padding_row_is_the_same_row_without_weight() -> None:
    assert stream_rows()[drawn("a", is_padding=True)] == {**stream_rows()[drawn("a")], "weight": 0}
