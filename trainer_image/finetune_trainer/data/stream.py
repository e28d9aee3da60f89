"""Rows that are read while training, and tokenised when their turn comes: for data that is too large to be prepared."""

import collections
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from finetune_api.wire import RunConfig
from finetune_trainer.data import classes as labels
from finetune_trainer.data.batches import BatchPlan, Drawn, StreamBatches
from finetune_trainer.data.columns import Wanted, choose_layout
from finetune_trainer.data.normalise import rows_of
from finetune_trainer.data.rows import Rows
from finetune_trainer.data.sources import Source, open_sources
from finetune_trainer.tasks.base import DataInfo, Row, Task

Values = Mapping[str, Any]


class Stream:
    """Rows to train on of all data sets of a job, with the columns that `Task.encode` gets: the same at each pass.

    revisions: commit of each data set of the Hub, "" for a claim's. info: what was found in the first rows.
    """

    def __init__(self, config: RunConfig, revisions: Sequence[str], info: DataInfo) -> None:
        self._config, self._revisions, self._info = config, revisions, info

    def read(self) -> Iterator[Values]:
        """One pass: a row of each data set in turn, until all have ended. Raises FineTuneError for rows that are wrong."""
        sources = open_sources(self._config, self._revisions)
        layout = choose_layout(self._config.spec, [source.head for source in sources])
        pairs = any("text_pair" in wanted.columns for wanted in layout.wanted)
        for row in _in_turn(self._rows(source, wanted) for source, wanted in zip(sources, layout.wanted, strict=True)):
            yield {"text_pair": "", **row} if pairs else row

    def _rows(self, source: Source, wanted: Wanted) -> Iterator[Values]:
        return itertools.islice(self._all_rows(source, wanted), source.spec.max_train_samples)

    def _all_rows(self, source: Source, wanted: Wanted) -> Iterator[Values]:
        column = labels.COLUMNS.get(wanted.kind)
        names: Mapping[str, str] | None = None
        for chunk in source.train:
            rows = list(rows_of(chunk, wanted, source.tally.left_out))
            if column is None:
                yield from rows
                continue
            if names is None and rows:  # whether labels are numbers is seen in the first rows
                names = labels.names_of_numbers(_labels(rows, column), self._info.classes)
            for row in rows:
                row[column] = _named(row[column], names or {})
            given = self._config.spec.classification is not None and self._config.spec.classification.labels is not None
            labels.refuse_unknown(collections.Counter(_labels(rows, column)), self._info.classes, "training", given)
            yield from rows


def _in_turn(streams: Iterable[Iterator[Values]]) -> Iterator[Values]:
    waiting = collections.deque(streams)
    while waiting:
        stream = waiting.popleft()
        for row in itertools.islice(stream, 1):
            yield row
            waiting.append(stream)


def _labels(rows: Iterable[Row], column: str) -> Iterator[str]:
    """All of them; of lists each entry."""
    for row in rows:
        yield from row[column] if isinstance(row[column], list) else [row[column]]


def _named(label: Any, names: Mapping[str, str]) -> Any:
    return [names.get(one, one) for one in label] if isinstance(label, list) else names.get(label, label)


class StreamRows(torch.utils.data.Dataset[Row]):
    """Rows of a stream as the loops ask for them. There are as many as the training takes.

    sample: its first rows, tokenised. What is random about a row is a function of seed, pass and row alone. lengths: tokens of
    each row of the sample, shape (rows,).
    """

    def __init__(self, stream: Stream, sample: Rows, task: Task) -> None:
        self._stream, self._task, self._training = stream, task, task.spec.training
        self.lengths = sample.lengths
        # In the place of a row that tokenising leaves nothing of: every process finds so many rows as it expects.
        self._stand_in = sample[0, ~int(sample.lengths.argmin())]

    def __len__(self) -> int:
        assert self._training.max_steps is not None, "the spec's rules ask for it"
        return self._training.max_steps * self._training.global_batch_size

    def batches(self, plan: BatchPlan, rank: int) -> StreamBatches:
        """Which of them a process trains on."""
        return StreamBatches(plan, self._stream.read, self._task.max_tokens, self._training.seed, rank)

    def __getitem__(self, key: Drawn) -> Row:
        random = np.random.default_rng([self._training.seed, key.epoch, key.number])
        encoded = self._task.encode({name: [value] for name, value in key.values.items()})
        rows = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
        if not rows:
            return self._stand_in
        row = self._task.vary(rows[random.integers(len(rows))], random)
        return self._task.blank(row) if key.blank else row
