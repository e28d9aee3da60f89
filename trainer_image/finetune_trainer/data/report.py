"""What the data was like: counted while it is read, printed once, kept with the tokenised rows."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

_CLASSES_SHOWN = 12


@dataclasses.dataclass
class Tally:
    """Counts of one data set while it is read.

    read: rows by split. left_out: rows by reason. notes: whatever else is worth a word, such as files in another encoding.
    """

    source: str
    read: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    left_out: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    notes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def line(self) -> str:
        """One line for people."""
        read = ", ".join(f"{name} {count:,}" for name, count in self.read.items())
        more = [f"{count:,} left out ({reason})" for reason, count in self.left_out.items()]
        more += [f"{count:,} {note}" for note, count in self.notes.items()]
        return "; ".join([f"{self.source}: rows read: {read}", *more])


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Of the rows to train on, in tokens as they are trained on; cut: how many were longer than ``limit``."""

    mean: float
    p95: int
    longest: int
    limit: int
    rows: int
    cut: int

    @classmethod
    def of(cls, lengths: np.ndarray, limit: int, cut: int) -> "Lengths":
        """lengths: integers of shape (rows,), at least one."""
        p95 = int(np.percentile(lengths, 95, method="inverted_cdf"))
        return cls(round(float(lengths.mean()), 1), p95, int(lengths.max()), limit, len(lengths), cut)

    def line(self) -> str:
        """One line for people."""
        cut = f"{self.cut:,} ({self.cut / self.rows:.1%}) are cut at {self.limit:,}" if self.cut else "none is cut"
        return f"tokens per row: {self.mean:,} on average, 95 % have at most {self.p95:,}, the longest {self.longest:,}; {cut}"


@dataclasses.dataclass(frozen=True)
class DataReport:
    """Everything that was counted. lengths: once the rows are tokenised. streaming: whether those to train on are but the first.

    duplicates: rows to train on that are there already. shared: held-out rows that are also trained on.
    classes: rows (or words) to train on by class or tag.
    """

    sources: Sequence[str]
    train_rows: int
    evaluation_rows: int
    duplicates: int
    shared: int
    classes: Mapping[str, int]
    lengths: Lengths | None = None
    streaming: bool = False

    def lines(self) -> Iterator[str]:
        """A few lines for people."""
        yield from self.sources
        odd = [f"{self.duplicates:,} of them duplicates"] if self.duplicates else []
        odd += [f"{self.shared:,} held-out rows are also trained on"] if self.shared else []
        if self.streaming:
            yield "the rows to train on are read while training; what follows is about the first of them"
        yield "; ".join([f"{self.train_rows:,} rows to train on, {self.evaluation_rows:,} held out", *odd])
        if self.classes:
            shown = [f"{name} {count:,}" for name, count in list(self.classes.items())[:_CLASSES_SHOWN]]
            more = len(self.classes) - len(shown)
            yield f"{len(self.classes)} classes: {', '.join(shown)}" + (f" and {more} more" if more else "")
        if self.lengths is not None:
            if self.lengths.rows != self.train_rows:
                yield f"{self.lengths.rows:,} rows to train on once tokenised"
            yield self.lengths.line()

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> "DataReport":
        """The opposite of dataclasses.asdict."""
        lengths = value["lengths"]
        return cls(**{**value, "lengths": Lengths(**lengths) if isinstance(lengths, dict) else None})  # type: ignore[arg-type]


def overlap(train: pa.Table, evaluation: pa.Table) -> tuple[int, int]:
    """How many rows to train on are there already, and how many held-out rows are also trained on."""
    trained, held_out = _hashes(train), _hashes(evaluation)
    return len(trained) - len(np.unique(trained)), int(np.isin(held_out, trained).sum())


def _hashes(table: pa.Table) -> np.ndarray:
    """One number a row, alike for equal rows of this process: int64 of shape (rows,)."""
    found = []
    for batch in table.to_batches(max_chunksize=10_000):
        columns = [column.to_pylist() for column in batch.columns]
        rows = zip(*columns, strict=True)
        found += [hash(str(row) if isinstance(row[0], list) or isinstance(row[-1], list) else row) for row in rows]
    return np.array(found, dtype=np.int64)
