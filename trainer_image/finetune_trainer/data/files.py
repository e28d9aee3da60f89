"""Read files of a claim: tables in the usual formats, or one folder per class."""

import collections
import logging
import pathlib

import datasets

from finetune_api.reasons import FineTuneError, Reason

log = logging.getLogger(__name__)

# Ending → (format of the spec, builder of `datasets`, its options).
_BUILDERS = {
    "csv": ("csv", {}),
    "tsv": ("csv", {"sep": "\t"}),
    "jsonl": ("json", {}),
    "parquet": ("parquet", {}),
}
_ENDINGS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
_SPLIT_FOLDERS = ("train", "validation", "valid", "dev", "test")


def read_files(path: pathlib.Path, format_name: str | None, field: str) -> dict[str, datasets.Dataset]:
    """Splits by name ("train" where there is no other sign). Raises FineTuneError naming ``field``, file and remedy."""
    if not path.exists():
        raise FineTuneError(Reason.DATA_ERROR, f"{field}: there is no {path.name!r} in the claim ({path}); correct the path")
    format_name = format_name or guess_format(path, field)
    if format_name == "folders":
        return _read_folders(path, field)
    builder, options = _BUILDERS[format_name]
    where = {"data_dir": str(path)} if path.is_dir() else {"data_files": {"train": str(path)}}
    try:
        loaded = datasets.load_dataset(builder, **where, **options)
    except (datasets.exceptions.DatasetGenerationError, datasets.exceptions.DataFilesNotFoundError, ValueError) as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0][:300]
        raise FineTuneError(Reason.DATA_ERROR, f"{field}: {path.name!r} can't be read as {format_name}: {cause}") from None
    return {str(name): split for name, split in loaded.items()}


def guess_format(path: pathlib.Path, field: str) -> str:
    """Format by the endings of a file or of a directory's files; folders with text files are classes."""
    candidates = [path] if path.is_file() else [entry for entry in sorted(path.rglob("*")) if entry.is_file()]
    formats = collections.Counter(_ENDINGS[entry.suffix.lower()] for entry in candidates if entry.suffix.lower() in _ENDINGS)
    if len(formats) == 1:
        return next(iter(formats))
    if not formats and path.is_dir() and any(entry.is_dir() for entry in path.iterdir()):
        return "folders"
    found = ", ".join(sorted(formats)) or "no file that ends in one of them"
    raise FineTuneError(
        Reason.DATA_ERROR,
        f"{field.rsplit('.', 1)[0]}.format: write csv, tsv, jsonl, parquet or folders; "
        f"it can't be told from {path.name!r} ({found})",
    )


def _read_folders(path: pathlib.Path, field: str) -> dict[str, datasets.Dataset]:
    """One folder per class, or such folders below train/ and test/."""
    if not path.is_dir():
        raise FineTuneError(Reason.DATA_ERROR, f"{field}: {path.name!r} is a file; format folders needs one folder per class")
    splits = {name: path / name for name in _SPLIT_FOLDERS if (path / name).is_dir()}
    if "train" not in splits:
        splits = {"train": path}
    return {name: _read_classes(directory, field) for name, directory in splits.items()}


def _read_classes(directory: pathlib.Path, field: str) -> datasets.Dataset:
    texts, labels, latin1 = [], [], 0
    for folder in sorted(entry for entry in directory.iterdir() if entry.is_dir() and not entry.name.startswith(("_", "."))):
        for file in sorted(folder.glob("*.txt")):
            content = file.read_bytes()
            try:
                text = content.decode("utf-8")
            except UnicodeDecodeError:
                text = content.decode("latin-1")  # every byte has a meaning in it: nothing is lost
                latin1 += 1
            texts.append(text.strip())
            labels.append(folder.name)
    if not texts:
        raise FineTuneError(Reason.DATA_ERROR, f"{field}: {directory.name!r} has no folder with .txt files in it")
    if latin1:
        log.info("%s: %d of %d files are not UTF-8 and were read as Latin-1", directory, latin1, len(texts))
    return datasets.Dataset.from_dict({"text": texts, "label": labels})
