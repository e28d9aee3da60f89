"""`kubectl finetune` and the Python client, against a real API server, real pods and real volumes."""

import functools
import hashlib
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from cluster.kube import Namespace, Object
from finetune_client import FineTune, JobFailedError, NoSuchJobError
from finetune_client.helper_pod import LABEL_PULL, LABEL_PUT

pytestmark = pytest.mark.cluster
# Long enough for a dozen commands while it runs. It ends by itself.
TRAINING = {"maxSteps": 250, "globalBatchSize": 4, "maxTokens": 16}
# kubectl finds the plugin on the PATH.
ENVIRONMENT = {**os.environ, "PATH": os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ.get("PATH", "")])}
HASHES = """
import hashlib, json, pathlib
folder = pathlib.Path("/claims/FOLDER")
files = (path for path in folder.rglob("*") if path.is_file())
print(json.dumps({str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}))
"""


def finetune(jobs: Namespace, *arguments: object, code: int = 0) -> str:
    """Run `kubectl finetune`, check its exit code, and return stdout and stderr."""
    command = ["kubectl", "finetune", *map(str, arguments), "--namespace", jobs.name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=ENVIRONMENT)
    output = done.stdout + done.stderr
    assert done.returncode == code, f"{' '.join(command)} ended with {done.returncode}:\n{output}"
    return output


