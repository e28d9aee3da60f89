"""Loading: what the fields mean, and one clear sentence where something is wrong."""

import pathlib
from typing import Any

import datasets
import numpy as np
import pytest

from finetune_api import resource
from finetune_api.reasons import FineTuneError
from finetune_api.wire import RunConfig
from finetune_trainer.data import columns
from finetune_trainer.data.load import Data, load_data, stratified_rows


def load(root: pathlib.Path, **dataset: Any) -> Data:
    claim = {"claimName": "d", **dataset.pop("claim", {})}
    spec = resource.parse_spec(
        {
            "task": "text-classification",
            "model": {"claim": {"claimName": "m"}},
            "datasets": [{"claim": claim, **dataset}],
        }
    )
    config = RunConfig(name="n", namespace="ns", spec=spec, nodes=1, processes_per_node=1, claims={"d": str(root)}, output="/o")
    return load_data(config, [""])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write_folders(root: pathlib.Path, count: int = 10) -> None:
    for name in ("b", "a"):
        (root / name).mkdir(parents=True)
        for index in range(count):
            (root / name / f"{index}.txt").write_text(f"{name} text {index}")


def test_folders_are_classes_by_alphabet_and_a_tenth_is_held_out(tmp_path: pathlib.Path) -> None:
    write_folders(tmp_path)
    data = load(tmp_path)
    assert data.classes == ["a", "b"]
    assert (len(data.train), len(data.evaluation)) == (18, 2)
    assert set(data.evaluation["label"]) == {"a", "b"}
    assert not set(data.train["text"]) & set(data.evaluation["text"])


def test_folders_below_train_and_test_are_splits(tmp_path: pathlib.Path) -> None:
    write_folders(tmp_path / "train")
    write_folders(tmp_path / "test", 3)
    data = load(tmp_path, claim={"format": "folders"})
    assert (len(data.train), len(data.evaluation)) == (20, 6)


def test_a_file_that_is_not_utf8_loses_nothing(tmp_path: pathlib.Path) -> None:
    write_folders(tmp_path)
    (tmp_path / "a" / "0.txt").write_bytes("Prix: 5 £".encode("latin-1"))
    data = load(tmp_path)
    assert "Prix: 5 £" in [*data.train["text"], *data.evaluation["text"]]


def test_tables_are_read_with_the_columns_that_are_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "train.tsv").write_text("body\tstars\nbad\t1\ngood\t5\n\t5\nfine\t10\n")
    (tmp_path / "test.tsv").write_text("body\tstars\nso so\t5\n")
    data = load(tmp_path, claim={"path": "train.tsv", "evalPath": "test.tsv"}, columns={"text": "body", "label": "stars"})
    assert data.classes == ["1", "5", "10"], "numbers are ordered by value"
    assert data.train["text"][:] == ["bad", "good", "fine"], "a row without text is left out"
    assert data.evaluation["text"][:] == ["so so"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"columns": {"text": "body"}}, r"spec\.datasets\[0\]\.columns\.text: the data has no column 'body'; write one of: text"),
        ({"columns": {"label": "klass"}}, r"spec\.datasets\[0\]\.columns\.label: the data has no column 'klass'"),
        ({"columns": {"textPair": "b"}}, r"spec\.datasets\[0\]\.columns\.textPair"),
        ({"trainSplit": "training"}, r"spec\.datasets\[0\]\.trainSplit: there is no split 'training'; write one of: train"),
        ({"evalSplit": "held"}, r"spec\.datasets\[0\]\.evalSplit: there is no split 'held'"),
        ({"claim": {"path": "nope.csv"}}, r"spec\.datasets\[0\]\.claim\.path: there is no 'nope\.csv'"),
        ({"claim": {"path": "train.csv", "format": "folders"}}, r"spec\.datasets\[0\]\.claim\.path: 'train\.csv' is a file"),
        ({"claim": {"path": "train.csv", "format": "parquet"}}, r"'train\.csv' can't be read as parquet"),
        ({"claim": {"path": "odd.bin"}}, r"spec\.datasets\[0\]\.claim\.format: write csv, tsv"),
    ],
)
def test_what_is_wrong_is_said_with_the_field(tmp_path: pathlib.Path, options: dict[str, Any], expected: str) -> None:
    (tmp_path / "train.csv").write_text("text,label\none,a\ntwo,b\nthree,a\nfour,b\n")
    (tmp_path / "odd.bin").write_bytes(b"\0\1")
    with pytest.raises(FineTuneError, match=expected):
        load(tmp_path, **{"claim": {"path": "train.csv"}, **options})


@pytest.mark.parametrize(
    ("train", "evaluation", "expected"),
    [
        ("one,a\ntwo,a\n", "x,a\n", "all rows have the one class 'a'"),
        ("one,a\ntwo,b\n", "x,c\n", r"classes that the training data lacks: \['c'\]"),
        ("one,a\ntwo,\n", "x,a\n", r"columns\.label: row 2 has no class"),
        (",a\n,b\n", "x,a\n", r"columns\.text: no row of split 'train' has a text"),
    ],
)
def test_data_that_teaches_nothing_is_refused(tmp_path: pathlib.Path, train: str, evaluation: str, expected: str) -> None:
    (tmp_path / "train.csv").write_text("text,label\n" + train)
    (tmp_path / "test.csv").write_text("text,label\n" + evaluation)
    with pytest.raises(FineTuneError, match=expected):
        load(tmp_path, claim={"path": "train.csv", "evalPath": "test.csv"})


def test_maxima_draw_at_random_and_the_same_rows_each_time(tmp_path: pathlib.Path) -> None:
    write_folders(tmp_path, 40)
    first, second = (load(tmp_path, maxTrainSamples=10, maxEvalSamples=4) for _ in range(2))
    assert (len(first.train), len(first.evaluation)) == (10, 4)
    assert first.train["text"][:] == second.train["text"][:]
    assert set(first.train["label"]) == {"a", "b"}


def test_held_out_rows_are_stratified_and_a_class_keeps_a_row_to_train_on() -> None:
    labels = ["a"] * 80 + ["b"] * 20 + ["c"]
    rows = stratified_rows(labels, 0.1, seed=3)
    assert np.unique([labels[row] for row in rows], return_counts=True)[1].tolist() == [8, 2]
    assert (rows == stratified_rows(labels, 0.1, seed=3)).all()


def test_declared_class_names_keep_their_order() -> None:
    rows = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}).cast_column(
        "label", datasets.ClassLabel(names=["neg", "pos"])
    )
    spec = resource.parse_spec(
        {"task": "text-classification", "model": {"hub": {"name": "m"}}, "datasets": [{"hub": {"name": "d"}}]}
    ).datasets[0]
    assert columns.normalise(rows, spec, "f", "train")["label"][:] == ["pos", "neg"]
    assert columns.order_classes({"pos", "neg"}, [columns.declared_classes(rows, spec)]) == ["neg", "pos"]
