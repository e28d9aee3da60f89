"""`pull --report` downloads exactly the files that `finetune report` reads, also of a failed job."""

import inspect
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import pytest

from client.builders import FAILED, RUNNING, SUCCEEDED, Manifest, ended, job, pod
from client.fake_api_server import FakeApiServer
from finetune_client import FineTune, PullError, artifacts
from finetune_trainer import report
from finetune_trainer.report import read

Run = Callable[..., Any]


@pytest.fixture
def failed(server: FakeApiServer, output: pathlib.Path) -> Manifest:
    """A job that failed after some steps, and its output, including files that a report does not need."""
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
def test_the_training_record_of_a_failed_job_is_enough_for_a_report(
    run: Run, server: FakeApiServer, tmp_path: pathlib.Path
) -> None:
    target = tmp_path / "my report"
    result = run("pull", "news", target, "--report")
    assert result.exit_code == 0, result.output
    assert sorted(contents(target)) == ["history.jsonl", "run.json", "starts.jsonl"]
    assert result.stdout.splitlines()[-1] == f"  finetune report '{target}'"
    assert server.list_names("pods") == ["news-1-0-abcde"]
    training = read.read_training(target)
    assert (training.name, training.last_step, training.total_steps) == ("news", 10, 100)


def test_the_training_record_of_a_successful_job_has_the_report_and_no_model(
    cluster: FineTune, failed: Manifest, output: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    failed["status"] = SUCCEEDED
    for name in ("evaluation.json", "report.json", "report.html", "model/config.json"):
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_text("{}")
    assert cluster.job("news").pull(tmp_path / "record", report=True) == tmp_path / "record"
    assert contents(tmp_path / "record") == {name: (output / name).read_bytes() for name in artifacts.TRAINING_RECORD.files}


@pytest.mark.usefixtures("failed")
def test_a_corrupt_file_of_the_training_record_is_downloaded_again_and_then_refused(
    cluster: FineTune, server: FakeApiServer, output: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    server.corrupt_transfers = 1
    cluster.job("news").pull(tmp_path / "record", report=True)
    assert (tmp_path / "record/run.json").read_bytes() == (output / "run.json").read_bytes()
    server.corrupt_transfers = 2
    with pytest.raises(PullError, match=r"run\.json differs from the file in the volume"):
        cluster.job("news").pull(tmp_path / "again", report=True)


def test_every_file_that_a_report_reads_is_downloaded() -> None:
    files = re.findall(r'output / "([\w.]+)"', inspect.getsource(read))
    assert "run.json" in files, "this test no longer sees what finetune_trainer.report.read reads"
    assert set(artifacts.TRAINING_RECORD.files) == {*files, report.NAME}


def test_a_job_that_never_trained_or_is_unfinished_has_no_training_record(
    run: Run, failed: Manifest, output: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    for name in ("run.json", "history.jsonl", "starts.jsonl"):
        (output / name).unlink()
    result = run("pull", "news", tmp_path / "record", "--report")
    assert (result.exit_code, "the volume holds no training record" in result.output) == (1, True)
    failed["status"] = RUNNING
    result = run("pull", "news", tmp_path / "record", "--report")
    assert result.exit_code == 1
    assert "news is Running: its training record can be fetched once it has ended" in result.output
