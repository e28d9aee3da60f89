"""Loading of data: the meaning of the fields, and one clear sentence for each error."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest

from finetune_api import resource
from finetune_api.reasons import FineTuneError
from finetune_api.wire import RunConfig
from finetune_trainer.data import classes, splits
from finetune_trainer.data.load import Data, count_from_split_sizes, count_rows, load_data


def config_of(root: pathlib.Path, *sets: dict[str, Any], task: str = "text-classification", **spec: Any) -> RunConfig:
    entries = [{**one, "claim": {"claimName": "d", **one.get("claim", {})}} if "hub" not in one else one for one in sets or ({},)]
    parsed = resource.parse_spec({"task": task, "model": {"claim": {"claimName": "m"}}, "datasets": entries, **spec})
    return RunConfig(name="n", namespace="ns", spec=parsed, nodes=1, processes_per_node=1, claims={"d": str(root)}, output="/o")


def load(root: pathlib.Path, *sets: dict[str, Any], **spec: Any) -> Data:
    config = config_of(root, *sets, **spec)
    return load_data(config, [""] * len(config.spec.datasets))


def both(data: Data, column: str) -> list[Any]:
    return [*data.train[column].to_pylist(), *data.evaluation[column].to_pylist()]


def write_folders(root: pathlib.Path, count: int = 10) -> None:
    for name in ("b", "a"):
        (root / name).mkdir(parents=True)
        for index in range(count):
            (root / name / f"{index}.txt").write_text(f"{name} text {index}")


def write_lines(root: pathlib.Path, name: str, rows: list[dict[str, Any]]) -> None:
    (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


# --- files and splits -------------------------------------------------------------------------------------------------------


def test_folders_are_classes_by_alphabet_and_a_tenth_is_held_out(tmp_path: pathlib.Path) -> None:
    write_folders(tmp_path)
    data = load(tmp_path)
    assert data.classes == ["a", "b"]
    assert data.counts == [9, 9]
    assert (len(data.train), len(data.evaluation)) == (18, 2)
    assert set(data.evaluation["label"].to_pylist()) == {"a", "b"}
    assert not set(data.train["text"].to_pylist()) & set(data.evaluation["text"].to_pylist())


def test_folders_below_train_and_test_are_splits(tmp_path: pathlib.Path) -> None:
    write_folders(tmp_path / "train")
    write_folders(tmp_path / "test", 3)
    data = load(tmp_path)
    assert (len(data.train), len(data.evaluation)) == (20, 6)


def test_texts_without_a_class_are_used_only_by_language_models(tmp_path: pathlib.Path) -> None:
    write_folders(tmp_path / "train")
    write_folders(tmp_path / "test", 3)
    (tmp_path / "train" / "unsup").mkdir()
    (tmp_path / "train" / "unsup" / "1.txt").write_text("nobody knows")
    assert "nobody knows" not in load(tmp_path).train["text"].to_pylist()
    data = load(tmp_path, task="masked-lm")
    assert data.train.column_names == ["text"]
    assert "nobody knows" in data.train["text"].to_pylist()


def test_tables_are_read_with_the_columns_that_are_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "train.tsv").write_text("body\tstars\nbad\t1\ngood\t5\n\t5\nfine\t10\n")
    (tmp_path / "test.tsv").write_text("body\tstars\nso so\t5\n")
    data = load(tmp_path, {"claim": {"path": "train.tsv", "evalPath": "test.tsv"}, "columns": {"text": "body", "label": "stars"}})
    assert data.classes == ["1", "5", "10"], "numbers are ordered by value"
    assert data.train["text"].to_pylist() == ["bad", "good", "fine"], "a row without text is dropped"
    assert data.evaluation["text"].to_pylist() == ["so so"]
    assert "1 left out (no text)" in data.report.sources[0]


def test_sample_limits_draw_the_same_random_rows_each_time(tmp_path: pathlib.Path) -> None:
    write_folders(tmp_path, 40)
    first, second = (load(tmp_path, {"maxTrainSamples": 10, "maxEvalSamples": 4}) for _ in range(2))
    assert (len(first.train), len(first.evaluation)) == (10, 4)
    assert first.train.equals(second.train)
    assert set(first.train["label"].to_pylist()) == {"a", "b"}


def test_held_out_rows_are_stratified_and_a_class_keeps_a_row_to_train_on() -> None:
    labels = ["a"] * 80 + ["b"] * 20 + ["c"]
    rows = splits.stratified_rows(pa.chunked_array([labels[:7], labels[7:]]), 0.1, seed=3)
    assert np.unique([labels[row] for row in rows], return_counts=True)[1].tolist() == [8, 2]


def test_without_classes_rows_are_held_out_at_random(tmp_path: pathlib.Path) -> None:
    (tmp_path / "d.txt").write_text("".join(f"line {index}\n" for index in range(50)))
    first = load(tmp_path, {"evalFraction": 0.2}, task="causal-lm")
    other = load(tmp_path, {"evalFraction": 0.2}, task="causal-lm", training={"seed": 1})
    assert len(first.evaluation) == 10
    assert not first.evaluation.equals(other.evaluation)
    assert sorted(both(first, "text")) == sorted(f"line {index}" for index in range(50))


def test_duplicates_are_counted_and_kept(tmp_path: pathlib.Path) -> None:
    (tmp_path / "train.csv").write_text("id,text,label\n1,one,a\n2,two,b\n2,one,a\n")
    (tmp_path / "test.csv").write_text("id,text,label\n1,two,b\n2,new,a\n")
    report = load(tmp_path).report
    assert (report.duplicates, report.shared, report.train_rows) == (1, 1, 3)
    assert "1 rows of train with an id that another row has" in report.sources[0]


# --- labels -----------------------------------------------------------------------------------------------------------------


def test_classes_have_the_order_of_the_spec_and_numeric_labels_are_indices_into_it(tmp_path: pathlib.Path) -> None:
    (tmp_path / "d.csv").write_text("text,label\n" + "x,0\ny,1\n" * 10)
    data = load(tmp_path, classification={"labels": ["zero", "one", "unused"]})
    assert (data.classes, data.counts) == (["zero", "one", "unused"], [9, 9, 0])
    assert set(data.train["label"].to_pylist()) == {"zero", "one"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.csv", 'text,genres\nw,"a,b"\nx,"[""b""]"\ny,\nz,c\n'),
        ("d.jsonl", '{"text":"w","genres":["a","b"]}\n{"text":"x","genres":["b","b"]}\n{"text":"y","genres":[]}\n'
                    '{"text":"z","genres":["c"]}\n'),
    ],
)  # fmt: skip
def test_a_text_may_have_any_number_of_classes(tmp_path: pathlib.Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    data = load(tmp_path, {"columns": {"labels": "genres"}, "evalFraction": 0.25})
    assert data.problem == "MultiLabel"
    assert data.classes == ["a", "b", "c"]
    assert sorted(both(data, "labels")) == [[], ["a", "b"], ["b"], ["c"]]


def test_lists_make_it_multi_label_and_decimals_a_regression(tmp_path: pathlib.Path) -> None:
    write_lines(tmp_path, "d.jsonl", [{"text": str(n), "label": ["a", "b"]} for n in range(4)])
    assert load(tmp_path).problem == "MultiLabel"
    write_lines(tmp_path, "d.jsonl", [{"text": str(n), "label": n / 2} for n in range(4)])
    data = load(tmp_path)
    assert (data.problem, list(data.classes)) == ("Regression", [])
    assert sorted(both(data, "label")) == [0.0, 0.5, 1.0, 1.5]


@pytest.mark.parametrize("as_list", [False, True])
def test_an_unpaired_surrogate_becomes_a_replacement_character_and_pairs_are_kept(tmp_path: pathlib.Path, as_list: bool) -> None:
    lines = [r'{"text": "cut \ud83d", "label": "a"}', r'{"text": "whole \ud83d\ude00 \\ud83d", "label": "b"}'] * 4
    text = f"[{', '.join(lines)}]" if as_list else "\n".join(lines)
    (tmp_path / "data.jsonl").write_text(text)
    assert set(both(load(tmp_path), "text")) == {"cut \ufffd", "whole 😀 \\ud83d"}


def test_words_keep_their_tags_from_conll_and_from_json_in_a_table(tmp_path: pathlib.Path) -> None:
    (tmp_path / "d.conll").write_text("EU B-ORG\nrejects O\n\nFine O\n")
    expected = [(["EU", "rejects"], ["B-ORG", "O"]), (["Fine"], ["O"])]
    data = load(tmp_path, {"evalFraction": 0.5}, task="token-classification")
    assert data.classes == ["B-ORG", "O"]
    assert sorted(zip(both(data, "tokens"), both(data, "tags"), strict=True)) == expected
    (tmp_path / "d.conll").unlink()
    (tmp_path / "d.csv").write_text('tokens,tags\n"[""EU"",""rejects""]","[""B-ORG"",""O""]"\n"[""Fine""]","[""O""]"\n')
    data = load(tmp_path, {"evalFraction": 0.5}, task="token-classification")
    assert sorted(zip(both(data, "tokens"), both(data, "tags"), strict=True)) == expected


def test_numeric_labels_get_the_declared_class_names_in_their_order(tmp_path: pathlib.Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])})
    datasets.Dataset.from_dict({"text": ["x", "y"] * 5, "label": [1, 0] * 5}, features).to_parquet(tmp_path / "d.parquet")
    data = load(tmp_path)
    assert data.classes == ["pos", "neg"]
    assert dict(zip(both(data, "text"), both(data, "label"), strict=True)) == {"x": "neg", "y": "pos"}


def test_names_that_only_look_like_numbers_are_ordered_as_names() -> None:
    assert classes.order_classes({"--1", "-1", "10", "9", "-"}, [None]) == ["-1", "9", "10", "-", "--1"]


def test_classes_that_differ_between_data_sets_are_sorted() -> None:
    assert classes.order_classes({"a", "b"}, [["b", "a"], ["b", "a"]]) == ["b", "a"]
    assert classes.order_classes({"a", "b"}, [["b", "a"], None]) == ["a", "b"]
    assert classes.order_classes({"10", "9", "-1", "x"}, [None]) == ["-1", "9", "10", "x"]


# --- chats and preferences --------------------------------------------------------------------------------------------------

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
NO = {"role": "assistant", "content": "No"}


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        ({"text": "t", "messages": CHAT, "prompt": "p", "completion": "c"}, {}, "messages"),
        ({"text": "t", "prompt": "p", "completion": "c"}, {}, "prompt"),
        ({"text": "t", "prompt": "p"}, {}, "text"),
        ({"text": "t", "messages": CHAT}, {"text": "text"}, "text"),
        ({"q": "p", "a": "c", "messages": CHAT}, {"prompt": "q", "completion": "a"}, "prompt"),
    ],
)
def test_sft_uses_the_format_of_the_data_or_of_the_named_columns(
    tmp_path: pathlib.Path, row: dict[str, Any], columns: dict[str, str], expected: str
) -> None:
    write_lines(tmp_path, "d.jsonl", [row] * 4)
    data = load(tmp_path, {"columns": columns}, task="sft")
    assert data.format == expected
    names = {"prompt": ["prompt", "completion"]}.get(expected, [expected])
    assert data.train.column_names == names


def test_a_chat_in_a_table_is_read_as_json(tmp_path: pathlib.Path) -> None:
    cell = json.dumps(CHAT).replace('"', '""')
    (tmp_path / "d.csv").write_text("messages\n" + f'"{cell}"\n' * 3)
    assert load(tmp_path, task="sft").train["messages"].to_pylist() == [CHAT, CHAT]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "p", "chosen": "good", "rejected": "bad"}, ("p", "good", "bad")),
        ({"chosen": "Q: why? A: as it is", "rejected": "Q: why? A: no"}, ("Q: why? A:", " as it is", " no")),
        ({"chosen": CHAT, "rejected": [CHAT[0], NO]}, (CHAT[:1], CHAT[1:], [NO])),
        ({"prompt": "Hi", "chosen": CHAT[1:], "rejected": CHAT[1:]}, (CHAT[:1], CHAT[1:], CHAT[1:])),
        ({"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": CHAT[1:]}, (CHAT[:1], CHAT[1:], CHAT[1:])),
        ({"prompt": CHAT[:1], "chosen": CHAT, "rejected": [CHAT[0], NO]}, (CHAT[:1], CHAT[1:], [NO])),
        ({"prompt": "Hi", "chosen": "Hi! How are you?", "rejected": "Hi."}, ("Hi", "Hi! How are you?", "Hi.")),
    ],
)  # fmt: skip
def test_a_preference_has_a_prompt_even_if_only_the_answers_contain_it(
    tmp_path: pathlib.Path, row: dict[str, Any], expected: tuple[Any, Any, Any]
) -> None:
    write_lines(tmp_path, "d.jsonl", [row] * 3)
    train = load(tmp_path, task="dpo").train.to_pylist()
    assert train == [dict(zip(("prompt", "chosen", "rejected"), expected, strict=True))] * 2


# --- several data sets ------------------------------------------------------------------------------------------------------


def test_several_data_sets_are_concatenated(tmp_path: pathlib.Path) -> None:
    write_lines(tmp_path, "x.jsonl", [{"text": f"x{n}", "label": "a"} for n in range(10)])
    write_lines(tmp_path, "y.jsonl", [{"body": f"y{n}", "label": "b", "more": "z"} for n in range(20)])
    pair = {"text": "body", "textPair": "more"}
    data = load(tmp_path, {"claim": {"path": "x.jsonl"}}, {"claim": {"path": "y.jsonl"}, "columns": pair})
    assert (len(data.train), len(data.evaluation), data.classes) == (27, 3, ["a", "b"])
    assert set(data.train["text_pair"].to_pylist()) == {"", "z"}


def test_weights_mix_data_sets_in_exact_proportion_and_repeat_small_ones(tmp_path: pathlib.Path) -> None:
    for name, count in (("x", 40), ("y", 160)):
        write_lines(tmp_path, f"{name}.jsonl", [{"text": f"{name}{n}"} for n in range(count)])
    sets = [
        {"claim": {"path": "x.jsonl", "evalPath": "y.jsonl"}, "weight": 3},
        {"claim": {"path": "y.jsonl", "evalPath": "x.jsonl"}, "weight": 1},
    ]
    texts = load(tmp_path, *sets, task="masked-lm").train["text"].to_pylist()
    assert len(texts) == 200
    counts = {f"x{n}": texts.count(f"x{n}") for n in range(40)}
    assert sum(counts.values()) == 150
    assert set(counts.values()) == {3, 4}, "every row of a small data set occurs before one is repeated"
    assert [text[0] for text in texts[:40]].count("x") == 30, "the data sets are spread evenly"
    assert texts == load(tmp_path, *sets, task="masked-lm").train["text"].to_pylist()


# --- the Hub ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, int]], None]:
    """Return a function that makes the Hub serve a data set with these splits."""

    def put(sizes: dict[str, int]) -> None:
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "p"])})
        found = {}
        for name, size in sizes.items():
            columns = {"text": [f"{name}{n}" for n in range(size)], "label": [n % 2 for n in range(size)]}
            found[name] = datasets.Dataset.from_dict(columns, features)
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(found))

    return put


def test_expressions_choose_parts_of_splits(on_hub: Callable[..., None], tmp_path: pathlib.Path) -> None:
    on_hub({"train": 10, "test": 4})
    data = load(tmp_path, {"hub": {"name": "a/b"}, "trainSplit": "train[:80%]", "evalSplit": "train[80%:]+test[1:2]"})
    assert data.train["text"].to_pylist() == [f"train{n}" for n in range(8)]
    assert data.evaluation["text"].to_pylist() == ["train8", "train9", "test1"]
    assert data.classes == ["n", "p"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"trainSplit": "training"}, r"trainSplit: there is no split 'training'; write one of: train, test"),
        ({"evalSplit": "held[:3]"}, r"evalSplit: there is no split 'held'; write one of: train, test"),
        ({"trainSplit": "train[:80"}, r"trainSplit: 'train\[:80' can't be read"),
    ],
)
def test_unknown_splits_are_refused(
    on_hub: Callable[..., None], tmp_path: pathlib.Path, options: dict[str, str], expected: str
) -> None:
    on_hub({"train": 10, "test": 4})
    with pytest.raises(FineTuneError, match=r"spec\.datasets\[0\]\." + expected):
        load(tmp_path, {"hub": {"name": "a/b"}, **options})


def test_rows_are_counted_without_loading_them_all_at_once(tmp_path: pathlib.Path) -> None:
    write_folders(tmp_path)
    spec = config_of(tmp_path, {}, {"hub": {"name": "a/b"}, "trainSplit": "train[:50%]", "maxEvalSamples": 7}).spec
    assert count_rows(spec, 0, {"d": str(tmp_path)}) == (18, 2)
    assert count_from_split_sizes({"train": 100, "test": 9}, spec.datasets[1], "f") == (50, 7)


# --- refusals ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"columns": {"text": "body"}}, r"columns\.text: the data has no column 'body'; write one of: text, label \(train\.csv"),
        ({"columns": {"label": "klass"}}, r"columns\.label: the data has no column 'klass'"),
        ({"columns": {"textPair": "b"}}, r"columns\.textPair"),
        ({"trainSplit": "training"}, r"trainSplit: there is no split 'training'; write one of: train"),
        ({"trainSplit": "train[:5]"}, r"trainSplit: 'train\[:5\]' is an expression, which only data sets of the Hub have"),
        ({"evalSplit": "held"}, r"evalSplit: there is no split 'held'"),
    ],
)
def test_an_error_names_the_field(tmp_path: pathlib.Path, options: dict[str, Any], expected: str) -> None:
    (tmp_path / "train.csv").write_text("text,label\none,a\ntwo,b\nthree,a\nfour,b\n")
    with pytest.raises(FineTuneError, match=r"spec\.datasets\[0\]\." + expected):
        load(tmp_path, {"claim": {"path": "train.csv"}, **options})


@pytest.mark.parametrize(
    ("train", "evaluation", "expected"),
    [
        ("one,a\ntwo,a\n", "x,a\n", "all rows have the one class 'a'"),
        ("one,a\ntwo,b\n", "x,c\nx,c\n", r"evaluation data has classes that the training data lacks: 'c' \(2\)"),
        ("one,a\ntwo,\n", "x,a\n", r"columns\.label: column 'label': 1 row has no label \(train\.csv, line 3\)"),
        ("one,a\ntwo,nan\n", "x,a\n", r"columns\.label: .* \(train\.csv, line 3\)"),
        (
            "one,a\n" + "two,\n" * 7,
            "x,a\n",
            r"7 rows have no label \(train\.csv, line 3; train\.csv, line 4; .*; train\.csv, line 7; …\); give each",
        ),
        (",a\n,b\n", "x,a\n", r"columns\.text: no row of split 'train' can be used: column 'text' has no text"),
    ],
)
def test_data_that_cannot_be_learned_from_is_refused(tmp_path: pathlib.Path, train: str, evaluation: str, expected: str) -> None:
    (tmp_path / "train.csv").write_text("text,label\n" + train)
    (tmp_path / "test.csv").write_text("text,label\n" + evaluation)
    with pytest.raises(FineTuneError, match=expected):
        load(tmp_path, {"claim": {"path": "train.csv", "evalPath": "test.csv"}})


@pytest.mark.parametrize(
    ("task", "row", "expected"),
    [
        ("token-classification", {"tokens": ["a", "b"], "tags": ["O"]}, r"has 1 tags for 2 words"),
        ("token-classification", {"tokens": "a b", "tags": ["O"]}, r"column 'tokens': the row is not valid JSON"),
        ("sft", {"messages": [{"role": "bot", "content": "x"}]}, r"role 'bot'; write one of: system"),
        (
            "sft",
            {"messages": [{"from": "human", "value": "x"}]},
            r"without role and content \(it has from and value, as in Sh",
        ),
        ("sft", {"messages": [*CHAT, {"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}]}, r"tool calls can't"),
        ("dpo", {"prompt": "p", "chosen": "x", "rejected": CHAT}, r"one answer as a text and one as messages"),
        ("causal-lm", {"text": ["a"]}, r"is a list; a text is needed"),
    ],
)
def test_rows_of_a_wrong_shape_are_refused_with_their_location(
    tmp_path: pathlib.Path, task: str, row: dict[str, Any], expected: str
) -> None:
    good = {"tokens": ["a"], "tags": ["O"], "messages": CHAT, "prompt": "p", "chosen": "x", "rejected": "y", "text": "t"}
    write_lines(tmp_path, "d.jsonl", [good, good, {**good, **row}, good])
    with pytest.raises(FineTuneError, match=r"d\.jsonl, line 3.*" + expected):
        load(tmp_path, task=task)


@pytest.mark.parametrize(
    ("label", "spec", "expected"),
    [
        ("x", {"classification": {"problemType": "Regression"}}, r"line 2.* is not a number \('x'\)"),
        ("", {"classification": {"problemType": "Regression"}}, r"4 rows have no label .*line 2"),
        ("c", {"classification": {"labels": ["a", "b"]}}, r"labels: the training data .* not in it: 'c' \(3\)"),
        ("c", {"classification": {"labels": ["a", "a"]}}, r"'a' is there twice"),
    ],
)  # fmt: skip
def test_invalid_labels_are_refused(tmp_path: pathlib.Path, label: str, spec: dict[str, Any], expected: str) -> None:
    (tmp_path / "d.csv").write_text("text,label\n" + f"t,{label}\n" * 4)
    with pytest.raises(FineTuneError, match=expected):
        load(tmp_path, **spec)


def test_too_few_rows_to_hold_one_out_are_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "d.csv").write_text("text,label\none,a\ntwo,b\n")
    with pytest.raises(FineTuneError, match=r"2 row\(s\) are too few to hold any out"):
        load(tmp_path)


# --- for what the labels are taken -------------------------------------------------------------------------------------


def say(root: pathlib.Path, labels: list[str], column: str = "label", **spec: Any) -> list[str]:
    """Write a table with these labels, and return the lines of the report about them."""
    cells = [label if "," not in label else json.dumps(label) for label in labels]
    (root / "train.csv").write_text(f"text,{column}\n" + "".join(f"text {row},{cell}\n" for row, cell in enumerate(cells)))
    dataset = {"claim": {"path": "train.csv"}, "columns": {column: column}, "evalFraction": 0.25}
    return list(load(root, dataset, **spec).report.lines())[2:]


@pytest.mark.parametrize("cell", ["comedy;war", "comedy|war", "comedy, war"])
def test_tags_in_a_cell_are_separated_by_the_character_that_the_column_uses(tmp_path: pathlib.Path, cell: str) -> None:
    separator = next(letter for letter in "|;," if letter in cell)
    [line] = say(tmp_path, [cell, "comedy"] * 4, "labels")
    assert line == f"2 tags of texts in column 'labels', separated by '{separator}': comedy 6, war 3"


def test_several_tags_that_became_one_class_are_named_with_the_field_for_tags(tmp_path: pathlib.Path) -> None:
    classes_line, hint = say(tmp_path, ["comedy;war", "comedy", "war", "drama"] * 4)
    assert classes_line.startswith("4 classes in column 'label': ")
    assert hint.startswith("'comedy;war' looks like several tags in one cell, and is one class now; ")
    assert "columns: {labels: …}" in hint
    assert len(say(tmp_path, ["Berlin, Germany", "Paris, France", "Rome"] * 4)) == 1, "a name with a comma is a name"


def test_stars_are_classes_or_numbers_and_the_report_says_which_field_decides(tmp_path: pathlib.Path) -> None:
    whole, hint = say(tmp_path, ["1.0", "2.0", "5.0"] * 4)
    assert whole == "3 classes in column 'label': 1.0 3, 2.0 3, 5.0 3"
    assert hint.endswith("write classification.problemType: Regression")
    numbers, hint = say(tmp_path, ["1", "2", "4.5", "5"] * 4)
    assert numbers == "numbers in column 'label', for a regression: 1 to 5, 4 different"
    assert hint.endswith("for classes, write classification.problemType: SingleLabel")


@pytest.mark.parametrize("problem", ["SingleLabel", "Regression"])
def test_what_the_user_decided_gets_no_hint(tmp_path: pathlib.Path, problem: str) -> None:
    assert len(say(tmp_path, ["1", "2", "4.5", "5"] * 4, classification={"problemType": problem})) == 1


# --- sft: the shapes of rows that are accepted ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "proposal"),
    [
        ({"instruction": "a", "output": "b"}, ", for example {prompt: instruction, completion: output}"),
        ({"conversations": [{"from": "human", "value": "a"}]}, ", for example {messages: conversations}"),
        ({"body": "a"}, ""),
    ],
)
def test_sft_data_of_another_shape_is_answered_with_the_shapes_that_are_accepted(
    tmp_path: pathlib.Path, row: dict[str, Any], proposal: str
) -> None:
    write_lines(tmp_path, "d.jsonl", [row] * 4)
    with pytest.raises(FineTuneError) as refused:
        load(tmp_path, task="sft")
    assert "a row of sft is messages (role and content), or prompt and completion, or text" in refused.value.message
    assert refused.value.message.endswith(f"; name its columns{proposal}")


def test_chats_without_an_answer_are_left_out(tmp_path: pathlib.Path) -> None:
    question = {"messages": CHAT[:1]}
    write_lines(tmp_path, "d.jsonl", [question, *[{"messages": CHAT}] * 4])
    assert "1 left out (no message of the role assistant)" in next(iter(load(tmp_path, task="sft").report.lines()))
    write_lines(tmp_path, "d.jsonl", [question] * 4)
    with pytest.raises(FineTuneError, match="can be used: column 'messages' has no message of the role assistant"):
        load(tmp_path, task="sft")


# --- what the report counts for the findings --------------------------------------------------------------------------------


def test_rows_that_are_left_out_and_labels_that_disagree_are_counted(tmp_path: pathlib.Path) -> None:
    rows = [{"text": f"text {number}", "label": "ab"[number % 2]} for number in range(20)]
    rows += [{"text": "text 0", "label": "b"}, {"text": "text 1", "label": "b"}, {"text": "", "label": "a"}]
    write_lines(tmp_path, "train.jsonl", rows)
    write_lines(tmp_path, "eval.jsonl", rows[:4])
    report = load(tmp_path, {"claim": {"path": "train.jsonl", "evalPath": "eval.jsonl"}}).report
    assert (report.read, sum(report.skipped.values())) == (27, 1)
    assert report.disagreeing == 2, "text 0 is a and b; text 1 is b twice"
    assert report.shared == 4


def test_tags_that_disagree_on_the_same_words_are_counted(tmp_path: pathlib.Path) -> None:
    rows = [
        {"tokens": ["a", "b"], "tags": ["O", "X"]},
        {"tokens": ["a", "b"], "tags": ["X", "O"]},
        {"tokens": ["c"], "tags": ["O"]},
    ]
    write_lines(tmp_path, "train.jsonl", rows * 2)
    write_lines(tmp_path, "eval.jsonl", rows)
    data = load(tmp_path, {"claim": {"path": "train.jsonl", "evalPath": "eval.jsonl"}}, task="token-classification")
    assert data.report.disagreeing == 4
