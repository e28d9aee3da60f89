"""Reads and tokenises rows during the training, for data that is too large to prepare."""

import collections
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from finetune_api.wire import RunConfig
from finetune_trainer.data.batches import BatchPlan, StreamBatchSampler, StreamedRow
from finetune_trainer.data.classes import LABEL_COLUMNS, names_of_numbers, refuse_unknown_labels
from finetune_trainer.data.columns import ColumnMapping, choose_layout
from finetune_trainer.data.normalise import normalise_rows
from finetune_trainer.data.rows import RowDataset
from finetune_trainer.data.sources import Source, open_sources
from finetune_trainer.tasks.base import DataInfo, Row, Task

Values = Mapping[str, Any]


class Stream:
    """Training rows of all data sets of a job, with the columns that `Task.encode` gets. Each pass yields the same rows.

    revisions: commit of each data set on the Hub, "" for a claim. info: facts that the first rows show.
    """

    def __init__(self, config: RunConfig, revisions: Sequence[str], info: DataInfo) -> None:
        self._config, self._revisions, self._info = config, revisions, info

    def read(self) -> Iterator[Values]:
        """Yield the rows of one pass: one row of each data set in turn, until all end. Raise FineTuneError for wrong rows."""
        sources = open_sources(self._config, self._revisions)
        layout = choose_layout(self._config.spec, [source.head for source in sources])
        pairs = any("text_pair" in mapping.columns for mapping in layout.mappings)
        for row in _round_robin(self._rows(source, mapping) for source, mapping in zip(sources, layout.mappings, strict=True)):
            yield {"text_pair": "", **row} if pairs else row

    def _rows(self, source: Source, mapping: ColumnMapping) -> Iterator[Values]:
        return itertools.islice(self._all_rows(source, mapping), source.spec.max_train_samples)

    def _all_rows(self, source: Source, mapping: ColumnMapping) -> Iterator[Values]:
        column = LABEL_COLUMNS.get(mapping.kind)
        names: Mapping[str, str] | None = None
        for chunk in source.train:
            rows = list(normalise_rows(chunk, mapping, source.read_counts.skipped))
            if column is None:
                yield from rows
                continue
            if names is None and rows:  # the first rows show whether labels are numbers
                names = names_of_numbers(_labels(rows, column), self._info.classes)
            for row in rows:
                row[column] = _label_names(row[column], names or {})
            given = self._config.spec.classification is not None and self._config.spec.classification.labels is not None
            refuse_unknown_labels(collections.Counter(_labels(rows, column)), self._info.classes, "training", given)
            yield from rows


def _round_robin(streams: Iterable[Iterator[Values]]) -> Iterator[Values]:
    waiting = collections.deque(streams)
    while waiting:
        stream = waiting.popleft()
        for row in itertools.islice(stream, 1):
            yield row
            waiting.append(stream)


def _labels(rows: Iterable[Row], column: str) -> Iterator[str]:
    """Yield all labels. For lists, yield each entry."""
    for row in rows:
        yield from row[column] if isinstance(row[column], list) else [row[column]]


def _label_names(label: Any, names: Mapping[str, str]) -> Any:
    return [names.get(one, one) for one in label] if isinstance(label, list) else names.get(label, label)


class StreamDataset(torch.utils.data.Dataset[Row]):
    """Serves rows of a stream to the training loop. Its length is the number of rows that the training takes.

    The random augmentation of a row depends only on seed, pass and row. sample: the first rows of the stream, tokenised.
    lengths: tokens of each row of the sample, shape (rows,).
    """

    def __init__(self, stream: Stream, sample: RowDataset, task: Task) -> None:
        self._stream, self._task, self._training = stream, task, task.spec.training
        self.lengths = sample.lengths
        # Replaces a row that tokenising leaves out, so that every process gets the number of rows that it expects.
        self._placeholder_row = sample[0, ~int(sample.lengths.argmin())]

    def __len__(self) -> int:
        assert self._training.max_steps is not None, "the rules of the CRD require it"
        return self._training.max_steps * self._training.global_batch_size

    def batch_sampler(self, plan: BatchPlan, rank: int) -> StreamBatchSampler:
        """Return the sampler of the batches that one process trains on."""
        return StreamBatchSampler(plan, self._stream.read, self._task.max_tokens, self._training.seed, rank)

    def __getitem__(self, key: StreamedRow) -> Row:
        random = np.random.default_rng([self._training.seed, key.epoch, key.number])
        encoded = self._task.encode({name: [value] for name, value in key.values.items()})
        rows = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
        if not rows:
            return self._placeholder_row
        row = self._task.augment(rows[random.integers(len(rows))], random)
        return self._task.padding_row(row) if key.is_padding else row
