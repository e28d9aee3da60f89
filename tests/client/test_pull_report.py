"""`pull --report`: what `finetune report` reads comes out of the volume, also of a job that failed; nothing else does."""

import inspect
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import pytest

from client.api_server import ApiServer
from client.builders import FAILED, RUNNING, SUCCEEDED, Manifest, ended, job, pod
from finetune_client import FineTune, PullError, pull
from finetune_trainer import report
from finetune_trainer.report import read

Run = Callable[..., Any]


@pytest.fixture
def failed(server: ApiServer, output: pathlib.Path) -> Manifest:
    """A job that has failed after some steps, and what it left: also what is too large for a report, or not for it."""
    (output / "run.json").write_text(json.dumps({"name": "news", "spec": {"task": "text-classification"}}))
    (output / "history.jsonl").write_text('{"step": 10, "loss": 1.25}\n')
    (output / "starts.jsonl").write_text('{"attempt": 1, "fromStep": 0, "totalSteps": 100}\n')
    (output / "owner.json").write_text("{}")
    (output / "checkpoints/step-10").mkdir(parents=True)
    (output / "checkpoints/step-10/model.safetensors").write_bytes(b"large")
    server.put("persistentvolumeclaims", {"metadata": {"name": "news-output"}})
    server.put("pods", pod(state=ended(1)))
    return server.put("finetunejobs", job(status=FAILED))


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("failed")
def test_the_record_of_a_job_that_failed_is_what_a_report_needs(run: Run, server: ApiServer, tmp_path: pathlib.Path) -> None:
    target = tmp_path / "my report"
    result = run("pull", "news", target, "--report")
    assert result.exit_code == 0, result.output
    assert sorted(contents(target)) == ["history.jsonl", "run.json", "starts.jsonl"]
    assert result.stdout.splitlines()[-1] == f"  finetune report '{target}'"
    assert server.names_of("pods") == ["news-1-0-abcde"]
    training = read.read_training(target)
    assert (training.name, training.last_step, training.total_steps) == ("news", 10, 100)


def test_the_record_of_a_training_that_is_through_has_its_page_and_no_model(
    cluster: FineTune, failed: Manifest, output: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    failed["status"] = SUCCEEDED
    for name in ("evaluation.json", "report.json", "report.html", "model/config.json"):
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_text("{}")
    assert cluster.job("news").pull(tmp_path / "record", report=True) == tmp_path / "record"
    assert contents(tmp_path / "record") == {name: (output / name).read_bytes() for name in pull.RECORD.files}


@pytest.mark.usefixtures("failed")
def test_a_damaged_file_of_the_record_is_fetched_anew_and_then_refused(
    cluster: FineTune, server: ApiServer, output: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    server.damage = 1
    cluster.job("news").pull(tmp_path / "record", report=True)
    assert (tmp_path / "record/run.json").read_bytes() == (output / "run.json").read_bytes()
    server.damage = 2
    with pytest.raises(PullError, match=r"run\.json is not here as it is in the volume"):
        cluster.job("news").pull(tmp_path / "again", report=True)


def test_all_that_a_report_reads_is_fetched() -> None:
    files = re.findall(r'output / "([\w.]+)"', inspect.getsource(read))
    assert "run.json" in files, "this test no longer sees what finetune_trainer.report.read reads"
    assert set(pull.RECORD.files) == {*files, report.NAME}


def test_a_job_that_never_trained_has_no_record_and_one_that_goes_on_not_yet(
    run: Run, failed: Manifest, output: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    for name in ("run.json", "history.jsonl", "starts.jsonl"):
        (output / name).unlink()
    result = run("pull", "news", tmp_path / "record", "--report")
    assert (result.exit_code, "the volume holds no record of a training" in result.output) == (1, True)
    failed["status"] = RUNNING
    result = run("pull", "news", tmp_path / "record", "--report")
    assert result.exit_code == 1
    assert "news is Running: the record of its training can be fetched once it has ended" in result.output
