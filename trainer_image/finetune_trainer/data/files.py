"""Which files a claim's path stands for, in which format and split, and their bytes as text."""

import codecs
import collections
import contextlib
import dataclasses
import gzip
import io
import itertools
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NoReturn, TextIO, cast

import pyarrow as pa

from finetune_api.reasons import FineTuneError, Reason

_ENDINGS = {
    ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet",
    ".txt": "text", ".conll": "text", ".iob": "text", ".iob2": "text", ".bio": "text",
}  # fmt: skip
_COMPRESSED = (".gz", ".zst")
# Names of files and folders that say which split they hold, as on the Hub.
_SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
           "dev": "validation", "test": "test", "testing": "test"}  # fmt: skip
_SPLIT_WORD = re.compile(rf"(?<![a-z0-9])({'|'.join(_SPLITS)})(?![a-z])", re.IGNORECASE)
_CHECKED_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file of a claim. name: for messages, as below the claim's root. field: of the spec, to name in an error."""

    path: pathlib.Path
    name: str
    field: str

    @property
    def ending(self) -> str:
        """Without what says that it is compressed; in lower case."""
        suffixes = [suffix.lower() for suffix in self.path.suffixes]
        return next((suffix for suffix in reversed(suffixes) if suffix not in _COMPRESSED), "")

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Its bytes, unpacked. A broken or forbidden file is the user's to mend; other errors (a lost volume) are not."""
        try:
            with self._unpacked() as stream:
                yield stream
        except (EOFError, zlib.error, gzip.BadGzipFile, PermissionError) as error:
            self.refuse(f"can't be read ({error}); replace the file")
        except OSError as error:
            if error.errno is not None:
                raise
            self.refuse(f"can't be unpacked ({error}); replace the file")

    def _unpacked(self) -> contextlib.AbstractContextManager[BinaryIO]:
        if self.path.suffix.lower() == ".gz":
            return cast(BinaryIO, gzip.open(self.path))
        if self.path.suffix.lower() == ".zst":
            return cast(BinaryIO, io.BufferedReader(pa.input_stream(str(self.path), compression="zstd")))
        return self.path.open("rb")

    @contextlib.contextmanager
    def text(self, notes: collections.Counter[str], newline: str | None = None) -> Iterator[TextIO]:
        """Its lines. What is not UTF-8 is noted and read as Latin-1, in which every byte has a meaning: nothing is lost."""
        with self.open() as stream:
            encoding = _encoding(iter(lambda: stream.read(_CHECKED_BYTES), b""), notes)
        with self.open() as stream, io.TextIOWrapper(stream, encoding=encoding, newline=newline) as text:
            yield text

    def content(self, notes: collections.Counter[str]) -> str:
        """All of it: for files that are small, and many."""
        with self.open() as stream:
            data = stream.read()
        return data.decode(_encoding(iter([data]), notes))

    def refuse(self, what: str, line: int | None = None) -> NoReturn:
        """Raise FineTuneError about this file. what: what is wrong, and what to do."""
        place = f", line {line}" if line is not None else ""
        raise FineTuneError(Reason.DATA_ERROR, f"{self.field}: {self.name}{place}: {what}")


def _encoding(blocks: Iterator[bytes], notes: collections.Counter[str]) -> str:
    decoder = codecs.getincrementaldecoder("utf-8")()
    first = next(blocks, b"")
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        notes["file(s) read as UTF-16"] += 1
        return "utf-16"
    try:
        for block in itertools.chain([first], blocks):
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        notes["file(s) read as Latin-1, as they are not UTF-8"] += 1
        return "latin-1"
    return "utf-8-sig"


@dataclasses.dataclass(frozen=True)
class Found:
    """Files of one claim's path by split, and their format. ignored: files that belong to no split, though others do."""

    format: str
    splits: dict[str, list[SourceFile]]
    ignored: int = 0


