"""Reads files as chunks of columns, with the location of each row. No format holds a whole file in memory twice."""

import contextlib
import csv
import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from finetune_trainer.data.cells import load_json
from finetune_trainer.data.files import SourceFile, class_of

CHUNK_ROWS = 10_000
UNLABELLED_FOLDER = "unsup"  # in aclImdb: texts without a class
csv.field_size_limit(2**31 - 1)  # Python's default of 128 KiB is shorter than some texts


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some rows as columns of the same length.

    location: returns the location of the row with an index, for messages. classes: class names, by column, of columns that hold
    class numbers.
    """

    columns: Mapping[str, Sequence[Any]]
    location: Callable[[int], str]
    classes: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))


def read_files(format_name: str, files: Sequence[SourceFile], notes: Counter[str], labelled: bool) -> Iterator[Chunk]:
    """Yield all rows of the files, in order. Raise FineTuneError that names file, line and column.

    labelled: whether the task needs classes, so that texts without a class are left out.
    """
    if format_name == "folders":
        yield from _read_folders(files, notes, labelled)
        return
    for file in files:
        chunks = _READERS[format_name](file, notes)
        first = next(chunks, None)
        if first is None:
            file.refuse("has no rows; remove it or write another path")
        else:
            yield first
            yield from chunks


def _numbered(file: SourceFile, word: str, numbers: Sequence[int]) -> Callable[[int], str]:
    return lambda row: f"{file.name}, {word} {numbers[row]}"


def _chunks(
    file: SourceFile, word: str, rows: Iterable[tuple[int, Any]], columns: Callable[[list[Any]], dict[str, Any]]
) -> Iterator[Chunk]:
    """Group (number, row) pairs into chunks. word: what the numbers count (line or row)."""
    stream = iter(rows)
    while batch := list(itertools.islice(stream, CHUNK_ROWS)):
        yield Chunk(columns([row for _, row in batch]), _numbered(file, word, [number for number, _ in batch]))


# --- tables ---------------------------------------------------------------------------------------------------------------


def _read_csv(file: SourceFile, notes: Counter[str], delimiter: str = ",") -> Iterator[Chunk]:
    with file.text(notes, newline="") as stream:
        first = stream.readline()
        if delimiter == "," and "," not in first and ";" in first:
            delimiter = ";"  # spreadsheets write this where the comma is the decimal separator
        reader = csv.reader(itertools.chain([first], stream), delimiter=delimiter, strict=True)
        rows = _csv_rows(file, reader)
        header = next(rows, (1, []))[1]
        if len(set(header)) < len(header):
            file.refuse(f"the header has {_first_repeated(header)!r} twice; give each column its own name", 1)
        yield from _chunks(
            file, "line", _checked(file, header, rows), lambda batch: dict(zip(header, zip(*batch, strict=True), strict=True))
        )


def _csv_rows(file: SourceFile, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line of the row, cells). Skip empty lines."""
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        file.refuse(f'the row is broken ({error}); inside quotes write "" for a quote, and close what you open', line)


