"""The Python API of the client, and how it reads statuses of other versions."""

import copy
import math
import pathlib
import types
from typing import Any

import pytest
import yaml

from client.builders import FAILED, RUNNING, SPEC, SUCCEEDED, event, job
from client.conftest import Clock
from client.fake_api_server import FakeApiServer, error_response
from finetune_api.reasons import FineTuneError
from finetune_api.resource import FineTuneJob, Metadata
from finetune_api.spec import Dataset, FineTuneJobSpec, HubDataset, HubModel, ModelSource, Training
from finetune_client import (
    FineTune,
    JobFailedError,
    JobTimeoutError,
    NameTakenError,
    NoSuchJobError,
    NotInstalledError,
    RefusedError,
    UnreachableError,
)
from finetune_client.connection import connect
from finetune_client.plot import draw_curve


def build_spec() -> FineTuneJobSpec:
    return FineTuneJobSpec(
        task="text-classification",
        model=ModelSource(hub=HubModel(name="owner/model")),
        datasets=[Dataset(hub=HubDataset(name="owner/data"))],
        training=Training(epochs=2),
    )


def test_python_objects_a_mapping_and_a_file_create_the_same_job(
    cluster: FineTune, server: FakeApiServer, tmp_path: pathlib.Path
) -> None:
    expected = {**SPEC, "training": {"epochs": 2}}
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job("file", training={"epochs": 2})))
    metadata = Metadata(name="whole", labels={"a": "b"})
    whole = FineTuneJob(api_version="finetune.dev/v1alpha1", kind="FineTuneJob", metadata=metadata, spec=build_spec())
    assert cluster.submit(build_spec(), name="spec").name == "spec"
    cluster.submit(whole)
    cluster.submit(job("mapping", training={"epochs": 2}))
    cluster.submit(file)
    cluster.submit(str(file), name="renamed")
    assert server.list_names("finetunejobs") == ["file", "mapping", "renamed", "spec", "whole"]
    for name in server.list_names("finetunejobs"):
        created = server.get("finetunejobs", name)
        assert created["spec"] == expected
        assert (created["apiVersion"], created["kind"]) == ("finetune.dev/v1alpha1", "FineTuneJob")
    assert server.get("finetunejobs", "whole")["metadata"]["labels"] == {"a": "b"}


def test_an_invalid_job_is_refused_before_any_request(cluster: FineTune, server: FakeApiServer) -> None:
    with pytest.raises(FineTuneError, match=r"spec\.datasets: required field is missing"):
        cluster.submit({**job(), "spec": {"task": "sft", "model": SPEC["model"]}})
    with pytest.raises(FineTuneError, match="a spec alone has no name"):
        cluster.submit(build_spec())
    with pytest.raises(FineTuneError, match=r"metadata\.name: write at most"):
        cluster.submit(build_spec(), name="Not_A_Name")
    assert server.requests == []


def test_a_taken_name_raises_name_taken_error(cluster: FineTune) -> None:
    cluster.submit(job())
    with pytest.raises(NameTakenError):
        cluster.submit(job())


def test_wait_reports_progress_and_returns_the_last_status(cluster: FineTune, server: FakeApiServer, clock: Clock) -> None:
    handle = cluster.submit(job())
    stored = server.get("finetunejobs", "news")
    later = copy.deepcopy(RUNNING)
    later["progress"]["step"] = 50
    clock.then = [
        lambda: stored.update(status=RUNNING),
        lambda: setattr(server, "drop_requests", 2),
        lambda: None,
        lambda: stored.update(status=later),
        lambda: stored.update(status=SUCCEEDED),
    ]
    steps: list[int] = []
    status = handle.wait(on_progress=lambda progress: steps.append(progress.step))
    assert steps == [37, 50]
    assert status.evaluation is not None
    assert status.evaluation.metrics == {"accuracy": 0.91}


def test_wait_raises_the_failure_of_a_failed_job(cluster: FineTune, server: FakeApiServer) -> None:
    server.put("finetunejobs", job(status=FAILED))
    with pytest.raises(JobFailedError, match="news failed, DataError: column text is missing") as caught:
        cluster.job("news").wait()
    assert caught.value.failure is not None
    assert (caught.value.failure.rank, caught.value.failure.exit_code) == (1, 64)
    assert caught.value.status.phase == "Failed"


def test_wait_ends_at_its_timeout_and_the_job_continues(cluster: FineTune, server: FakeApiServer) -> None:
    server.put("finetunejobs", job(status=RUNNING))
    with pytest.raises(
        JobTimeoutError, match=r"has not ended within 0 s \(it is Running \(Training\): attempt 1 trains\); the job continues"
    ):
        cluster.job("news").wait(timeout=0)
    with pytest.raises(TimeoutError):
        cluster.job("news").suspend(wait=True, timeout=0)


