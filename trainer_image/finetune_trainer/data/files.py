"""Finds the files of a claim's path, their format and their splits, and reads them as text."""

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
# Words in file and folder names that indicate a split, as on the Hub.
_SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
           "dev": "validation", "test": "test", "testing": "test"}  # fmt: skip
_SPLIT_WORD = re.compile(rf"(?<![a-z0-9])({'|'.join(_SPLITS)})(?![a-z])", re.IGNORECASE)
_CHECKED_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file of a claim. name: path below the claim's directory, for messages. field: field of the spec, for errors."""

    path: pathlib.Path
    name: str
    field: str

    @property
    def ending(self) -> str:
        """File extension in lower case, without the extension of a compressed file."""
        suffixes = [suffix.lower() for suffix in self.path.suffixes]
        return next((suffix for suffix in reversed(suffixes) if suffix not in _COMPRESSED), "")

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the file, decompressed. Refuse a broken or unreadable file; raise other errors (a lost volume) as they are."""
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
        """Open the file as text. A file that is not UTF-8 is read as Latin-1, which decodes every byte, and counted in notes."""
        with self.open() as stream:
            encoding = _encoding(iter(lambda: stream.read(_CHECKED_BYTES), b""), notes)
        with self.open() as stream, io.TextIOWrapper(stream, encoding=encoding, newline=newline) as text:
            yield text

    def content(self, notes: collections.Counter[str]) -> str:
        """Return the whole text. For many small files."""
        with self.open() as stream:
            data = stream.read()
        return data.decode(_encoding(iter([data]), notes))

    def refuse(self, what: str, line: int | None = None) -> NoReturn:
        """Raise FineTuneError about this file. what: the problem, and what to do."""
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
class FileSet:
    """Files of a claim's path by split, and their format. ignored: number of files whose names indicate no split."""

    format: str
    splits: dict[str, list[SourceFile]]
    ignored: int = 0


def find_files(root: pathlib.Path, path: str | None, format_name: str | None, field: str) -> FileSet:
    """Find the files of ``path`` below ``root``: a file, a directory, or a pattern with ``*``. Raise FineTuneError.

    File and folder names determine the splits, and "train" is the default. A single file is always "train".
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
        return FileSet(chosen, {"train": files})
    return _by_split(chosen, files)


_KINDS = {"folders": "folder with .txt files", "text": ".txt file", "jsonl": ".jsonl file", "csv": ".csv file",
          "tsv": ".tsv file", "parquet": ".parquet file"}  # fmt: skip


def _entries(root: pathlib.Path, path: str | None, field: str) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """Return the directory that names are relative to (or the single file), and all files except hidden ones."""
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
    """Guess the format from the file extensions. Text files in folders that are not splits have format folders."""
    formats = {_ENDINGS[file.ending] for file in files if file.ending in _ENDINGS}
    tables = formats - {"text"}
    if len(tables) == 1:
        return tables.pop()
    if formats == {"text"}:
        return "folders" if any(_class_folder(file) for file in files if _belongs(file, "text")) else "text"
    found = ", ".join(sorted(formats)) or "no file with such an extension"
    raise FineTuneError(
        Reason.DATA_ERROR,
        f"{field.rsplit('.', 1)[0]}.format: write csv, tsv, jsonl, parquet, text or folders; "
        f"it can't be determined from {base.name!r} ({found})",
    )


def _class_folder(file: SourceFile) -> str | None:
    """Return the folder that names the class; None for a file at the top, or directly in the folder of a split."""
    parents = file.name.split("/")[:-1]
    return parents[-1] if parents and not (len(parents) == 1 and parents[0].lower() in _SPLITS) else None


def class_of(file: SourceFile) -> str:
    """Return the class of a file of format folders: the name of its folder."""
    return file.path.parent.name


def _belongs(file: SourceFile, format_name: str) -> bool:
    if format_name == "folders":
        return file.ending == ".txt" and _class_folder(file) is not None
    return _ENDINGS.get(file.ending) == format_name


def _by_split(format_name: str, files: list[SourceFile]) -> FileSet:
    splits: dict[str, list[SourceFile]] = {}
    for file in files:
        splits.setdefault(_split_of(file, format_name) or "", []).append(file)
    unnamed = splits.pop("", [])
    if unnamed and "train" not in splits:
        return FileSet(format_name, {"train": unnamed, **splits})
    order = [name for name in ("train", "validation", "test") if name in splits]
    return FileSet(format_name, {name: splits[name] for name in order}, len(unnamed))


def _split_of(file: SourceFile, format_name: str) -> str | None:
    """Return the split that the file's name indicates. In format folders, only the top folder above the class can indicate it."""
    parts = file.name.split("/")
    if format_name == "folders":
        return _SPLITS.get(parts[0].lower()) if len(parts) > 2 else None
    for part in reversed(parts):
        if word := _SPLIT_WORD.search(part):
            return _SPLITS[word[1].lower()]
    return None