def _checked(file: SourceFile, header: list[str], rows: Iterable[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    for line, row in rows:
        if len(row) != len(header):
            file.refuse(
                f"the row has {len(row)} column(s), the header {len(header)} ({', '.join(header)[:200]}); "
                "put quotes around texts that hold the separator",
                line,
            )
        yield line, row


def _first_repeated(names: Sequence[str]) -> str:
    return next(name for index, name in enumerate(names) if name in names[:index])


def _read_tsv(file: SourceFile, notes: Counter[str]) -> Iterator[Chunk]:
    return _read_csv(file, notes, "\t")


def _read_json(file: SourceFile, notes: Counter[str]) -> Iterator[Chunk]:
    """Read one object per line, or one list of objects."""
    with file.text(notes) as stream:
        first = next((line for line in stream if line.strip()), "")
        is_list = first.lstrip().startswith("[")
    with file.text(Counter()) as stream:
        rows = _json_list(file, stream) if is_list else _json_lines(file, stream)
        yield from _chunks(file, "row" if is_list else "line", rows, _json_columns)


def _json_columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _json_lines(file: SourceFile, stream: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = load_json(line)
        except json.JSONDecodeError as error:
            file.refuse(f"column {error.colno}: the line is not valid JSON ({error.msg}); write one object per line", number)
        if not isinstance(row, dict):
            file.refuse('the line is not an object; write it as {"column": value, …}', number)
        yield number, row


def _json_list(file: SourceFile, stream: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        rows = load_json(stream.read())
    except json.JSONDecodeError as error:
        file.refuse(
            f"column {error.colno}: this is not valid JSON ({error.msg}); write a list of objects, or one per line", error.lineno
        )
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            file.refuse(f'row {number} is not an object; write it as {{"column": value, …}}')
        yield number, row


def _read_parquet(file: SourceFile, notes: Counter[str]) -> Iterator[Chunk]:
    with file.open() as stream, contextlib.ExitStack() as stack:
        try:
            whole = pa.BufferReader(stream.read()) if file.path.suffix.lower() != ".parquet" else stream
            table = stack.enter_context(pq.ParquetFile(whole))
            classes = class_names(_declared_features(table.schema_arrow))
            start = 1
            for batch in table.iter_batches(CHUNK_ROWS):
                yield Chunk(batch.to_pydict(), _numbered(file, "row", range(start, start + len(batch))), classes)
                start += len(batch)
        except pa.ArrowException as error:
            file.refuse(f"can't be read as parquet: {str(error).splitlines()[0][:200]}")


def _declared_features(schema: pa.Schema) -> Mapping[str, Any]:
    """Return the features that the library `datasets` writes into its files."""
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return (described.get("info") or {}).get("features") or {}


def class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return class names by column, from features in the form of `datasets`. A column may hold classes or lists of classes."""
    inner = {name: feature.get("feature", feature) for name, feature in features.items() if isinstance(feature, dict)}
    return {name: list(feature["names"]) for name, feature in inner.items() if isinstance(feature, dict) and feature.get("names")}


# --- text -----------------------------------------------------------------------------------------------------------------


def _read_text(file: SourceFile, notes: Counter[str]) -> Iterator[Chunk]:
    """Read one row per line."""
    with file.text(notes) as stream:
        lines = ((number, line.rstrip("\n")) for number, line in enumerate(stream, start=1))
        yield from _chunks(file, "line", lines, lambda batch: {"text": batch})


def _read_words(file: SourceFile, notes: Counter[str]) -> Iterator[Chunk]:
    """Read lines that begin with a word and end with its tag. An empty line ends a sentence."""
    with file.text(notes) as stream:
        yield from _chunks(
            file,
            "line",
            _sentences(file, stream),
            lambda batch: {"tokens": [words for words, _ in batch], "tags": [tags for _, tags in batch]},
        )


def _sentences(file: SourceFile, stream: TextIO) -> Iterator[tuple[int, tuple[list[str], list[str]]]]:
    words, tags, begin = list[str](), list[str](), 1
    for number, line in enumerate(itertools.chain(stream, [""]), start=1):
        cells = line.rstrip("\n").split("\t") if "\t" in line else line.split()
        if not any(cell.strip() for cell in cells) or cells[0] == "-DOCSTART-":
            if words:
                yield begin, (words, tags)
            words, tags, begin = [], [], number + 1
        elif not words and line.startswith("# ") and "=" in line:
            begin = number + 1  # a comment in CoNLL-U
        elif len(cells) < 2 or not cells[0].strip() or not cells[-1].strip():
            file.refuse(f"{line.strip()[:80]!r} has no tag; write word and tag, with a space or tab between them", number)
        else:
            words.append(cells[0].strip())
            tags.append(cells[-1].strip())


def _name_in(batch: Sequence[SourceFile]) -> Callable[[int], str]:
    return lambda row: batch[row].name


def _read_folders(files: Sequence[SourceFile], notes: Counter[str], labelled: bool) -> Iterator[Chunk]:
    """Read one row per file. The name of the folder is the label."""
    kept = [file for file in files if not (labelled and class_of(file) == UNLABELLED_FOLDER)]
    if len(kept) < len(files):
        notes[f"texts without a class ({UNLABELLED_FOLDER}) not used"] += len(files) - len(kept)
    for start in range(0, len(kept), CHUNK_ROWS):
        batch = kept[start : start + CHUNK_ROWS]
        texts = [file.content(notes).strip() for file in batch]
        yield Chunk({"text": texts, "label": [class_of(file) for file in batch]}, _name_in(batch))


_READERS = {
    "csv": _read_csv,
    "tsv": _read_tsv,
    "jsonl": _read_json,
    "parquet": _read_parquet,
    "text": _read_text,
    "words": _read_words,
}
