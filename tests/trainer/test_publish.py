"""Pushes to a real Hub server: its contents after a push, pushes during the training, and the command."""

import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner, Result
from huggingface_hub import ModelCard

from finetune_api import names
from finetune_trainer.commands.push import push
from finetune_trainer.publish.push import BestPusher
from finetune_trainer.publish.push import push as push_model
from trainer.hub_server import COMMIT, ENDPOINT, NEEDS_A_HUB, SHARED, Hub, spec
from trainer.small_jobs import job, write_all

pytest_plugins = ["trainer.publish_fixtures"]
pytestmark = NEEDS_A_HUB


def test_a_pushed_model_is_private_and_complete_and_the_push_returns_its_commit(hub: Hub, model: pathlib.Path) -> None:
    published = push_model(model, spec(hub), "news")
    info = hub.api.model_info(hub.repository)
    assert published.url == f"{ENDPOINT}/{hub.repository}"
    assert published.commit == info.sha
    assert info.private
    assert hub.files() == SHARED
    assert hub.titles() == ["Fine-tuned by news"]


def test_a_pushed_model_is_public_if_the_spec_says_so(hub: Hub, model: pathlib.Path) -> None:
    push_model(model, spec(hub, visibility="Public"), "news")
    assert not hub.api.model_info(hub.repository).private