@pytest.mark.parametrize("what", ["wait", "suspend", "resume"])
def test_wait_ends_at_its_timeout_while_the_api_server_is_unavailable(
    cluster: FineTune, server: FakeApiServer, clock: Clock, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    server.put("finetunejobs", job(status=RUNNING))
    handle = cluster.job("news")
    server.responses["GET finetunejobs"] = error_response(503, "ServiceUnavailable", "etcd is away")
    monkeypatch.setattr("finetune_client.job.time", types.SimpleNamespace(monotonic=lambda: sum(clock.pauses)))
    waits = {
        "wait": lambda: handle.wait(timeout=21),
        "suspend": lambda: handle.suspend(wait=True, timeout=21),
        "resume": lambda: handle.resume(wait=True, timeout=21),
    }
    with pytest.raises(JobTimeoutError, match=r"within 21 s \(.*etcd is away"):
        waits[what]()
    assert clock.pauses == [2, 4, 8, 7], "the last pause ends at the timeout"


@pytest.mark.parametrize(("status", "ended"), [(SUCCEEDED, "succeeded"), (FAILED, "failed")])
def test_suspend_raises_if_the_job_ends_first(
    cluster: FineTune, server: FakeApiServer, clock: Clock, status: dict[str, Any], ended: str
) -> None:
    stored = server.put("finetunejobs", job(status=RUNNING))
    clock.then = [lambda: stored.update(status=status)]
    with pytest.raises(RefusedError, match=f"^news {ended} before it was suspended$"):
        cluster.job("news").suspend(wait=True)


def test_resume_raises_if_the_job_fails(cluster: FineTune, server: FakeApiServer, clock: Clock) -> None:
    stored = server.put("finetunejobs", job(status={"phase": "Suspended"}))
    clock.then = [lambda: stored.update(status=FAILED)]
    with pytest.raises(JobFailedError, match="news failed, DataError: column text is missing"):
        cluster.job("news").resume(wait=True)


def test_a_job_has_status_progress_and_events_until_it_is_deleted(cluster: FineTune, server: FakeApiServer) -> None:
    server.put("finetunejobs", job(status=RUNNING))
    server.put("events", event("Started", "Attempt 1 trains.", at="2026-11-21T10:00:09Z"))
    server.put("events", event("Created", "Created the pods.", at="2026-11-21T10:00:01Z"))
    earlier = event("Failed", "of an earlier job of this name")
    earlier["involvedObject"]["uid"] = "another"
    server.put("events", earlier)
    handle = cluster.job("news")
    assert handle.status.phase == "Running"
    progress = handle.progress()
    assert progress is not None
    assert progress.step == 37
    assert [item.reason for item in handle.events()] == ["Created", "Started"]
    handle.delete()
    assert server.list_names("finetunejobs") == []
    with pytest.raises(NoSuchJobError):
        handle.delete()
    handle.delete(missing_ok=True)


def test_a_long_list_is_read_page_by_page(cluster: FineTune, server: FakeApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    pages = [{"metadata": {"continue": "more"}, "items": []}, {"metadata": {"continue": ""}, "items": []}]
    responses = iter(pages)

    def respond(*_: Any) -> tuple[int, bytes]:
        return 200, json.dumps(next(responses)).encode()

    monkeypatch.setattr(server, "respond", respond)
    assert cluster.list() == []
    assert len(server.requests) == 2


def test_errors_have_types(cluster: FineTune, server: FakeApiServer) -> None:
    server.drop_requests = 1
    with pytest.raises(UnreachableError):
        cluster.list()
    server.responses["GET finetunejobs"] = error_response(429, "TooManyRequests", "later")
    with pytest.raises(UnreachableError):
        cluster.list()
    server.crd_installed = False
    with pytest.raises(NotInstalledError):
        cluster.list()


def test_in_a_pod_the_service_account_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    for name, content in (("token", "secret"), ("ca.crt", "certificate"), ("namespace", "mine\n")):
        (tmp_path / name).write_text(content)
    from kubernetes.config import incluster_config

    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr("finetune_client.connection._NAMESPACE_FILE", tmp_path / "namespace")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    load = incluster_config.InClusterConfigLoader
    monkeypatch.setattr(
        "kubernetes.config.load_incluster_config",
        lambda client_configuration: load(str(tmp_path / "token"), str(tmp_path / "ca.crt")).load_and_set(client_configuration),
    )
    connection = connect()
    assert connection.namespace == "mine"
    assert connection.client.configuration.host == "https://10.0.0.1:443"


def test_a_curve_falls_from_its_first_to_its_last_point() -> None:
    lines = draw_curve([(step, 1 / (1 + step)) for step in range(20)], 40, 4)
    assert len(lines) == 4
    assert all(len(line) <= 40 for line in lines)
    assert lines[0].startswith("   1 ┤")
    assert lines[-1].startswith("0.05 ┤")
    braille = [line.partition("┤")[2] for line in lines]
    assert braille[0][0] != "\u2800"
    assert braille[0][-1] == "\u2800"
    assert braille[-1][-1] != "\u2800"
    for cells in zip(*braille, strict=True):
        assert any(cell != "\u2800" for cell in cells), "the curve has no gaps"


def test_draw_curve_accepts_flat_curves_single_points_and_values_that_are_not_finite() -> None:
    assert draw_curve([(1, 0.5)], 40, 4) == []
    assert draw_curve([(1, 0.5), (2, math.nan)], 40, 4) == []
    assert len(draw_curve([(1, 0.5), (2, 0.5), (3, math.inf)], 40, 4)) == 4