def hashes(folder: pathlib.Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write(path: pathlib.Path, job: Object) -> pathlib.Path:
    path.write_text(json.dumps(job))
    return path


def is_training(jobs: Namespace, job: str) -> bool:
    status = jobs.status(job)
    assert status.get("phase") not in {"Succeeded", "Failed"}, jobs.describe(job)
    return status.get("phase") == "Running" and status.get("progress", {}).get("step", 0) > 0


def has_none(jobs: Namespace, label: str) -> bool:
    return not jobs.objects("pods", label)


def test_a_job_is_submitted_watched_read_explained_suspended_resumed_and_pulled(
    jobs: Namespace, make_job: Any, reader: Any, tmp_path: pathlib.Path
) -> None:
    file = write(tmp_path / "job.json", make_job("commanded", training=TRAINING))
    assert "kubectl finetune watch commanded" in finetune(jobs, "submit", file)
    assert "commanded already exists in namespace" in finetune(jobs, "submit", file, code=1)
    watching = subprocess.Popen(
        ["kubectl", "finetune", "watch", "commanded", "--namespace", jobs.name],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    try:
        jobs.wait_for("it to train", lambda: is_training(jobs, "commanded"), 150, "commanded")
        assert "launcher INFO commanded, attempt 1" in finetune(jobs, "logs", "commanded")
        assert "has no rank 1: the number of ranks is 1" in finetune(jobs, "logs", "commanded", "--rank", 1, code=1)
        explained = finetune(jobs, "why", "commanded")
        assert "commanded-1-0-" in explained
        assert "kubectl finetune watch commanded" in explained
        assert "it has no finished model yet" in finetune(jobs, "pull", "commanded", tmp_path / "early", code=1)

        finetune(jobs, "suspend", "commanded", "--wait")
        status = jobs.status("commanded")
        assert (status["phase"], status["reason"]) == ("Suspended", "Suspended"), "no pod is left"
        assert "kubectl finetune resume commanded" in finetune(jobs, "why", "commanded")
        finetune(jobs, "resume", "commanded", "--wait")

        shown, _ = watching.communicate(timeout=900)
        assert watching.returncode == 0, shown
    finally:
        watching.kill()
    for text in ("Suspended", "evaluation after step", "Succeeded", "kubectl finetune pull commanded ./commanded"):
        assert text in shown, f"{text} is not in what `watch` showed:\n{shown}"
    assert [line.split()[:2] for line in finetune(jobs, "list").splitlines() if "commanded" in line] == [
        ["commanded", "Succeeded"]
    ]

    model = tmp_path / "model"
    assert "The model:" in finetune(jobs, "pull", "commanded", model)
    volume = reader("commanded-output")
    assert hashes(model) == volume.python(HASHES.replace("FOLDER", "commanded-output/model"))
    assert {"config.json", "model.safetensors"} <= set(hashes(model))
    assert "is not overwritten" in " ".join(finetune(jobs, "pull", "commanded", model, code=1).split())
    record = tmp_path / "record"
    assert f"finetune report {record}" in finetune(jobs, "pull", "commanded", record, "--report")
    assert {"run.json", "history.jsonl", "report.json", "report.html"} <= {path.name for path in record.iterdir()}
    assert "claim: {claimName: commanded-output, path: copies/model}" in finetune(jobs, "put", model, "commanded-output/copies/")
    assert hashes(model) == volume.python(HASHES.replace("FOLDER", "commanded-output/copies/model"))
    kept = finetune(jobs, "logs", "commanded", "--attempt", 1)
    assert "launcher INFO commanded, attempt 1" in kept, "the pods of the suspended attempt are deleted"
    assert "rank 0 INFO step 1 of 250" in kept
    for label in (LABEL_PULL, LABEL_PUT):
        jobs.wait_for("the deletion of the helper pod", functools.partial(has_none, jobs, label), 30)
    jobs.kubectl("delete", "finetunejob", "commanded", "--wait=false")


def test_a_job_that_fails_is_explained(jobs: Namespace, make_job: Any, hub: Any, tmp_path: pathlib.Path) -> None:
    data = [{"hub": {"name": hub.articles}, "columns": {"label": "no_such_column"}}]
    file = write(tmp_path / "job.json", make_job("mistaken", datasets=data))
    watched = finetune(jobs, "submit", file, "--watch", code=1)
    assert "no_such_column" in watched
    assert "kubectl finetune why mistaken" in watched
    explained = finetune(jobs, "why", "mistaken")
    for text in ("no_such_column", "exit code 64", "Attempts", "Events", "kubectl finetune logs mistaken --rank 0"):
        assert text in explained, explained
    with pytest.raises(JobFailedError, match="no_such_column") as caught:
        FineTune(jobs.name).job("mistaken").wait(timeout=10)
    assert caught.value.failure is not None
    assert caught.value.failure.hint

    # The user deletes the job and submits a corrected one. The retained volume does not prevent that.
    FineTune(jobs.name).job("mistaken").delete()
    jobs.wait_for("the deletion of the job", lambda: jobs.get("finetunejob", "mistaken") is None, 30)
    assert jobs.get("persistentvolumeclaim", "mistaken-output") is not None
    corrected = FineTune(jobs.name).submit(make_job("mistaken"))
    assert corrected.wait(timeout=240).phase == "Succeeded"
    corrected.delete()


@pytest.mark.usefixtures("system")
def test_a_notebook_trains_a_model_and_downloads_it(jobs: Namespace, make_job: Any, tmp_path: pathlib.Path) -> None:
    steps: list[int] = []
    job = FineTune(jobs.name).submit(make_job("noted"))
    status = job.wait(timeout=240, on_progress=lambda progress: steps.append(progress.step))
    assert status.phase == "Succeeded"
    assert steps
    assert steps[-1] == 4
    assert status.evaluation is not None
    assert "accuracy" in status.evaluation.metrics
    jobs.wait_for("its events", lambda: {"Created", "Succeeded"} <= {event.reason for event in job.events()}, 30, "noted")
    assert any("rank 0" in line for line in job.logs())
    assert list(job.logs(follow=True)) == list(job.logs()), "following a pod that has ended returns its whole log once"
    job.pull(tmp_path / "model")
    assert (tmp_path / "model/model.safetensors").stat().st_size > 0
    job.delete()
    jobs.wait_for("the deletion of the job", lambda: jobs.get("finetunejob", "noted") is None, 30)
    with pytest.raises(NoSuchJobError):
        job.progress()


@pytest.mark.usefixtures("system")
def test_a_missing_job_is_reported(jobs: Namespace) -> None:
    assert "there is no FineTuneJob nothing in namespace" in finetune(jobs, "why", "nothing", code=1)
