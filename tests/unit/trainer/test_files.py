"""Files of a claim: every format, compressed or not, and one sentence with file and line for each broken row."""

import collections
import gzip
import json
import pathlib
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from finetune_api.reasons import FineTuneError
from finetune_trainer.data.files import find_files
from finetune_trainer.data.readers import read_files

ROWS = [{"text": "one, two", "label": "a"}, {"text": 'say "no"\nor yes', "label": "b"}, {"text": "drei £", "label": "a"}]
CSV = 'text,label\n"one, two",a\n"say ""no""\nor yes",b\ndrei £,a\n'


def write(root: pathlib.Path, name: str, content: str | bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(data))


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue().to_pybytes()


def read(
    root: pathlib.Path, path: str | None = None, format_name: str | None = None, split: str = "train", words: bool = False
) -> tuple[list[dict[str, Any]], list[str], collections.Counter[str]]:
    """Return the rows, their locations, and the counted notes."""
    found = find_files(root, path, format_name, "spec.datasets[0].claim.path")
    notes = collections.Counter[str]()
    rows, locations = [], []
    for chunk in read_files("words" if words else found.format, found.splits[split], notes, labelled=True):
        rows += [dict(zip(chunk.columns, values, strict=True)) for values in zip(*chunk.columns.values(), strict=True)]
        locations += [chunk.location(row) for row in range(len(chunk))]
    return rows, locations, notes


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.csv", CSV),
        ("D.CSV", "\ufeff" + CSV),
        ("d.csv", CSV.replace(",", ";").replace("one; two", "one, two")),
        (
            "d.tsv",
            CSV.replace('"one, two"', "one, two").replace(",label", "\tlabel").replace(",b", "\tb").replace(",a\n", "\ta\n"),
        ),
        ("d.jsonl", "\n\n".join(json.dumps(row) for row in ROWS)),
        ("d.ndjson", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)),
        ("d.json", json.dumps(ROWS, indent=1)),
        ("d.parquet", parquet()),
    ],
)
def test_each_format_gives_the_same_rows(tmp_path: pathlib.Path, name: str, content: str | bytes, compression: str) -> None:
    write(tmp_path, name + compression, content)
    assert read(tmp_path)[0] == ROWS
    assert read(tmp_path, name + compression)[0] == ROWS


def test_every_line_of_text_is_a_row_even_an_empty_one(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "d.txt", "one\n\ntwo \r\nthree")
    rows, locations, _ = read(tmp_path)
    assert [row["text"] for row in rows] == ["one", "", "two ", "three"]
    assert locations[2] == "d.txt, line 3"


def test_words_are_in_the_first_column_and_tags_in_the_last(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "d.conll", "-DOCSTART- -X- O O\n\nEU NNP I-NP B-ORG\nrejects VBZ I-VP O\n\n\n# id = 2\nNew York\tNNP\tB-LOC")
    rows, locations, _ = read(tmp_path, words=True)
    assert rows == [{"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}, {"tokens": ["New York"], "tags": ["B-LOC"]}]
    assert locations == ["d.conll, line 3", "d.conll, line 8"]


def test_folders_are_classes_and_texts_without_a_class_are_left_out(tmp_path: pathlib.Path) -> None:
    for name in ("train/pos/1.txt", "train/neg/2.txt.gz", "train/unsup/3.txt", "train/urls.txt", "test/pos/4.txt", "README"):
        write(tmp_path, name, name)
    rows, _, notes = read(tmp_path)
    assert [row["label"] for row in rows] == ["neg", "pos"]
    assert rows[0]["text"] == "train/neg/2.txt.gz"
    assert notes == {"texts without a class (unsup) not used": 1}
    assert [row["label"] for row in read(tmp_path, split="test")[0]] == ["pos"]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["a.csv", "b.csv"], {"train": ["a.csv", "b.csv"]}),
        (
            ["train-0.csv", "train-1.csv", "dev.csv", "other.csv"],
            {"train": ["train-0.csv", "train-1.csv"], "validation": ["dev.csv"]},
        ),
        (["test/x.csv", "train/x.csv", ".hidden/train.csv"], {"train": ["train/x.csv"], "test": ["test/x.csv"]}),
        (["news.csv", "news_test.csv", "contest.csv"], {"train": ["contest.csv", "news.csv"], "test": ["news_test.csv"]}),
    ],
)
def test_the_name_of_a_file_decides_its_split(tmp_path: pathlib.Path, names: list[str], splits: dict[str, list[str]]) -> None:
    for name in names:
        write(tmp_path, name, CSV)
    found = find_files(tmp_path, None, None, "f")
    assert {split: [file.name for file in files] for split, files in found.splits.items()} == splits


