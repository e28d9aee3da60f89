"""Pushes to a real Hub server: what is there afterwards, beside the training, and by the command."""

import json
import logging
import os
import pathlib
import shutil
import time

import pytest
from click.testing import CliRunner, Result

from finetune_api import names
from finetune_trainer import publish
from finetune_trainer.push import push
from trainer.hub_side import COMMIT, ENDPOINT, NEEDS_A_HUB, SHARED, Hub, spec

pytest_plugins = ["trainer.publishing"]
pytestmark = NEEDS_A_HUB


def test_it_is_private_whole_and_names_its_commit(hub: Hub, model: pathlib.Path) -> None:
    published = publish.push(model, spec(hub), "news")
    info = hub.api.model_info(hub.repository)
    assert published.url == f"{ENDPOINT}/{hub.repository}"
    assert published.commit == info.sha
    assert info.private
    assert hub.files() == SHARED
    assert hub.titles() == ["Fine-tuned by news"]


def test_it_is_public_where_that_is_asked_for(hub: Hub, model: pathlib.Path) -> None:
    publish.push(model, spec(hub, visibility="Public"), "news")
    assert not hub.api.model_info(hub.repository).private


def test_it_can_be_loaded(hub: Hub, model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    from transformers import AutoModelForSequenceClassification

    publish.push(model, spec(hub), "news")
    there = hub.api.snapshot_download(hub.repository, local_dir=tmp_path / "there")
    loaded = AutoModelForSequenceClassification.from_pretrained(there).state_dict()
    ours = AutoModelForSequenceClassification.from_pretrained(model).state_dict()
    assert all(loaded[name].equal(ours[name]) for name in ours)


def test_no_file_names_the_token_or_a_directory_and_the_card_names_the_repository(
    hub: Hub, model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    publish.push(model, spec(hub), "news")
    there = pathlib.Path(hub.api.snapshot_download(hub.repository, local_dir=tmp_path / "there"))
    texts = "".join(path.read_text() for path in there.iterdir() if path.name in SHARED and path.suffix != ".safetensors")
    for private in (os.environ["HF_TOKEN"], str(model), str(model.parent), "/somewhere/else", os.uname().nodename + "-"):
        assert private not in texts
    assert f"from [removed] by [removed]: {hub.repository}" in texts
    assert str(model) in (model / "README.md").read_text(), "on the disk nothing was changed"


def test_the_same_again_sends_nothing_and_makes_no_commit(hub: Hub, model: pathlib.Path) -> None:
    first = publish.push(model, spec(hub), "news")
    hub.forget_requests()
    assert publish.push(model, spec(hub), "news") == first
    assert hub.requests("PUT", "/_lfs/") == []
    assert hub.requests("POST", "/commit/") == []
    assert len(hub.titles()) == 1


def test_weights_of_an_earlier_model_go_and_other_files_stay(hub: Hub, model: pathlib.Path) -> None:
    hub.api.create_repo(hub.repository)
    for name in ("model.safetensors", "adapter_config.json", "pytorch_model.bin", "LICENSE", "onnx/model.safetensors"):
        hub.api.upload_file(path_or_fileobj=b"old", path_in_repo=name, repo_id=hub.repository)
    publish.push(model, spec(hub), "news")
    assert hub.files() == SHARED | {"LICENSE", "onnx/model.safetensors"}


def test_each_best_model_is_pushed_beside_the_training(hub: Hub, model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    best = tmp_path / "best" / "step-1"
    shutil.copytree(model, best)
    hub.fail(COMMIT, delay=0.5, times=1)
    pusher = publish.BestPusher(spec(hub), "news")
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


def test_a_best_model_that_can_not_be_pushed_stops_nothing(
    hub: Hub, model: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.fail(COMMIT, status=403, times=None)
    pusher = publish.BestPusher(spec(hub), "news")
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        pusher.submit(model, 1, {"accuracy": 0.5})
        assert time.monotonic() - started < 1
        pusher.close()
    assert pusher.failures == 1
    assert "the training goes on" in caplog.text


def test_a_push_that_hangs_does_not_keep_the_training_from_ending(hub: Hub, model: pathlib.Path) -> None:
    hub.fail(COMMIT, delay=5)
    pusher = publish.BestPusher(spec(hub), "news")
    pusher.submit(model, 1, {"accuracy": 0.5})
    started = time.monotonic()
    pusher.close(timeout_seconds=0.5)
    assert time.monotonic() - started < 2


def call(*arguments: object) -> Result:
    return CliRunner().invoke(push, [str(argument) for argument in arguments])


def test_the_command_says_address_and_commit_and_makes_a_private_repository(hub: Hub, model: pathlib.Path) -> None:
    done = call(model.parent, "--to", hub.repository)
    assert done.exit_code == 0, done.output
    info = hub.api.model_info(hub.repository)
    assert done.stdout == f"{ENDPOINT}/{hub.repository}\ncommit {info.sha}\n"
    assert info.private


def test_the_command_knows_the_repository_of_the_job(hub: Hub, model: pathlib.Path) -> None:
    (model.parent / "run.json").write_text(json.dumps({"name": "news", "repository": hub.repository}))
    assert call(model, "--public").exit_code == 0
    assert not hub.api.model_info(hub.repository).private
    assert hub.titles() == ["Fine-tuned by news"]


def test_the_command_names_the_option_and_the_variable_of_a_refusal(hub: Hub, model: pathlib.Path) -> None:
    hub.fail(COMMIT, status=403)
    done = call(model, "--to", hub.repository)
    assert done.exit_code == names.EXIT_REFUSED
    assert "--to: the Hub refuses access" in done.stderr
    assert "the token of HF_TOKEN needs the right to write to it" in done.stderr
    assert "Traceback" not in done.output
