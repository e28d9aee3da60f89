"""The cache of tokenised data: one entry per content, entries are complete, and a broken cache only costs time."""

import errno
import logging
import os
import pathlib
import pickle
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from finetune_api import names, resource
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.wire import RunConfig
from finetune_trainer.data import cache, prepare
from finetune_trainer.data.fingerprint import describe_contents, fingerprint
from finetune_trainer.data.load import load_data
from finetune_trainer.data.prepare import Prepared
from finetune_trainer.tasks import task_class
from finetune_trainer.tasks.base import Task

WORDS = ["[UNK]", "bad", "good", "very", "so"]


class CountingTask(Task):
    """Encodes the text and the class, and counts the calls."""

    calls = 0

    def encode(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        type(self).calls += 1
        encoded = self.tokenizer(batch["text"], truncation=True, max_length=self.max_tokens)
        labels = [self.info.classes.index(label) for label in batch["label"]]
        return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"], "labels": labels}

    padding_row = collate = count_loss_labels = loss = score = compute_metrics = None  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def _no_shared_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(names.ENV_CACHE_DIR, raising=False)
    CountingTask.calls = 0


@pytest.fixture
def data(tmp_path: pathlib.Path) -> pathlib.Path:
    directory = tmp_path / "data"
    directory.mkdir()
    rows = "".join(f"{'very ' * (n % 12)}{label},{label}\n" for n in range(20) for label in ("good", "bad"))
    (directory / "d.csv").write_text("text,label\n" + rows)
    return directory


def tokenizer(*more: str) -> Any:
    words = {word: number for number, word in enumerate([*WORDS, *more])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")


def config_of(data: pathlib.Path, nodes: int = 1, **spec: Any) -> RunConfig:
    parsed = resource.parse_spec(
        {
            "task": "text-classification",
            "model": {"claim": {"claimName": "m"}},
            "datasets": [{"claim": {"claimName": "d"}}],
            "training": {"maxTokens": 8},
            **spec,
        }
    )
    output = str(data.parent / "output")
    return RunConfig(
        name="n", namespace="ns", spec=parsed, nodes=nodes, processes_per_node=1, claims={"d": str(data)}, output=output
    )


MODEL = transformers.BertConfig(max_position_embeddings=64)


def run(config: RunConfig, words: Any = None) -> Prepared:
    return prepare.prepare(config, [""], words or tokenizer(), MODEL, CountingTask)


def key_of(config: RunConfig, words: Any = None, task: type[Task] = CountingTask, model: Any = MODEL) -> str:
    return fingerprint(config, describe_contents(config, [""]), words or tokenizer(), model, task)


# --- contents ---------------------------------------------------------------------------------------------------------------


def test_rows_come_back_as_they_were_encoded_with_their_length(data: pathlib.Path) -> None:
    prepared = pickle.loads(pickle.dumps(run(config_of(data))))  # noqa: S301 - as it is sent to the other ranks
    train, evaluation = prepared.open()
    assert (len(train), len(evaluation)) == (prepared.train_rows, prepared.evaluation_rows) == (36, 4)
    assert train[0] == {"input_ids": [2], "attention_mask": [1], "labels": 1, "length": 1}
    assert all(row["length"] == len(row["input_ids"]) <= 8 for row in train)
    assert train.features["input_ids"].feature.dtype == "int32"
    assert list(prepared.info.classes) == ["bad", "good"]
    assert list(prepared.info.counts) == [18, 18]


def test_the_report_says_how_long_the_rows_are_and_how_many_are_cut(data: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first = run(config_of(data)).report
    train, _ = run(config_of(data)).open()
    assert first.lengths is not None
    assert first.lengths.cut == sum(length >= 8 for length in train["length"])
    assert first.lengths.mean == round(sum(train["length"]) / len(train), 1)
    assert f"the longest 8; {first.lengths.cut} (" in caplog.text
    assert run(config_of(data)).report == first, "the report is kept with the rows"


def test_data_that_leaves_no_row_is_refused(data: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountingTask, "encode", lambda *_: {"input_ids": [], "labels": []})
    with pytest.raises(FineTuneError, match="tokenising leaves no row to train on"):
        run(config_of(data))


def test_worker_processes_encode_the_same_rows(data: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, task = config_of(data), task_class("text-classification")
    monkeypatch.setattr(prepare, "BATCH_ROWS", 7)
    alone = prepare.prepare(config, [""], tokenizer(), MODEL, task).open()[0].to_list()
    monkeypatch.setattr(prepare, "_PROCESS_START_SECONDS", 0.0)
    monkeypatch.setattr(prepare, "usable_cpus", lambda _: 5)
    work = prepare._TokenisationJob.create(config, load_data(config, [""]), tokenizer(), MODEL, task)
    assert work.workers == 5, "as many as the pod was given CPUs"
    here = threading.Event()
    encode = prepare._encode
    monkeypatch.setattr(prepare, "_encode", lambda *given: here.set() or encode(*given))
    batches = [work.first, *prepare._encoded(work.task, work.data.train.slice(7), workers=2)]
    assert [row for batch in batches for row in batch.rows.to_pylist()] == alone
    assert not here.is_set()


# --- one entry per content --------------------------------------------------------------------------------------------------


def test_a_second_run_tokenises_nothing(data: pathlib.Path) -> None:
    assert run(config_of(data)) == run(config_of(data))
    assert CountingTask.calls == 2, "one batch to train on, one to evaluate on"


def test_jobs_share_the_entry_of_equal_data_in_any_directory(
    data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(names.ENV_CACHE_DIR, str(tmp_path / "shared"))
    first = run(config_of(data))
    assert pathlib.Path(first.directory).parent == tmp_path / "shared" / "tokenised"
    other = tmp_path / "elsewhere" / "data"
    other.parent.mkdir()
    data.rename(other)
    assert run(config_of(other)) == first
    assert not (other.parent / "output").exists()


@pytest.mark.parametrize(
    ("spec", "changed"),
    [
        ({"training": {"maxTokens": 9}}, True),
        ({"training": {"maxTokens": 8, "seed": 1}}, True),
        ({"classification": {"labels": ["good", "bad"]}}, True),
        ({"datasets": [{"claim": {"claimName": "d"}, "maxTrainSamples": 10}]}, True),
        ({"datasets": [{"claim": {"claimName": "d", "path": "d.csv"}}]}, False),
        ({"training": {"maxTokens": 8, "learningRate": 1e-3, "epochs": 9}}, False),
        ({"classification": {"balanced": True}}, False),
    ],
)
def test_only_options_that_change_rows_change_the_key(data: pathlib.Path, spec: dict[str, Any], changed: bool) -> None:
    if "classification" in spec and not changed:
        base = key_of(config_of(data, classification={"problemType": None}))
    else:
        base = key_of(config_of(data))
    assert (key_of(config_of(data, **spec)) != base) is changed


def test_content_tokenizer_and_task_change_the_key(data: pathlib.Path) -> None:
    config = config_of(data)
    found = {key_of(config), key_of(config, tokenizer("more"))}
    found.add(key_of(config, model=transformers.BertConfig(max_position_embeddings=6)))
    found.add(key_of(config, task=type("Newer", (CountingTask,), {"encoding_version": 2})))
    templated = tokenizer()
    templated.chat_template = "{{ messages }}"
    found.add(key_of(config, templated))
    (data / "d.csv").write_text((data / "d.csv").read_text().replace("very good", "very  good", 1))
    found.add(key_of(config))
    assert len(found) == 6
    used = tokenizer()
    used(["so so so"], truncation=True, max_length=2)
    assert key_of(config, used) == key_of(config), "using a tokenizer does not change the key"


# --- complete or absent -----------------------------------------------------------------------------------------------------


def test_an_incomplete_entry_is_written_again(data: pathlib.Path) -> None:
    first = run(config_of(data))
    file = pathlib.Path(first.directory) / "train.arrow"
    file.write_bytes(file.read_bytes()[:-10])
    assert run(config_of(data)) == first
    assert len(first.open()[0]) == 36
    assert CountingTask.calls == 4


def test_the_entry_of_a_writer_that_died_is_not_used(data: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(data)
    with monkeypatch.context() as broken:
        broken.setattr(cache, "sync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(config)
    assert cache.find(cache.cache_roots(config.output, 1)[:1], key_of(config)) is None
    assert len(run(config).open()[0]) == 36


def test_old_entries_are_removed_from_the_output_and_kept_in_the_shared_cache(
    data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(config_of(data))
    second = run(config_of(data, training={"maxTokens": 9}))
    assert [entry.name for entry in pathlib.Path(second.directory).parent.iterdir()] == [pathlib.Path(second.directory).name]
    assert first.directory != second.directory
    monkeypatch.setenv(names.ENV_CACHE_DIR, str(tmp_path / "shared"))
    third, fourth = (run(config_of(data, training={"maxTokens": tokens})) for tokens in (10, 11))
    assert pathlib.Path(third.directory).is_dir()
    assert pathlib.Path(fourth.directory).is_dir()
    assert list((data.parent / "output" / "tokenised").iterdir()) == []


# --- a cache that can't be written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_cache_that_cannot_be_written_only_costs_time(
    data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    monkeypatch.setenv(names.ENV_CACHE_DIR, str(tmp_path / "shared"))
    fail_below(tmp_path / "shared", number, monkeypatch)
    prepared = run(config_of(data))
    assert pathlib.Path(prepared.directory).parent == data.parent / "output" / "tokenised"
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert os.strerror(number) in warnings[0].getMessage()


def test_a_full_output_volume_with_several_nodes_gives_a_sentence(data: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_below(data.parent / "output", errno.ENOSPC, monkeypatch)
    with pytest.raises(FineTuneError, match=r"spec\.output: the tokenised data can't be written") as caught:
        run(config_of(data, nodes=2, distributed={"nodes": 2}))
    assert caught.value.reason is Reason.DISK_FULL


def fail_below(root: pathlib.Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = cache.sync

    def sync(path: pathlib.Path) -> None:
        if root in path.parents:
            raise OSError(number, os.strerror(number))
        original(path)

    monkeypatch.setattr(cache, "sync", sync)


# --- two jobs at once -------------------------------------------------------------------------------------------------------


def test_a_job_waits_for_an_entry_that_another_job_writes(tmp_path: pathlib.Path) -> None:
    done = threading.Event()
    with cache.entry_lock(tmp_path, "k", done.is_set, 0):
        threading.Timer(0.6, done.set).start()
        begin = time.monotonic()
        with cache.entry_lock(tmp_path, "k", done.is_set, 30):
            assert 0.5 < time.monotonic() - begin < 5
    assert list(tmp_path.iterdir()) == []


def test_the_wait_for_the_lock_ends_after_its_timeout(tmp_path: pathlib.Path) -> None:
    with cache.entry_lock(tmp_path, "k", lambda: False, 0):
        begin = time.monotonic()
        with cache.entry_lock(tmp_path, "k", lambda: False, 0.7):
            assert 0.6 < time.monotonic() - begin < 5


def test_a_lock_without_progress_is_stale_and_touch_renews_it(tmp_path: pathlib.Path) -> None:
    with cache.entry_lock(tmp_path, "k", lambda: False, 0) as mine:
        os.utime(tmp_path / "k.turn", (0, 0))
        mine.touch()
        assert time.time() - (tmp_path / "k.turn").stat().st_mtime < 5
        os.utime(tmp_path / "k.turn", (0, 0))
        begin = time.monotonic()
        with cache.entry_lock(tmp_path, "k", lambda: False, 60):
            assert time.monotonic() - begin < 5
