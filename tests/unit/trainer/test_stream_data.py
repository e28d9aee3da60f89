"""Streamed data: which rows are read in which order, which fields are required, and what is read before the training."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import datasets
import pytest
from rich.console import Console

from finetune_api import names, resource
from finetune_api.reasons import FineTuneError
from finetune_api.wire import RunConfig
from finetune_trainer.data import readers
from finetune_trainer.data.load import Data, load_data
from finetune_trainer.data.prepare import prepare
from finetune_trainer.data.stream import Stream
from finetune_trainer.plan.build import Facts, build_plan
from finetune_trainer.plan.rows import observe_rows
from finetune_trainer.plan.view import show_plan
from finetune_trainer.tasks import task_class
from finetune_trainer.tasks.base import DataInfo
from unit.trainer.tiny_tasks import bert_config, make_tokenizer


def config_of(root: pathlib.Path, *sets: dict[str, Any], task: str = "text-classification", **spec: Any) -> RunConfig:
    """Return a run with data sets a, b, … of a claim, or with the given ones."""
    entries = [
        {"streaming": True, **one}
        if "hub" in one
        else {"claim": {"claimName": "d", "path": f"{name}.jsonl", "evalPath": "held-out.jsonl"}, "streaming": True, **one}
        for name, one in zip("ab", sets or ({},), strict=False)
    ]
    parsed = resource.parse_spec(
        {
            "task": task, "model": {"claim": {"claimName": "m"}}, "datasets": entries, "training": {"maxSteps": 5},
            "classification": {"labels": ["bad", "good"]}, **spec,
        }
    )  # fmt: skip
    return RunConfig(name="n", namespace="ns", spec=parsed, nodes=1, processes_per_node=1, claims={"d": str(root)}, output="/o")


@pytest.fixture(autouse=True)
def _held_out(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "held-out", "b1")


def write(root: pathlib.Path, name: str, *texts: str, labels: Any = "good") -> None:
    rows = [{"text": text, "label": labels} for text in texts]
    (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def load(config: RunConfig) -> Data:
    return load_data(config, [""] * len(config.spec.datasets))


def read(config: RunConfig) -> list[dict[str, Any]]:
    """Return the rows of an epoch."""
    stream = Stream(config, [""] * len(config.spec.datasets), DataInfo(classes=["bad", "good"]))
    found = [dict(row) for row in stream.read()]
    assert [dict(row) for row in stream.read()] == found, "every epoch has the same rows"
    return found


def test_the_rows_of_several_data_sets_alternate(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "a", "a1", "a2", "a3", "a4")
    write(tmp_path, "b", "b1", "", "b2")
    assert [row["text"] for row in read(config_of(tmp_path, {}, {}))] == ["a1", "b1", "a2", "b2", "a3", "a4"]
    few = config_of(tmp_path, {"maxTrainSamples": 2}, {"maxTrainSamples": 1})
    assert [row["text"] for row in read(few)] == ["a1", "b1", "a2"]


def test_a_row_without_a_text_pair_gets_an_empty_one_if_other_rows_have_it(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "a", "a1")
    write(tmp_path, "b", "b1")
    pair = {"columns": {"textPair": "text"}}
    assert [row["text_pair"] for row in read(config_of(tmp_path, pair, {}))] == ["a1", ""]


def test_numeric_labels_get_the_class_names_of_the_spec_and_unknown_labels_are_refused(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "a", "a1", labels=0)
    assert read(config_of(tmp_path)) == [{"text": "a1", "label": "bad"}]
    write(tmp_path, "a", "a1", labels="fair")
    with pytest.raises(FineTuneError, match=r"spec.classification.labels: the training data has classes that are not in it: 'fa"):
        read(config_of(tmp_path))


def test_the_first_training_rows_are_read_and_evaluation_rows_are_drawn_at_random(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a", *(f"text {number}" for number in range(1500)))
    write(tmp_path, "held-out", *(f"other {number}" for number in range(1200)))
    data = load(config_of(tmp_path))
    assert (len(data.train), len(data.evaluation), list(data.classes)) == (1000, 1000, ["bad", "good"])
    assert data.train["text"].to_pylist() == [f"text {number}" for number in range(1000)]
    assert data.evaluation["text"].to_pylist() != [f"other {number}" for number in range(1000)]
    assert "training rows are streamed; these counts cover the first rows only" in " ".join(data.report.lines())
    assert len(load(config_of(tmp_path, {"maxEvalSamples": 7, "maxTrainSamples": 5})).evaluation) == 7


def test_evaluation_data_is_read_only_up_to_a_limit(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "CHUNK_ROWS", 100)
    monkeypatch.setattr("finetune_trainer.data.load._STREAM_EVALUATION_READ", 150)
    write(tmp_path, "a", "a1")
    write(tmp_path, "held-out", *map(str, range(1000)))
    data = load(config_of(tmp_path, {"maxEvalSamples": 50}))
    assert len(data.evaluation) == 50
    assert "validation 200" in data.report.sources[0]


def test_fields_that_a_stream_cannot_infer_are_required(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "a", "a1", "a2")
    with pytest.raises(FineTuneError, match=r"spec.classification.labels: streaming does not look through all data"):
        load(config_of(tmp_path, classification={}))
    with pytest.raises(FineTuneError, match=r"spec.datasets\[0\]: streaming can't hold rows out, and there is no split"):
        load(config_of(tmp_path, {"claim": {"claimName": "d", "path": "a.jsonl"}}))


def test_a_sample_is_tokenised_once_and_the_data_is_not_read_for_the_key(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(names.ENV_CACHE_DIR, raising=False)

    def directory() -> str:
        config = config_of(tmp_path).model_copy(update={"output": str(tmp_path / "output")})
        tokenizer = make_tokenizer()
        prepared = prepare(config, [""], tokenizer, bert_config(len(tokenizer)), task_class("text-classification"))
        assert (prepared.train_rows, prepared.evaluation_rows) == (2, 1)
        return prepared.directory

    write(tmp_path, "a", "the film", "was dull")
    first = directory()
    write(tmp_path, "a", "the film", "was good")
    assert directory() == first, "the file has the same size, and only its first rows are kept"
    write(tmp_path, "held-out", "b2")
    assert directory() != first


def test_a_plan_shows_the_steps_and_the_rows_to_evaluate_on(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "a", "a1", "a2")
    config = config_of(tmp_path)
    show_plan(Console(), "job", build_plan(config.spec, Facts(observe_rows(config.spec, config.claims))))
    shown = capsys.readouterr().out
    assert "5 (maxSteps)" in shown
    assert "training rows are streamed, 1 to evaluate on; 2 classes" in shown
    on_hub = config_of(tmp_path, {"hub": {"name": "a/b"}}).spec
    show_plan(Console(), "job", build_plan(on_hub, Facts(observe_rows(on_hub, {}))))
    assert "training rows are streamed\n" in capsys.readouterr().out


@pytest.fixture
def on_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Callable[..., None]:
    """Return a function that makes the Hub serve files, which the library reads like those of the Hub."""
    original = datasets.load_dataset

    def put(named: bool, **sizes: int) -> None:
        label = datasets.ClassLabel(names=["bad", "good"]) if named else datasets.Value("string")
        for name, size in sizes.items():
            columns = {"text": [f"{name}{n}" for n in range(size)], "label": [n % 2 if named else "good" for n in range(size)]}
            features = datasets.Features({"text": datasets.Value("string"), "label": label})
            datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / f"{name}.parquet")

        def load_dataset(*_: Any, streaming: bool, **__: Any) -> Any:
            assert streaming
            files = {name: str(tmp_path / f"{name}.parquet") for name in sizes}
            return original("parquet", data_files=files, streaming=True, cache_dir=str(tmp_path / "cache"))

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    return put


def test_a_data_set_of_the_hub_is_streamed_with_the_classes_that_it_declares(
    on_hub: Callable[..., None], tmp_path: pathlib.Path
) -> None:
    on_hub(named=True, train=2500, test=5)
    config = config_of(tmp_path, {"hub": {"name": "a/b"}}, classification={})
    data = load(config)
    assert (list(data.classes), len(data.evaluation)) == (["bad", "good"], 5)
    found = read(config)
    assert len(found) == 2500
    assert found[2001] == {"text": "train2001", "label": "good"}


def test_parts_of_splits_are_streamed_unless_they_need_the_number_of_rows(
    on_hub: Callable[..., None], tmp_path: pathlib.Path
) -> None:
    on_hub(named=False, train=10, test=4)
    config = config_of(tmp_path, {"hub": {"name": "a/b"}, "trainSplit": "train[2:4]+test[3:]", "evalSplit": "test[:3]"})
    assert [row["text"] for row in read(config)] == ["train2", "train3", "test3"]
    assert len(load(config).evaluation) == 3
    with pytest.raises(FineTuneError, match=r"trainSplit: 'train\[:80%\]' needs the number of rows, which a/b does not say"):
        load(config_of(tmp_path, {"hub": {"name": "a/b"}, "trainSplit": "train[:80%]"}))
