"""The output directory: truncated files, changed data, volumes that can't be written, and what is synced to disk."""

import errno
import json
import os
import pathlib

import pytest

from finetune_api import names, resource
from finetune_api.reasons import FineTuneError
from finetune_api.wire import RunConfig
from finetune_trainer.output.directory import OutputDirectory


def config(directory: pathlib.Path) -> RunConfig:
    source = {
        "task": "text-classification",
        "model": {"claim": {"claimName": "m"}},
        "datasets": [{"claim": {"claimName": "d"}}],
    }
    spec = resource.parse_spec(source)
    return RunConfig(name="news", namespace="team", spec=spec, nodes=1, processes_per_node=1, output=str(directory))


@pytest.mark.parametrize(
    "torn", ['{"step": 3, "evaluation": {"loss": 1.0}', '{"step": 3, "lo', "\0\0\0\0", '{"loss": {}}', "{}", "7"]
)
def test_a_truncated_line_of_the_history_is_dropped(torn: str, tmp_path: pathlib.Path) -> None:
    output = OutputDirectory(tmp_path)
    whole = [{"step": 1, "loss": 0.5}, {"step": 2, "evaluation": {"loss": 0.4}}]
    output.history.write_text("".join(json.dumps(entry) + "\n" for entry in whole) + torn)
    assert output.truncate_history(5) == whole
    assert [json.loads(line) for line in output.history.read_text().splitlines()] == whole


def test_data_that_changes_during_a_training_is_refused(tmp_path: pathlib.Path) -> None:
    output = OutputDirectory(tmp_path)
    output.record_data(["csv:1", "csv:2"])
    output.record_data(["csv:1", "csv:3"])  # there is no checkpoint yet
    (tmp_path / "checkpoints/step-10").mkdir(parents=True)
    output.record_data(["csv:1", "csv:3"])
    for changed, fields in (
        (["csv:1", "csv:4"], r"spec\.datasets\[1\]: "),
        (["csv:0", "csv:4"], r"spec\.datasets\[0\] and spec\.datasets\[1\]: "),
        (["csv:1"], r"spec\.datasets\[1\]: "),
    ):
        with pytest.raises(FineTuneError, match=f"^{fields}its files have changed since this training began"):
            output.record_data(changed)
    output.record_data(["csv:1", "csv:3"])


def test_a_file_in_the_place_of_the_directory_is_refused_in_one_sentence(tmp_path: pathlib.Path) -> None:
    (tmp_path / "out").write_text("")
    for directory in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(FineTuneError, match=r"can't be written: .*choose another directory"):
            OutputDirectory(directory).acquire(config(directory))


def test_a_read_only_volume_is_refused_in_one_sentence(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("finetune_trainer.output.directory.write_atomically", refuse)
    with pytest.raises(FineTuneError, match="mount it for writing"):
        OutputDirectory(tmp_path).acquire(config(tmp_path))


def test_the_owner_of_the_directory_is_synced_to_disk(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    OutputDirectory(tmp_path).acquire(config(tmp_path))
    assert len(synced) == 1


def test_the_model_is_synced_to_disk_before_it_gets_its_name(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr("finetune_trainer.output.directory.sync", lambda path: synced.append(path.name))
    output, written = OutputDirectory(tmp_path), tmp_path / ".model"
    written.mkdir()
    (written / "model.safetensors").write_text("weights")
    output.commit_model(written)
    assert synced == ["model.safetensors", tmp_path.name]
    assert (output.model / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("directory", "remedy"),
    [
        ("/runs/news", "write another directory with --output"),
        (f"{names.OUTPUT_DIR}/a", "name another claim or path in spec.output"),
    ],
)
def test_another_training_in_the_directory_is_refused_with_the_fields_that_differ(
    tmp_path: pathlib.Path, directory: str, remedy: str
) -> None:
    first = config(tmp_path)
    OutputDirectory(tmp_path).acquire(first)
    wire = first.spec.to_wire()
    wire["training"] |= {"learningRate": 0.5, "arguments": {"weight_decay": 0.1}}
    wire["datasets"][0]["claim"]["path"] = "other.csv"
    second = first.model_copy(update={"spec": resource.parse_spec(wire)})
    output = OutputDirectory(tmp_path)
    output.directory = pathlib.Path(directory)  # only the message shows it
    with pytest.raises(FineTuneError) as refused:
        raise output._conflict(json.loads((tmp_path / "run.json").read_text()), second)
    assert refused.value.message == (
        f"the output directory {directory} holds the work of 'news', which trains another model: "
        'spec.datasets[0].claim.path was not set and is "other.csv"; spec.training.arguments.weight_decay was not set and is '
        f"0.1; spec.training.learningRate was 2e-05 and is 0.5; {remedy}, or remove that work"
    )
    with pytest.raises(FineTuneError, match=r"trains another model: spec\.datasets"):
        OutputDirectory(tmp_path).acquire(second)
