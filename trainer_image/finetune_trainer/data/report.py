"""The report on the data: it is collected while the data is read, printed once, and stored with the tokenised rows."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

_CLASSES_SHOWN = 12


@dataclasses.dataclass
class ReadCounts:
    """Counts of one data set, made while it is read.

    read: rows by split. skipped: rows by reason. notes: other observations, such as files in another encoding.
    """

    source: str
    read: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    skipped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    notes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def line(self) -> str:
        """Return one line for people."""
        read = ", ".join(f"{name} {count:,}" for name, count in self.read.items())
        more = [f"{count:,} left out ({reason})" for reason, count in self.skipped.items()]
        more += [f"{count:,} {note}" for note, count in self.notes.items()]
        return "; ".join([f"{self.source}: rows read: {read}", *more])


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Tokens per training row, after cutting. cut: number of rows that were longer than ``limit``."""

    mean: float
    p95: int
    longest: int
    limit: int
    rows: int
    cut: int

    @classmethod
    def of(cls, lengths: np.ndarray, limit: int, cut: int) -> "Lengths":
        """Compute the statistics. lengths: integers of shape (rows,), at least one."""
        p95 = int(np.percentile(lengths, 95, method="inverted_cdf"))
        return cls(round(float(lengths.mean()), 1), p95, int(lengths.max()), limit, len(lengths), cut)

    def line(self) -> str:
        """Return one line for people."""
        cut = f"{self.cut:,} ({self.cut / self.rows:.1%}) are cut at {self.limit:,}" if self.cut else "no row is cut"
        return f"tokens per row: {self.mean:,} on average, 95 % have at most {self.p95:,}, the longest {self.longest:,}; {cut}"


@dataclasses.dataclass(frozen=True)
class DataReport:
    """All counts of the data of a job.

    duplicates: training rows that repeat an earlier row. shared: held-out rows that are also in the training data. classes:
    training rows (or words) by class or tag. lengths: set when the rows are tokenised. streaming: whether the training rows are
    only the first of a stream. labels: for what the labels were taken. hints: for what else they could be taken. read: rows of
    all splits that were read. skipped: those left out, by reason. disagreeing: training rows with the inputs of another row, and
    another label.
    """

    sources: Sequence[str]
    train_rows: int
    evaluation_rows: int
    duplicates: int
    shared: int
    classes: Mapping[str, int]
    lengths: Lengths | None = None
    streaming: bool = False
    labels: str = ""
    hints: Sequence[str] = ()
    read: int = 0
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    disagreeing: int = 0

    def lines(self) -> Iterator[str]:
        """Yield a few lines for people."""
        yield from self.sources
        odd = [f"{self.duplicates:,} of them duplicates"] if self.duplicates else []
        odd += [f"{self.shared:,} evaluation rows are also in the training data"] if self.shared else []
        odd += [f"{self.disagreeing:,} training rows disagree with another one on the label"] if self.disagreeing else []
        if self.streaming:
            yield "training rows are streamed; these counts cover the first rows only"
        yield "; ".join([f"{self.train_rows:,} training rows, {self.evaluation_rows:,} held out", *odd])
        if self.labels and not self.classes:
            yield self.labels
        if self.classes:
            shown = [f"{name} {count:,}" for name, count in list(self.classes.items())[:_CLASSES_SHOWN]]
            more = len(self.classes) - len(shown)
            what = self.labels or "classes"
            yield f"{len(self.classes)} {what}: {', '.join(shown)}" + (f" and {more} more" if more else "")
        yield from self.hints
        if self.lengths is not None:
            if self.lengths.rows != self.train_rows:
                yield f"{self.lengths.rows:,} training rows after tokenising"
            yield self.lengths.line()

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> "DataReport":
        """Read the result of dataclasses.asdict."""
        lengths = value["lengths"]
        return cls(**{**value, "lengths": Lengths(**lengths) if isinstance(lengths, dict) else None})  # type: ignore[arg-type]


def overlap(train: pa.Table, evaluation: pa.Table) -> tuple[int, int]:
    """Return the number of duplicate training rows, and of held-out rows that are also in the training data."""
    trained, held_out = _hashes(train), _hashes(evaluation)
    return len(trained) - len(np.unique(trained)), int(np.isin(held_out, trained).sum())


def count_disagreeing(train: pa.Table, column: str) -> int:
    """Return the number of training rows whose inputs another row has with another label. column: that of the labels."""
    inputs, labels = _hashes(train.drop_columns([column])), _hashes(train.select([column]))
    pairs = np.unique(np.stack([inputs, labels], axis=1), axis=0)
    found, labels_of_each = np.unique(pairs[:, 0], return_counts=True)
    return int(np.isin(inputs, found[labels_of_each > 1]).sum())


def _hashes(table: pa.Table) -> np.ndarray:
    """Return one hash per row, equal for equal rows within this process: int64 of shape (rows,)."""
    found = []
    for batch in table.to_batches(max_chunksize=10_000):
        columns = [column.to_pylist() for column in batch.columns]
        rows = zip(*columns, strict=True)
        found += [hash(str(row) if isinstance(row[0], list) or isinstance(row[-1], list) else row) for row in rows]
    return np.array(found, dtype=np.int64)
