"""Volumes that outlive a job: a retained model, a volume that is deleted after publishing, and a cache that jobs share."""

import json
from typing import Any

import pytest

from cluster.hub import Hub
from cluster.kube import Namespace

pytestmark = pytest.mark.cluster


def test_a_job_restored_without_its_status_finds_its_model_and_does_not_train_again(
    jobs: Namespace, make_job: Any, reader: Any
) -> None:
    job = make_job("restored")
    jobs.apply(job)
    first = jobs.wait_for_phase("restored", "Succeeded", timeout=150)
    jobs.kubectl("delete", "finetunejob", "restored", "--wait=true")
    jobs.wait_for("nothing but the claim", lambda: jobs.children("restored") == ["persistentvolumeclaim/restored-output"], 60)
    program = "import json, os; print(json.dumps(os.stat('/claims/restored-output/model/model.safetensors').st_mtime_ns))"
    pod = reader("restored-output")
    written = pod.python(program)

    jobs.apply(job)
    again = jobs.wait_for_phase("restored", "Succeeded", timeout=60)
    assert again["evaluation"] == first["evaluation"]
    assert again["progress"]["step"] == first["progress"]["step"]
    assert pod.python(program) == written, "the model was written again"
    jobs.kubectl("delete", "finetunejob", "restored", "--wait=true")

    job["spec"]["training"]["maxSteps"] += 1
    jobs.apply(job)
    other = jobs.wait_for_phase("restored", "Failed", timeout=60)
    assert other["reason"] == "OutputConflict"
    assert pod.python(program) == written
    jobs.kubectl("delete", "finetunejob", "restored", "--wait=false")


def test_the_volume_is_deleted_once_the_model_is_on_the_hub(jobs: Namespace, hub: Hub, make_job: Any) -> None:
    repository = hub.articles.partition("/")[0] + "/given-back"
    output = {"volume": {"size": "1Gi"}, "retention": {"whenFinished": "Delete"}}
    jobs.apply(make_job("returns", output=output, publish={"repository": repository}))
    status = jobs.wait_for_phase("returns", "Succeeded", timeout=150)
    assert status["published"]["commit"]
    jobs.wait_for("the deletion of the claim", lambda: jobs.get("persistentvolumeclaim", "returns-output") is None, 60, "returns")
    assert jobs.status("returns")["phase"] == "Succeeded"
    jobs.kubectl("delete", "finetunejob", "returns", "--wait=false")


def test_a_job_finds_in_the_cache_what_another_job_downloaded(jobs: Namespace, make_job: Any, reader: Any, hub: Hub) -> None:
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    jobs.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "cache"}, "spec": claim})
    for name in ("fetches", "finds"):
        jobs.apply(make_job(name, cache={"claimName": "cache"}))
        jobs.wait_for_phase(name, "Succeeded", timeout=150)
    program = f"""
import json, pathlib
hub = pathlib.Path("/claims/cache/huggingface/hub")
found = list(hub.glob("models--{hub.model.replace("/", "--")}/snapshots/*/model.safetensors"))
print(json.dumps([len(found), [path.name for path in hub.rglob("*.incomplete")]]))
"""
    assert reader("cache").python(program) == [1, []]
    jobs.kubectl("delete", "finetunejob", "fetches", "finds", "--wait=false")


def test_a_field_selector_selects_jobs_by_phase(jobs: Namespace) -> None:
    found = jobs.kubectl("get", "finetunejobs", "--field-selector=status.phase=Succeeded", "--output=json")
    assert all(item["status"]["phase"] == "Succeeded" for item in json.loads(found.stdout)["items"])