def test_a_pattern_chooses_files(tmp_path: pathlib.Path) -> None:
    for name in ("x/a1.csv", "x/a2.csv", "x/b.csv"):
        write(tmp_path, name, CSV)
    assert [file.name for file in find_files(tmp_path, "x/a*.csv", None, "f").splits["train"]] == ["x/a1.csv", "x/a2.csv"]


@pytest.mark.parametrize(
    ("encoding", "note"),
    [("latin-1", "file(s) read as Latin-1, as they are not UTF-8"), ("utf-16", "file(s) read as UTF-16")],
)
def test_other_encodings_lose_nothing_and_are_counted(tmp_path: pathlib.Path, encoding: str, note: str) -> None:
    write(tmp_path, "d.csv", CSV.encode(encoding))
    rows, _, notes = read(tmp_path)
    assert rows == ROWS
    assert notes == {note: 1}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("d.csv", 'text,label\n"a\nb",x\nc,d,e\n', r"d\.csv, line 4: the row has 3 column\(s\), the header 2 \(text, label\)"),
        ("d.csv", 'text,label\nfine,x\n"never closed,x\nmore,y\n', r"d\.csv, line 3: the row is broken"),
        ("d.csv", "text,text\na,b\n", r"d\.csv, line 1: the header has 'text' twice"),
        ("d.csv", "", r"d\.csv: has no rows"),
        ("d.csv", "text,label\n", r"d\.csv: has no rows"),
        ("d.jsonl", '{"text": "a"}\n\n{"text": b}\n', r"d\.jsonl, line 3: column 10: the line is not valid JSON"),
        ("d.jsonl", '{"text": "a"}\n"b"\n', r"d\.jsonl, line 2: the line is not an object"),
        ("d.json", '[{"text": "a"},\n {"text" "b"}]', r"d\.json, line 2: column 10: this is not valid JSON"),
        ("d.json", '[{"text": "a"}, 3]', r"d\.json: row 2 is not an object"),
        ("d.parquet", b"PAR1 nonsense", r"d\.parquet: can't be read as parquet"),
        ("d.conll", "EU B-ORG\nrejects\n", r"d\.conll, line 2: 'rejects' has no tag"),
    ],
)
def test_a_broken_row_is_refused_with_file_and_line(tmp_path: pathlib.Path, name: str, content: str, expected: str) -> None:
    write(tmp_path, name, content)
    with pytest.raises(FineTuneError, match=r"spec\.datasets\[0\]\.claim\.path: " + expected):
        read(tmp_path, words=name.endswith("conll"))


@pytest.mark.parametrize("name", ["d.csv.gz", "d.csv.zst"])
def test_a_truncated_compressed_file_is_refused(tmp_path: pathlib.Path, name: str) -> None:
    write(tmp_path, name, CSV * 100)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:60])
    with pytest.raises(FineTuneError, match=rf"{name}: can't be (read|unpacked)"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("path", "format_name", "expected"),
    [
        ("nope.csv", None, r"there is no 'nope\.csv' in the claim"),
        ("*.nope", None, r"there is no '\*\.nope' in the claim"),
        ("odd.bin", None, r"claim\.format: write csv, tsv, jsonl, parquet, text or folders"),
        ("d.csv", "folders", r"'d\.csv' is a file; format folders needs one folder per class"),
        ("sub", "csv", r"'sub' has no \.csv file in it"),
        (None, None, r"can't be determined from .* \(csv, tsv\)"),
    ],
)
def test_missing_files_and_unknown_formats_are_refused(
    tmp_path: pathlib.Path, path: str | None, format_name: str | None, expected: str
) -> None:
    for name in ("d.csv", "odd.bin", "sub/d.tsv"):
        write(tmp_path, name, CSV)
    with pytest.raises(FineTuneError, match=expected):
        find_files(tmp_path, path, format_name, "spec.datasets[0].claim.path")