def test_a_pushed_model_can_be_loaded(hub: Hub, model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    from transformers import AutoModelForSequenceClassification

    push_model(model, spec(hub), "news")
    there = hub.api.snapshot_download(hub.repository, local_dir=tmp_path / "there")
    loaded = AutoModelForSequenceClassification.from_pretrained(there).state_dict()
    ours = AutoModelForSequenceClassification.from_pretrained(model).state_dict()
    assert all(loaded[name].equal(ours[name]) for name in ours)


def test_no_file_names_the_token_or_a_directory_and_the_card_names_the_repository(
    hub: Hub, model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    push_model(model, spec(hub), "news")
    there = pathlib.Path(hub.api.snapshot_download(hub.repository, local_dir=tmp_path / "there"))
    texts = "".join(path.read_text() for path in there.iterdir() if path.name in SHARED and path.suffix != ".safetensors")
    for private in (os.environ["HF_TOKEN"], str(model), str(model.parent), "/somewhere/else", os.uname().nodename + "-"):
        assert private not in texts
    assert f"from [removed] by [removed]: {hub.repository}" in texts
    assert str(model) in (model / "README.md").read_text(), "the file on disk is not changed"


def test_a_second_push_of_the_same_model_sends_nothing_and_makes_no_commit(hub: Hub, model: pathlib.Path) -> None:
    first = push_model(model, spec(hub), "news")
    hub.forget_requests()
    assert push_model(model, spec(hub), "news") == first
    assert hub.requests("PUT", "/_lfs/") == []
    assert hub.requests("POST", "/commit/") == []
    assert len(hub.titles()) == 1


def test_weights_of_an_earlier_model_are_removed_and_other_files_are_kept(hub: Hub, model: pathlib.Path) -> None:
    hub.api.create_repo(hub.repository)
    for name in ("model.safetensors", "adapter_config.json", "pytorch_model.bin", "LICENSE", "onnx/model.safetensors"):
        hub.api.upload_file(path_or_fileobj=b"old", path_in_repo=name, repo_id=hub.repository)
    push_model(model, spec(hub), "news")
    assert hub.files() == SHARED | {"LICENSE", "onnx/model.safetensors"}


def test_best_models_are_pushed_in_the_background(hub: Hub, model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    best = tmp_path / "best" / "step-1"
    shutil.copytree(model, best)
    hub.fail(COMMIT, delay=3, times=1)
    pusher = BestPusher(spec(hub), "news")
    pusher.submit(best, 1, {"accuracy": 0.5})
    for step in (2, 3):
        moved = tmp_path / "best" / f"step-{step}"
        best.rename(moved)
        best = moved
        changed = (best / "config.json").read_text().replace("{", "{\n", 1)
        (best / "config.json").unlink()
        (best / "config.json").write_text(changed)
        time.sleep(0.1)
        pusher.submit(best, step, {"accuracy": 0.5 + step / 10})
    shutil.rmtree(best)
    pusher.close()
    assert hub.titles() == ["Step 3 of news: accuracy 0.8000", "Step 1 of news: accuracy 0.5000"]
    assert pusher.failures == 0
    assert list((tmp_path / "best").iterdir()) == []


def test_a_failed_push_of_a_best_model_does_not_stop_the_training(
    hub: Hub, model: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.fail(COMMIT, status=403, times=None)
    reported: list[int] = []
    pusher = BestPusher(spec(hub), "news", on_failure=lambda: reported.append(1))
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        pusher.submit(model, 1, {"accuracy": 0.5})
        assert time.monotonic() - started < 1
        pusher.close()
    assert (pusher.failures, reported) == (1, [1])
    assert "the training goes on" in caplog.text


def test_a_push_that_hangs_does_not_delay_the_end_of_the_training(hub: Hub, model: pathlib.Path) -> None:
    hub.fail(COMMIT, delay=5)
    pusher = BestPusher(spec(hub), "news")
    pusher.submit(model, 1, {"accuracy": 0.5})
    started = time.monotonic()
    pusher.close(timeout_seconds=0.5)
    assert time.monotonic() - started < 2


def test_a_training_pushes_each_better_model_with_its_card(hub: Hub, tmp_path: pathlib.Path) -> None:
    write_all(tmp_path)
    training = job(
        "text-classification",
        "encoder",
        "texts",
        steps=12,
        evaluation={"everySteps": 2, "best": {"metric": "loss"}},
        publish={"repository": hub.repository, "when": "OnBestCheckpoint"},
    )
    config = {"name": "news", "namespace": "default", "spec": training, "nodes": 1, "processesPerNode": 1}
    (tmp_path / "jobs.json").write_text(
        json.dumps([config | {"claims": {"small": str(tmp_path)}, "output": str(tmp_path / "out")}])
    )
    script = pathlib.Path(__file__).parent / "train_jobs.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["best"]["step"] >= 2
    assert report["best"]["metrics"]["loss"] <= report["evaluation"]["metrics"]["loss"]
    first = hub.titles()[-1]
    assert first.startswith("Step 2 of news: ")
    commit = next(entry.commit_id for entry in hub.api.list_repo_commits(hub.repository) if entry.title == first)
    card = ModelCard.load(hub.api.hf_hub_download(hub.repository, "README.md", revision=commit))
    assert card.data.eval_results
    assert "pipeline(" in card.text


def call(*arguments: object) -> Result:
    return CliRunner().invoke(push, [str(argument) for argument in arguments])


def test_the_command_prints_address_and_commit_and_creates_a_private_repository(hub: Hub, model: pathlib.Path) -> None:
    done = call(model.parent, "--to", hub.repository)
    assert done.exit_code == 0, done.output
    info = hub.api.model_info(hub.repository)
    assert done.stdout == f"{ENDPOINT}/{hub.repository}\ncommit {info.sha}\n"
    assert info.private


def test_the_command_uses_the_repository_of_the_job(hub: Hub, model: pathlib.Path) -> None:
    (model.parent / "run.json").write_text(json.dumps({"name": "news", "repository": hub.repository}))
    assert call(model, "--public").exit_code == 0
    assert not hub.api.model_info(hub.repository).private
    assert hub.titles() == ["Fine-tuned by news"]


def test_the_command_names_the_option_and_the_variable_that_a_refusal_is_about(hub: Hub, model: pathlib.Path) -> None:
    hub.fail(COMMIT, status=403)
    done = call(model, "--to", hub.repository)
    assert done.exit_code == names.EXIT_REFUSED
    assert "--to: the Hub refuses access" in done.stderr
    assert "the token of HF_TOKEN needs the right to write to it" in done.stderr
    assert "Traceback" not in done.output