def find_files(root: pathlib.Path, path: str | None, format_name: str | None, field: str) -> Found:
    """Files that ``path`` below ``root`` stands for: a file, a directory, or a pattern with ``*``. Raises FineTuneError.

    Splits by what their names or folders say ("train" where nothing says otherwise); a single file has none.
    """
    base, paths = _entries(root, path, field)
    single = paths == [base]
    files = [SourceFile(entry, base.name if single else entry.relative_to(base).as_posix(), field) for entry in paths]
    chosen = format_name or _guess_format(files, base, field)
    if chosen == "folders" and single:
        raise FineTuneError(Reason.DATA_ERROR, f"{field}: {base.name!r} is a file; format folders needs one folder per class")
    if not single:
        files = [file for file in files if _belongs(file, chosen)]
    if not files:
        raise FineTuneError(Reason.DATA_ERROR, f"{field}: {base.name!r} has no {_KINDS[chosen]} in it; correct the path")
    if single:
        return Found(chosen, {"train": files})
    return _by_split(chosen, files)


_KINDS = {"folders": "folder with .txt files", "text": ".txt file", "jsonl": ".jsonl file", "csv": ".csv file",
          "tsv": ".tsv file", "parquet": ".parquet file"}  # fmt: skip


def _entries(root: pathlib.Path, path: str | None, field: str) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """The directory that names are relative to, or the one file, and all files; hidden ones are left out."""
    base = root / (path or "")
    if base.is_file():
        return base, [base]
    if not base.exists() and path and set(path) & set("*?["):
        matching = [entry for entry in sorted(root.glob(path)) if entry.is_file()]
        if matching:
            return root, matching
    if not base.exists():
        raise FineTuneError(
            Reason.DATA_ERROR, f"{field}: there is no {path or base.name!r} in the claim ({base}); correct the path"
        )
    hidden = (".", "_")
    entries = (entry for entry in sorted(base.rglob("*")) if entry.is_file())
    return base, [e for e in entries if not any(part.startswith(hidden) for part in e.relative_to(base).parts)]


def _guess_format(files: list[SourceFile], base: pathlib.Path, field: str) -> str:
    """By the endings; text files in folders that are no splits are examples of classes."""
    formats = {_ENDINGS[file.ending] for file in files if file.ending in _ENDINGS}
    tables = formats - {"text"}
    if len(tables) == 1:
        return tables.pop()
    if formats == {"text"}:
        return "folders" if any(_class_folder(file) for file in files if _belongs(file, "text")) else "text"
    found = ", ".join(sorted(formats)) or "no file that ends in one of them"
    raise FineTuneError(
        Reason.DATA_ERROR,
        f"{field.rsplit('.', 1)[0]}.format: write csv, tsv, jsonl, parquet, text or folders; "
        f"it can't be told from {base.name!r} ({found})",
    )


def _class_folder(file: SourceFile) -> str | None:
    """Name of the folder that says the class; None for a file at the top, or directly in the folder of a split."""
    parents = file.name.split("/")[:-1]
    return parents[-1] if parents and not (len(parents) == 1 and parents[0].lower() in _SPLITS) else None


def class_of(file: SourceFile) -> str:
    """Class of an example of format folders: its folder."""
    return file.path.parent.name


def _belongs(file: SourceFile, format_name: str) -> bool:
    if format_name == "folders":
        return file.ending == ".txt" and _class_folder(file) is not None
    return _ENDINGS.get(file.ending) == format_name


def _by_split(format_name: str, files: list[SourceFile]) -> Found:
    splits: dict[str, list[SourceFile]] = {}
    for file in files:
        splits.setdefault(_split_of(file, format_name) or "", []).append(file)
    unnamed = splits.pop("", [])
    if unnamed and "train" not in splits:
        return Found(format_name, {"train": unnamed, **splits})
    order = [name for name in ("train", "validation", "test") if name in splits]
    return Found(format_name, {name: splits[name] for name in order}, len(unnamed))


def _split_of(file: SourceFile, format_name: str) -> str | None:
    """The split that a name stands for; of class folders only a folder above may say it, never the class or the example."""
    parts = file.name.split("/")
    if format_name == "folders":
        return _SPLITS.get(parts[0].lower()) if len(parts) > 2 else None
    for part in reversed(parts):
        if word := _SPLIT_WORD.search(part):
            return _SPLITS[word[1].lower()]
    return None
